"""Iterative magnitude pruning: train, remove the smallest weights, train again. A baseline.

Han et al. 2015 go on from the trained weights (arXiv 1506.02626), Frankle & Carbin 2019 go back to the initial ones,
and Frankle et al. 2020 to those of early training (rewinding, arXiv 1912.05671).
"""

import copy
import logging
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from regbench.errors import UserError
from regbench.functional.cost import Cost, macs_of_modules
from regbench.registry import Paper, register
from regbench.regularizers.compression.base import CompressionMethod
from regbench.schedules import lr_factor

log = logging.getLogger("regbench")


def round_starts(epochs: int, rounds: int) -> list[int]:
    """The first epoch of each of `rounds` + 1 periods, as even as can be: all but the first start with a pruning.

    >>> round_starts(12, 2), round_starts(10, 2)
    ([0, 4, 8], [0, 4, 7])
    """
    return [math.ceil(i * epochs / (rounds + 1)) for i in range(rounds + 1)]


def pruned_masks(weights: Sequence[Tensor], masks: Sequence[Tensor], share: float) -> list[Tensor]:
    """The masks without the `share` of the weights left that have the smallest magnitudes, among all tensors together.

    Args:
        weights: tensors of any shapes.
        masks: 1 where a weight is left, else 0; of the same shapes.
        share: of the weights left, in (0, 1); their number is rounded.

    >>> weights = torch.tensor([0.1, -4.0, 0.0]), torch.tensor([[-0.2, 3.0]])
    >>> pruned_masks(weights, [torch.tensor([1.0, 1.0, 0.0]), torch.ones(1, 2)], 0.5)
    [tensor([0., 1., 0.]), tensor([[0., 1.]])]
    """
    flat, kept = torch.cat([w.flatten() for w in weights]), torch.cat([m.flatten() for m in masks]) > 0
    left = flat[kept].abs()
    mask = kept.to(flat.dtype)
    mask[kept] = prune.L1Unstructured(amount=float(share)).compute_mask(left, torch.ones_like(left))
    parts = mask.split([m.numel() for m in masks])
    return [part.view_as(m) for part, m in zip(parts, masks, strict=True)]


def nonzero_macs(macs: Mapping[str, int], masks: Mapping[str, Tensor]) -> float:
    """A network's multiply-accumulates without those by removed weights.

    Args:
        macs: of each submodule, and of the network as ""; a layer that is not called itself, as attention's last one in
            torch, has none of its own.
        masks: of the pruned layers' weights.

    >>> nonzero_macs({"": 60, "fc": 40}, {"fc": torch.tensor([1.0, 0.0, 0.0, 0.0]), "idle": torch.zeros(2)})
    30.0
    """
    zeros = {name: float((mask == 0).sum()) / mask.numel() for name, mask in masks.items()}
    return macs[""] - sum(macs.get(name, 0) * share for name, share in zeros.items())


