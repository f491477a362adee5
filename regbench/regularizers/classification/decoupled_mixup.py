"""Decoupled mixup: each of two mixed classes also competes with the classes outside the mix alone."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional import mixing
from regbench.functional.decoupled import MODES, decoupled_mixup_cross_entropy, rescale
from regbench.functional.mixing import Draw
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod

LOSSES = ("ce", "bce")


def decoupled_mixup_binary_cross_entropy(
    logits: Tensor, label_a: Tensor, label_b: Tensor, lam: float, *, t: float = 1.0, xi: float = 1.0
) -> Tensor:
    """DM(BCE): binary cross entropies with the targets r(λ) for a, r(1 − λ) for b, 0 elsewhere (1 if a = b).

    Args: as for `decoupled_mixup_cross_entropy`.

    Returns:
        scalar: the sum over the classes, averaged over the batch.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    >>> a, b = torch.tensor([0]), torch.tensor([1])
    >>> round(decoupled_mixup_binary_cross_entropy(logits, a, b, 0.7, xi=0.8).item(), 4)
    2.3216
    """
    target_b = logits.new_full(label_b.shape, rescale(1 - lam, t, xi)).masked_fill_(label_a == label_b, 1.0)
    target = logits.new_zeros(logits.shape).scatter_(1, label_a[:, None], rescale(lam, t, xi))
    target.scatter_(1, label_b[:, None], target_b[:, None])
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


@register(
    "decoupled_mixup",
    task="classification",
    paper=Paper(
        title="Harnessing Hard Mixed Samples with Decoupled Regularizer",
        authors="Zicheng Liu, Siyuan Li, Ge Wang, Cheng Tan, Lirong Wu, Stan Z. Li",
        year=2023,
        venue="NeurIPS",
        arxiv="2203.10761",
        code="https://github.com/Westlake-AI/openmixup",
    ),
)
class DecoupledMixup(ClassificationMethod):
    """Adding a term in which each of two mixed classes competes only with the classes outside the mix raises
    the accuracy of static mixing policies over plain mixup cross entropy, at no extra cost per step.

    Args:
        policy: mixup, cutmix, manifold_mixup, resizemix, fmix or saliencymix.
        alpha: the mixing share is drawn from Beta(alpha, alpha).
        policy_options: the policy's other hyperparameters by name, e.g. {"decay": 3} for fmix.
        loss: ce (mixup cross entropy plus decoupled terms), or bce (two-hot targets; no use of eta and mode).
        eta: weight η of the decoupled terms.
        mode: both, less or more: which of the two classes gets its term.
        t: exponent of the rescaled share r.
        xi: share ξ from which r is 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        policy: str = "mixup",
        alpha: float = 1.0,
        policy_options: Mapping[str, Any] | None = None,
        loss: str = "ce",
        eta: float = 0.1,
        mode: str = "both",
        t: float = 1.0,
        xi: float = 1.0,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        self.draw = mixing.bind(
            policy, {"alpha": alpha, **(policy_options or {})}, stages=len(self.backbone.stages)
        )
        if loss not in LOSSES:
            raise unknown("decoupled loss", loss, LOSSES)
        if mode not in MODES:
            raise unknown("mode of decoupled_mixup", mode, MODES)
        if not (eta >= 0 and t >= 0 and 0 < xi <= 1):
            raise UserError(
                f"decoupled_mixup needs eta >= 0, t >= 0 and 0 < xi <= 1; it got eta={eta}, t={t}, xi={xi}."
            )
        self.loss, self.eta, self.mode, self.t, self.xi = loss, eta, mode, t, xi

    def mix(self, image: Tensor, label: Tensor) -> Draw:
        return self.draw(image, self.generator("mix"))

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        pair = logits, batch.label, batch.partner.label, batch.partner.lam
        if self.loss == "bce":
            return decoupled_mixup_binary_cross_entropy(*pair, t=self.t, xi=self.xi)
        return decoupled_mixup_cross_entropy(*pair, eta=self.eta, mode=self.mode, t=self.t, xi=self.xi)
