"""The decoupled losses of Liu et al. 2023 (arXiv 2203.10761), supervised and semi-supervised."""

import math

import torch.nn.functional as F
from torch import Tensor

from regbench.functional.losses import mixup_cross_entropy

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


def decoupled_term(logits: Tensor, label: Tensor, competitor: Tensor, keep: Tensor | None = None) -> Tensor:
    """−log h_{label\\competitor}, averaged over the batch; a row whose two classes are equal counts as 0.

    Args:
        logits: (B, C).
        label: int64 (B,).
        competitor: int64 (B,), the other class in the mix.
        keep: bool (B,), the rows that count; the others count as 0. None: all.

    Returns:
        scalar.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    >>> round(decoupled_term(logits, torch.tensor([0]), torch.tensor([1])).item(), 4)
    0.1698
    """
    left_out = label == competitor if keep is None else (label == competitor) | ~keep
    target = label.masked_fill(left_out, -100)  # the index that nll_loss leaves out
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
    keep: Tensor | None = None,
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
        keep: bool (B,), the rows that count; the others count as 0 in the mean over B. None: all.

    Returns:
        scalar.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    >>> round(decoupled_mixup_cross_entropy(logits, torch.tensor([0]), torch.tensor([1]), 0.7).item(), 4)
    0.7643
    """
    if keep is None:
        loss = mixup_cross_entropy(logits, label_a, label_b, lam)
    else:
        log_p = F.log_softmax(logits, dim=1)
        a, b = (F.nll_loss(log_p, y.masked_fill(~keep, -100), reduction="sum") for y in (label_a, label_b))
        loss = (lam * a + (1 - lam) * b) / len(logits)
    a_has_term = mode == "both" or (mode == "less") == (lam < 0.5)
    b_has_term = mode == "both" or not a_has_term
    weight_a = eta * rescale(lam, t, xi) if a_has_term else 0.0
    weight_b = eta * rescale(1 - lam, t, xi) if b_has_term else 0.0
    if weight_a:
        loss = loss + weight_a * decoupled_term(logits, label_a, label_b, keep)
    if weight_b:
        loss = loss + weight_b * decoupled_term(logits, label_b, label_a, keep)
    return loss
