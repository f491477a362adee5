"""Decoupled mixup: each of two mixed classes also competes with the classes outside the mix alone."""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional import mixing
from regbench.functional.losses import mixup_cross_entropy
from regbench.functional.mixing import Draw
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod

LOSSES = ("ce", "bce")
MODES = ("both", "less", "more")


def decoupled_log_softmax(logits: Tensor, competitor: Tensor) -> Tensor:
    """log h_{c\\j} = z_c − log Σ_{k ≠ j} exp(z_k): log-softmax without the competitor j in its sum.

    Args:
        logits: z, (B, C).
        competitor: j, int64 (B,).

    Returns:
        (B, C), −inf at the competitor. Stable for any finite logits: the entry is masked before the
        log-softmax, not subtracted from its sum.

    >>> import torch
    >>> decoupled_log_softmax(torch.zeros(1, 4), torch.tensor([3])).exp()
    tensor([[0.3333, 0.3333, 0.3333, 0.0000]])
    """
    return F.log_softmax(logits.scatter(1, competitor[:, None], -math.inf), dim=1)


def decoupled_term(logits: Tensor, label: Tensor, competitor: Tensor) -> Tensor:
    """−log h_{label\\competitor}, averaged over the batch; a row whose two classes are equal counts as 0.

    Args:
        logits: (B, C).
        label: int64 (B,).
        competitor: int64 (B,), the other class in the mix.

    Returns:
        scalar.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    >>> round(decoupled_term(logits, torch.tensor([0]), torch.tensor([1])).item(), 4)
    0.1698
    """
    target = label.masked_fill(label == competitor, -100)  # the index that nll_loss leaves out
    return F.nll_loss(decoupled_log_softmax(logits, competitor), target, reduction="sum") / len(logits)


def rescale(share: float, t: float = 1.0, xi: float = 1.0) -> float:
    """r(l) = 1 if l ≥ ξ, else (l / ξ)^t, for the share l of a class; r(0) = 0, also for t = 0.

    >>> rescale(0.3), rescale(0.7, t=0.0), rescale(0.9, xi=0.8), round(rescale(0.3, xi=0.8), 4)
    (0.3, 1.0, 1.0, 0.375)
    """
    if share <= 0:
        return 0.0  # a class that is not in the mix gets no term, whatever t
    return 1.0 if share >= xi else (share / xi) ** t


def decoupled_mixup_cross_entropy(
    logits: Tensor,
    label_a: Tensor,
    label_b: Tensor,
    lam: float,
    *,
    eta: float = 0.1,
    mode: str = "both",
    t: float = 1.0,
    xi: float = 1.0,
) -> Tensor:
    """DM(CE) = mixup cross entropy + η r(λ) (−log h_{a\\b}) + η r(1 − λ) (−log h_{b\\a}), batch mean.

    A row with a = b gives plain cross entropy. Exchanging (a, λ) with (b, 1 − λ) or renaming classes changes
    nothing (but that mode less or more at exactly λ = 0.5 takes b for the smaller share).

    Args:
        logits: (B, C).
        label_a: int64 (B,), the class of the image itself.
        label_b: int64 (B,), the class of its partner.
        lam: share λ of the image itself, in [0, 1].
        eta: weight η of the decoupled terms.
        mode: which class gets its term: both, the one with the smaller share (less), or the larger (more).
        t: exponent of `rescale`.
        xi: threshold of `rescale`.

    Returns:
        scalar.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    >>> round(decoupled_mixup_cross_entropy(logits, torch.tensor([0]), torch.tensor([1]), 0.7).item(), 4)
    0.7643
    """
    loss = mixup_cross_entropy(logits, label_a, label_b, lam)
    a_has_term = mode == "both" or (mode == "less") == (lam < 0.5)
    b_has_term = mode == "both" or not a_has_term
    weight_a = eta * rescale(lam, t, xi) if a_has_term else 0.0
    weight_b = eta * rescale(1 - lam, t, xi) if b_has_term else 0.0
    if weight_a:
        loss = loss + weight_a * decoupled_term(logits, label_a, label_b)
    if weight_b:
        loss = loss + weight_b * decoupled_term(logits, label_b, label_a)
    return loss


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
