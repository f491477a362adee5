"""Maestro: layers in factors whose components are put in order by sampling ranks, and dropped by a group lasso.

The paper's text was not seen. The formulas are those of the released code; what its reviews say of the paper is marked.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from regbench.backbones.low_rank import cut_to, layers_of
from regbench.errors import UserError, unknown
from regbench.functional.low_rank import group_lasso, importance, rank_pairs
from regbench.registry import Paper, register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.compression.base import LowRankMethod

SAMPLERS = ("per_layer", "across_layers", "none")
INITS = ("svd", "random")
LAST = 10  # epochs at the end whose weights a run may test without having validated them


def lasso(network: nn.Module, hierarchical: bool = True) -> Tensor:
    """The group lasso (scalar) summed over the layers in factors, over all their stored components.

    >>> from regbench.backbones.low_rank import factorise
    >>> network = nn.Sequential(nn.Linear(2, 2))
    >>> _ = network[0].weight.data.copy_(torch.diag(torch.tensor([9.0, 16.0])))
    >>> factorise(network)
    >>> round(lasso(network).item(), 4)  # ‖(4, 3)‖ + 3 for each of both factors
    16.0
    """
    terms = [group_lasso(*layer.components(), hierarchical) for layer in layers_of(network).values()]
    return torch.stack(terms).sum()


@torch.no_grad()
def shrink(network: nn.Module, threshold: float, hierarchical: bool = True) -> None:
    """Keeps the components of the layers in factors with an importance of at least the threshold; others take no part.

    >>> from regbench.backbones.low_rank import factorise
    >>> network = nn.Sequential(nn.Linear(2, 2))
    >>> _ = network[0].weight.data.copy_(torch.diag(torch.tensor([9.0, 16.0])))
    >>> factorise(network)
    >>> shrink(network, 10.0)  # importances 25 and 9
    >>> network[0].rank
    1
    """
    for layer in layers_of(network).values():
        layer.keep(importance(*layer.components(), hierarchical) >= threshold)


@register(
    "maestro",
    task="classification",
    paper=Paper(
        title="Maestro: Uncovering Low-Rank Structures via Trainable Decomposition",
        authors="Samuel Horváth, Stefanos Laskaridis, Shashank Rajput, Hongyi Wang",
        year=2024,
        venue="ICML",
        arxiv="2308.14929",
        code="https://github.com/SamuelHorvath/Maestro-LoD",
    ),
)
class Maestro(LowRankMethod):
    """Training layers in factors whose ranks are sampled, with a hierarchical group lasso, finds each layer's rank at
    little cost in accuracy, and gives one network that can be cut to many sizes without further training.

    Args:
        sampler: per_layer (one layer at one rank a step, the paper's), across_layers (every layer at a rank of its
            own) or none.
        full_pass: whether each step also trains at full rank, whose prediction is then the sampled one's target.
        lasso: λ, factor of the group lasso, at least 0.
        hierarchical: whether a component's group holds all that come after it, in the lasso and in the importance.
        threshold: ε, components of a smaller importance are dropped after each epoch; None drops none.
        init: svd or random start of the factors.
        skip_first: layers at the start that stay whole.
        skip_last: whether the classifier stays whole.
        recalibrate: whether batch norms get the statistics of the kept ranks before an epoch's validation.
    """

    owns_loop: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        sampler: str = "per_layer",
        full_pass: bool = False,
        lasso: float = 1e-4,
        hierarchical: bool = True,
        threshold: float | None = 1e-7,
        init: str = "svd",
        skip_first: int = 0,
        skip_last: bool = False,
        recalibrate: bool = True,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if sampler not in SAMPLERS:
            raise unknown("sampler of maestro", sampler, SAMPLERS)
        if init not in INITS:
            raise unknown("init of maestro", init, INITS)
        if lasso < 0 or (threshold is not None and threshold < 0):
            raise UserError(
                f"maestro needs lasso >= 0 and threshold >= 0 (null drops nothing); it got lasso={lasso}, "
                f"threshold={threshold}."
            )
        if full_pass and sampler == "none":
            raise UserError(
                "full_pass=true adds a pass at full rank to a sampled one; sampler=none samples none."
            )
        self.sampler, self.full_pass, self.recalibrate = sampler, full_pass, recalibrate
        self.lasso, self.hierarchical, self.threshold = lasso, hierarchical, threshold
        self.put_into_factors(init=init, skip_first=skip_first, skip_last=skip_last)
        self._pairs: Iterator[tuple[int, int]] = iter(())

    # -- training ------------------------------------------------------------------------------------------------

    def training_loss(self, batch) -> Tensor:
        image, label = batch_fields(batch, ("image", "label"))
        self.keep_samples(image)
        ranks = self.draw_ranks()
        with cut_to(self.layers.values(), ranks):
            logits = self.backbone(image)
        if self.full_pass:
            whole = self.backbone(image)
            loss = F.cross_entropy(whole, label) + F.cross_entropy(logits, whole.detach().softmax(dim=1))
        else:
            loss = F.cross_entropy(logits, label)
        self._count(image, ranks)
        if self.lasso:
            loss = loss + self.lasso * lasso(self.backbone, self.hierarchical)
        return loss

    def draw_ranks(self) -> list[int | None]:
        """The ranks of the next step, one a layer; None: all that are left."""
        left = [layer.rank for layer in self.layers.values()]
        if self.sampler == "across_layers":
            generator = self.generator("ranks")
            return [r and int(torch.randint(1, r + 1, (), generator=generator)) for r in left]
        ranks: list[int | None] = [None] * len(left)
        if self.sampler == "per_layer" and any(left):
            pair = next(self._pairs, None)
            if pair is None:  # all have come: another order
                self._pairs = iter(rank_pairs(left, self.generator("ranks")))
                pair = next(self._pairs)
            ranks[pair[0]] = pair[1]
        return ranks

    def _count(self, image: Tensor, ranks: Sequence[int | None]) -> None:
        """Notes what the step's forward passes cost."""
        left = [layer.rank for layer in self.layers.values()]
        cut = [rank if cut is None else min(cut, rank) for cut, rank in zip(ranks, left, strict=True)]
        self.spend(self.passes(image, cut, left) if self.full_pass else self.passes(image, cut))

    def end_epoch(self) -> None:
        """Drops components below the threshold. For a loop of one's own; RegBench's calls it at each epoch's end."""
        super().end_epoch()
        if self.threshold is not None:
            shrink(self.backbone, self.threshold, self.hierarchical)
        self._pairs = iter(())

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._pairs = iter(())  # a resumed run knows no more of the epoch before

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        epoch, trainer = self.current_epoch, self.trainer
        if batch_idx + 1 < trainer.num_training_batches:
            return
        validated = (epoch + 1) % trainer.check_val_every_n_epoch == 0
        if self.recalibrate and (validated or epoch >= trainer.max_epochs - LAST):
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                update_bn(self.training_images(), self.backbone)

    def training_images(self) -> Iterator[Tensor]:
        """The images (B, C, H, W) of an epoch, always in the same order, so that a resumed run sees the same."""
        data = self.trainer.datamodule
        loader = self.trainer.train_dataloader if data is None else data.train_loader(self.device)
        for batch in islice(loader, self.trainer.num_training_batches):
            yield batch_fields(batch, ("image",))[0].to(self.device)
