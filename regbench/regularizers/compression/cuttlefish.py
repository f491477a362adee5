"""Cuttlefish: full rank until the layers' stable ranks settle, then low rank at these ranks. A baseline.

The paper's text was not seen. Formulas and constants are those of the released code for CIFAR (main.py, utils.py).
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.registry import Paper, register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.compression.base import LowRankMethod

log = logging.getLogger("regbench")

RANKS = ("scaled", "plain")
RELAXED = {2: 2.5, 1: 5.0}  # layers that have not settled → factor of the threshold


def stable_rank(weight: Tensor) -> int:
    """⌊Σ_i s_i² / max_i s_i²⌋ = ⌊‖W‖_F² / ‖W‖₂²⌋, s the singular values of W (m, n); at least 1.

    >>> stable_rank(torch.diag(torch.tensor([2.0, 2.0, 1.0])))  # 9 / 4
    2
    """
    weight = weight.detach().cpu().double()  # so that every device rounds alike
    # ‖W‖₂² is the largest eigenvalue of the smaller of W Wᵀ and Wᵀ W, which costs a fraction of all singular values.
    gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
    return max(1, int((gram.trace() / torch.linalg.eigvalsh(gram)[-1]).nan_to_num(1.0)))


def rank_to_keep(stable: int, initial: int, full: int) -> int:
    """min(full, ⌈stable · full / initial⌉): the stable rank, scaled so that the initial weights have full rank.

    Args:
        stable: stable rank of the trained weight.
        initial: stable rank of the initial weight.
        full: min(m, n).

    >>> rank_to_keep(5, 12, 32), rank_to_keep(13, 12, 32)  # ⌈13.33⌉, and no more than there are
    (14, 32)
    """
    return min(full, math.ceil(stable * full / initial))


def change(smoothed: Tensor, averaged: int) -> Tensor:
    """How much smoothed ranks change in an epoch: the mean of the last `averaged` absolute differences, (L,).

    Differences are central, (E_(t+1) − E_(t−1)) / 2, and one-sided at both ends, as numpy.gradient's are.

    Args:
        smoothed: the ranks E of L layers, (T, L), T at least 2; of more epochs the last `averaged` + 1 are enough.

    >>> change(torch.tensor([[8.0], [4.0], [4.0], [3.0]]), 2)  # |3 − 4| / 2 and |3 − 4|
    tensor([0.7500])
    """
    (differences,) = torch.gradient(smoothed, dim=0)
    return differences[-averaged:].abs().mean(dim=0)


def product_norm(u: Tensor, v: Tensor) -> Tensor:
    """‖U Vᵀ‖_F² (scalar) = Σ (Uᵀ U ∘ Vᵀ V), without the product.

    Args:
        u: (r, m), one component a row.
        v: (r, n).

    >>> product_norm(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).item()  # 5 · 25
    125.0
    """
    return ((u @ u.T) * (v @ v.T)).sum()


@register(
    "cuttlefish",
    task="classification",
    paper=Paper(
        title="Cuttlefish: Low-Rank Model Training without All the Tuning",
        authors="Hongyi Wang, Saurabh Agarwal, Pongsakorn U-chupala, Yoshiki Tanaka, Eric Xing, D. Papailiopoulos",
        year=2023,
        venue="MLSys",
        arxiv="2305.02538",
        code="https://github.com/hwang595/Cuttlefish",
    ),
)
class Cuttlefish(LowRankMethod):
    """Training at full rank until each layer's stable rank settles, and then at these ranks, gives a smaller network of
    comparable accuracy without tuning when to switch or which ranks to take.

    Before the switch one factor of a layer is its weight, and the other one the identity, which rests: this is training
    at full rank, and shapes never change within a run.

    Args:
        ranks: scaled (the stable rank times full rank over the initial weight's stable rank) or plain.
        window: points N of the exponential moving average of the ranks, weight 2 / (N + 1), and the first epoch,
            counted from 0, in which a layer may have settled.
        averaged: changes of the smoothed rank that are averaged, the last ones.
        threshold: a layer has settled once this mean is no larger, in ranks an epoch; 2.5 times that for the last two
            layers, 5 times for the last one.
        frobenius: λ, after the switch λ / 2 Σ ‖U Vᵀ‖² is added to the loss, and the factors have no weight decay of
            their own; None: they have the optimiser's.
        skip_first: layers at the start that stay whole.
        skip_last: whether the last layer stays whole.
        pointwise: whether 1 × 1 convolutions, such as a ResNet's shortcuts, are cut too.
    """

    owns_loop: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        ranks: str = "scaled",
        window: int = 15,
        averaged: int = 11,
        threshold: float = 0.1,
        frobenius: float | None = 1e-4,
        skip_first: int = 1,
        skip_last: bool = True,
        pointwise: bool = False,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if ranks not in RANKS:
            raise unknown("ranks of cuttlefish", ranks, RANKS)
        if window < 1 or averaged < 1 or threshold < 0 or (frobenius is not None and frobenius < 0):
            raise UserError(
                "cuttlefish needs window >= 1, averaged >= 1, threshold >= 0 and frobenius >= 0 (null: the optimiser's "
                f"weight decay); it got window={window}, averaged={averaged}, threshold={threshold}, "
                f"frobenius={frobenius}."
            )
        self.ranks, self.window, self.averaged, self.threshold = ranks, window, averaged, threshold
        self.frobenius = frobenius
        self.put_into_factors(init="whole", skip_first=skip_first, skip_last=skip_last, pointwise=pointwise)
        count = len(self.layers)
        self.register_buffer("initial", torch.tensor(self.stable_ranks()))
        self.register_buffer("smoothed", torch.zeros(averaged + 1, count))  # ranks, the latest epoch last
        self.register_buffer("settled", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("full_rank_epochs", torch.zeros((), dtype=torch.long))
        self.register_buffer("switched", torch.zeros((), dtype=torch.bool))
        self._switched = False  # as the buffer says, without asking a GPU for it
        for factor in self._factors("resting"):
            # Zeros instead of none: with several processes each parameter needs a gradient.
            factor.register_hook(lambda grad: grad if self._switched else torch.zeros_like(grad))

    def _factors(self, which: str) -> list[nn.Parameter]:
        """The layers' factors that hold the weight before the switch (`whole`), or those that rest until then."""
        found = []
        for layer in self.layers.values():
            m, n = layer.sizes
            is_inner = (m <= n) == (which == "whole")
            found.append((layer.inner if is_inner else layer.outer).weight)
        return found

    def stable_ranks(self) -> list[int]:
        """The stable rank of each layer's weight."""
        return [stable_rank(layer.weight.flatten(1)) for layer in self.layers.values()]

    # -- when to switch ------------------------------------------------------------------------------------------

    def begin_epoch(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Looks at the ranks, or switches. For a loop of one's own; RegBench's calls it before each epoch.

        As in the released code the switch comes an epoch after the last layer has settled, at the ranks of then.
        """
        self._switched = bool(self.switched)
        if self._switched:
            return
        if self.settled.all():
            self.switch(optimizer)
            return
        self.observe(self.stable_ranks())
        self.full_rank_epochs += 1

    def observe(self, ranks: Sequence[int]) -> None:
        """Takes the stable ranks (L) before an epoch into the moving average, and notes which layers have settled."""
        epoch = int(self.full_rank_epochs)
        now = torch.tensor(ranks, dtype=torch.float32, device=self.smoothed.device)
        if epoch:
            now = self.smoothed[-1] + 2 / (self.window + 1) * (now - self.smoothed[-1])
        self.smoothed.copy_(torch.cat([self.smoothed[1:], now[None]]))
        if epoch >= self.window:
            left = int((~self.settled).sum())
            limit = self.threshold * RELAXED.get(left, 1.0)
            self.settled |= change(self.smoothed[-(epoch + 1) :], self.averaged) <= limit

    def switch(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Cuts the layers to the ranks of now by SVD; the optimiser starts anew."""
        for layer, initial in zip(self.layers.values(), self.initial.tolist(), strict=True):
            rank = stable_rank(layer.weight.flatten(1))
            if self.ranks == "scaled":
                rank = rank_to_keep(rank, initial, layer.full_rank)
            layer.decompose(rank)
        self.switched.fill_(True)
        self._switched = True
        if optimizer is None:
            return
        optimizer.state.clear()
        factors = {id(factor) for which in ("whole", "resting") for factor in self._factors(which)}
        for group in optimizer.param_groups:
            if any(id(parameter) in factors for parameter in group["params"]):
                own = optimizer.defaults.get("weight_decay", 0.0)
                group["weight_decay"] = own if self.frobenius is None else 0.0

    # -- training ------------------------------------------------------------------------------------------------

    def parameter_options(self) -> list[dict[str, Any]]:
        return [
            {"params": self._factors("whole")},
            {"params": self._factors("resting"), "weight_decay": 0.0},  # the identity stays one
        ]

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.begin_epoch(self.trainer.optimizers[0])

    def training_loss(self, batch) -> Tensor:
        image, label = batch_fields(batch, ("image", "label"))
        self.keep_samples(image)
        left = [layer.rank for layer in self.layers.values()]
        self.spend(self.passes(image, left) if self._switched else 1.0)
        loss = F.cross_entropy(self.backbone(image), label)
        if self._switched and self.frobenius is not None:
            loss = loss + self.frobenius / 2 * self.product_norms()
        return loss

    def product_norms(self) -> Tensor:
        """Σ ‖U Vᵀ‖_F² (scalar) over the layers in factors, of the components that are left."""
        terms = []
        for layer in self.layers.values():
            u, v = layer.components()
            terms.append(product_norm(u[: layer.rank], v[: layer.rank]))
        return torch.stack(terms).sum()

    # -- evaluation ----------------------------------------------------------------------------------------------

    def on_fit_end(self) -> None:
        if not self.switched:
            log.warning(
                "cuttlefish: the stable ranks of %d of %d layers settled within %d epochs. There was no switch, and "
                "the network is as large as it was: train longer, or raise regularizer.threshold.",
                int(self.settled.sum()), len(self.layers), int(self.full_rank_epochs),
            )  # fmt: skip

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.log("test/full_rank_epochs", float(self.full_rank_epochs))