class Mask(nn.Module):
    """A parametrisation: the weight where the mask is 1, and 0 elsewhere, which gets no gradient there."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def prunable(network: nn.Module, skip_last: bool = False) -> dict[str, nn.Module]:
    """name → the linear layers and convolutions of a network, whose weights are pruned."""
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    if skip_last and layers:
        layers.popitem()
    return layers


@register(
    "magnitude_pruning",
    task="classification",
    paper=Paper(
        title="The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
        authors="Jonathan Frankle, Michael Carbin",
        year=2019,
        venue="ICLR",
        arxiv="1803.03635",
        code="https://github.com/facebookresearch/open_lth",
    ),
)
class MagnitudePruning(CompressionMethod):
    """Training, removing the weights of smallest magnitude, and training again from early weights, round after round,
    leaves a sparse network that is as accurate as the dense one.

    trainer.max_epochs is shared out among `rounds` + 1 periods of training, each with a learning-rate schedule of its
    own and a new optimiser. Weights of linear layers and convolutions are pruned, biases and norms are not.

    Args:
        rounds: prunings.
        share: of the weights that are left, removed at each pruning, above 0 and below 1; among all layers together.
        rewind: epoch of the first period to whose start the network goes back after each pruning, 0 for the initial
            weights; None: it goes on from the trained ones.
        skip_last: whether the classifier is left alone.
    """

    owns_loop: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        rounds: int = 5,
        share: float = 0.2,
        rewind: int | None = 1,
        skip_last: bool = False,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if rounds < 1 or not 0 < share < 1 or (rewind is not None and rewind < 0):
            raise UserError(
                "magnitude_pruning needs rounds >= 1, a share in (0, 1) and rewind >= 0 (null: no rewinding); it got "
                f"rounds={rounds}, share={share}, rewind={rewind}."
            )
        self.rounds, self.share, self.rewind = rounds, float(share), rewind
        self.layers = prunable(self.backbone.network, skip_last)
        if not self.layers:
            raise UserError(
                "magnitude_pruning found no linear layer or convolution to prune; take another backbone."
            )
        for layer in self.layers.values():
            parametrize.register_parametrization(layer, "weight", Mask(layer.weight))
        # The network to go back to. Part of the checkpoint, and no part of what is trained.
        self.early = None if rewind is None else copy.deepcopy(self.backbone).requires_grad_(False)

    @property
    def masks(self) -> list[Tensor]:
        """1 where a weight is left, else 0; of each layer that is pruned."""
        return [layer.parametrizations.weight[-1].mask for layer in self.layers.values()]

    def pruned(self) -> float:
        """The weights that were removed over all that can be."""
        return 1 - float(sum(mask.sum() for mask in self.masks)) / sum(mask.numel() for mask in self.masks)

    @torch.no_grad()
    def prune(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Removes weights, and goes back to the early ones; the optimiser starts anew."""
        made = pruned_masks([layer.weight for layer in self.layers.values()], self.masks, self.share)
        for mask, new in zip(self.masks, made, strict=True):
            mask.copy_(new)
        if self.early is not None:
            state = self.early.state_dict()
            own = {name for name in state if name.endswith("parametrizations.weight.0.mask")}
            self.backbone.load_state_dict({k: v for k, v in state.items() if k not in own}, strict=False)
        if optimizer is not None:
            optimizer.state.clear()

    # -- training ------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        starts = round_starts(self.max_epochs, self.rounds)
        if self.max_epochs <= self.rounds:
            log.warning(
                "magnitude_pruning: trainer.max_epochs=%d is too short for %d prunings with an epoch between them.",
                self.max_epochs, self.rounds,
            )  # fmt: skip
        elif self.rewind is not None and self.rewind >= starts[1]:
            raise UserError(
                f"regularizer.rewind={self.rewind} lies behind the first pruning: {self.rounds} prunings share "
                f"trainer.max_epochs={self.max_epochs}, and the first comes after {starts[1]}. Rewind to an earlier "
                "epoch, or train longer."
            )

    def configure_optimizers(self):
        found = super().configure_optimizers()
        if not isinstance(found, dict):
            return found
        # The schedule starts anew with each period.
        per_epoch = int(self.trainer.estimated_stepping_batches) / self.max_epochs
        ends = [
            round(per_epoch * epoch)
            for epoch in [*round_starts(self.max_epochs, self.rounds), self.max_epochs]
        ]
        ends = sorted(set(ends))  # too few epochs leave periods empty
        factors = [
            lr_factor(self._schedule, total=end - start, per_epoch=per_epoch) for start, end in pairwise(ends)
        ]

        def factor(step: int) -> float:
            period = min(bisect_right(ends, step), len(factors)) - 1
            return factors[period](step - ends[period])

        scheduler = torch.optim.lr_scheduler.LambdaLR(found["optimizer"], factor)
        return {"optimizer": found["optimizer"], "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == self.rewind:
            self.early.load_state_dict(self.backbone.state_dict())
        for start in round_starts(self.max_epochs, self.rounds)[1:]:
            if start == self.current_epoch:
                self.prune(self.trainer.optimizers[0])

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.log("train/pruned", self.pruned())

    # -- evaluation ----------------------------------------------------------------------------------------------

    def cost(self, network: nn.Module) -> Cost:
        """Parameters that are not zero by pruning; multiply-accumulates as a plain layer makes them, zeros included."""
        found = super().cost(network)
        return Cost(found.params - sum(int((mask == 0).sum()) for mask in self.masks), found.macs)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        with torch.inference_mode(False):
            macs = macs_of_modules(self._given[0].network, self._shape)
        left = nonzero_macs(macs, dict(zip(self.layers, self.masks, strict=True)))
        self.log("test/pruned", self.pruned())
        self.log("test/nonzero_macs_ratio", left / macs[""])
