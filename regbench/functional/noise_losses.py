"""Losses that wrong labels mislead less than cross entropy, and the estimate of how labels go wrong."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class _Mixture(Protocol):
    label: Tensor
    lam: float


class _Batch(Protocol):
    label: Tensor
    partner: _Mixture | None


def of_batch(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, batch: _Batch) -> Tensor:
    """loss(z, y); for a mixed batch λ loss(z, y) + (1 − λ) loss(z, y of the partner), as mixup does it.

    Args:
        loss: (logits (B, C), labels (B,)) → scalar.
        logits: (B, C).
        batch: its `label` (B,), and its `partner` with `label` (B,) and share `lam` = λ of the image itself, or None.
    """
    own = loss(logits, batch.label)
    if batch.partner is None:
        return own
    return batch.partner.lam * own + (1 - batch.partner.lam) * loss(logits, batch.partner.label)


def soft_bootstrap(logits: Tensor, label: Tensor, beta: float) -> Tensor:
    """Mean of −Σ_c [β y_c + (1 − β) p_c] log p_c, p = softmax(z) (Reed et al. 2015, soft bootstrapping).

    It is β · cross entropy + (1 − β) · entropy of the prediction; gradients flow through both p.

    Args:
        logits: z, (B, C).
        label: int64 (B,).
        beta: β, share of the label in the target.

    >>> round(soft_bootstrap(torch.zeros(1, 4), torch.tensor([0]), 0.95).item(), 4)  # log 4
    1.3863
    """
    log_p = F.log_softmax(logits, dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1).mean()
    return beta * F.nll_loss(log_p, label) + (1 - beta) * entropy


def hard_bootstrap(logits: Tensor, label: Tensor, beta: float) -> Tensor:
    """Mean of −β log p_y − (1 − β) log max_c p_c (Reed et al. 2015, hard bootstrapping).

    Args:
        logits: (B, C).
        label: int64 (B,).
        beta: β, share of the label in the target; the rest is the predicted class.

    >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> round(hard_bootstrap(logits, torch.tensor([1]), 0.8).item(), 4)  # 0.8 log 4 + 0.2 log 2
    1.2477
    """
    log_p = F.log_softmax(logits, dim=1)
    return beta * F.nll_loss(log_p, label) - (1 - beta) * log_p.amax(dim=1).mean()


def forward_loss(logits: Tensor, label: Tensor, log_matrix: Tensor) -> Tensor:
    """Mean of −log Σ_k p_k T[k, y], p = softmax(z) (Patrini et al. 2017, forward correction, theorem 2).

    p is the prediction of the true class; p T is that of the label, which cross entropy compares with y.

    Args:
        logits: z, (B, C).
        label: int64 (B,), labels that may be wrong.
        log_matrix: log T, (C, C); T[k, y] is the probability that a sample of class k has the label y.

    >>> T = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    >>> logits = torch.tensor([[0.5, 0.5]]).log()
    >>> round(forward_loss(logits, torch.tensor([1]), T.log()).item(), 4)  # −log(0.05 + 0.4)
    0.7985
    """
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p + log_matrix.T[label]).logsumexp(dim=1).mean()


def anchor_matrix(p: Tensor, percentile: float | None = 97.0) -> Tensor:
    """An estimate of T (C, C) from the predictions of a network that was trained on the labels as they are.

    Row k is the prediction for the anchor of class k: the sample of the largest p_k (Patrini et al. 2017, eqs. 12 and
    13). With `percentile` the anchor is the largest below that percentile of p_k, which skips outliers, as the released
    code does on all sets but CIFAR-100.

    Args:
        p: (N, C), predictions on the training samples; rows sum to 1.
        percentile: in (0, 100); the sample there and all above it are skipped. None skips nothing.

    >>> anchor_matrix(torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]), None)
    tensor([[0.9000, 0.1000],
            [0.2000, 0.8000]])
    """
    anchor = p.argmax(dim=0)
    if percentile is not None:
        # The limit is the sample at, or next after, the place (N − 1) percentile / 100 in ascending order.
        place = math.ceil((len(p) - 1) * percentile / 100)
        below = p.masked_fill(p >= p.kthvalue(place + 1, dim=0).values, 0.0)
        # Where nothing is below (a handful of samples), the largest one stands.
        anchor = torch.where(below.amax(dim=0) > 0, below.argmax(dim=0), anchor)
    return p[anchor] / p[anchor].sum(dim=1, keepdim=True)


def generalized_cross_entropy(logits: Tensor, label: Tensor, q: float, k: float | None = None) -> Tensor:
    """Mean of L_q = (1 − p_y^q) / q, p = softmax(z) (Zhang & Sabuncu 2018, eq. 6); with k the truncated loss.

    q → 0 is cross entropy, q = 1 is 1 − p_y, half the absolute error. Truncated (eq. 9), a sample with p_y ≤ k counts
    with the constant (1 − k^q) / q, and has no gradient.

    Args:
        logits: z, (B, C).
        label: int64 (B,).
        q: in (0, 1].
        k: in (0, 1), the truncation; None truncates nothing.

    >>> logits = torch.tensor([[0.25, 0.75]]).log()
    >>> generalized_cross_entropy(logits, torch.tensor([0]), 0.5)  # (1 − 0.5) / 0.5
    tensor(1.)
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, label[:, None]).squeeze(1)
    power = (q * log_p).exp()
    if k is not None:
        power = power.clamp(min=k**q)
    return ((1 - power) / q).mean()


def symmetric_cross_entropy(
    logits: Tensor, label: Tensor, alpha: float, beta: float, log_zero: float
) -> Tensor:
    """Mean of α CE + β RCE, RCE = −Σ_c p_c log y_c with log 0 := A, i.e. −A (1 − p_y) (Wang et al. 2019).

    Args:
        logits: (B, C).
        label: int64 (B,).
        alpha: α, weight of cross entropy.
        beta: β, weight of the reverse cross entropy.
        log_zero: A, below 0.

    >>> logits = torch.tensor([[0.25, 0.75]]).log()
    >>> symmetric_cross_entropy(logits, torch.tensor([0]), 0.0, 1.0, -4.0)  # 4 · 0.75
    tensor(3.)
    """
    log_p = F.log_softmax(logits, dim=1)
    p_label = log_p.gather(1, label[:, None]).exp()
    return alpha * F.nll_loss(log_p, label) - beta * log_zero * (1 - p_label).mean()
