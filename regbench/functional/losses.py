"""Losses that more than one method uses."""

import torch.nn.functional as F
from torch import Tensor


def mixup_cross_entropy(logits: Tensor, label_a: Tensor, label_b: Tensor, lam: float) -> Tensor:
    """−[λ log p_a + (1 − λ) log p_b], p = softmax(logits), averaged over the batch (Zhang et al. 2018).

    Args:
        logits: (B, C).
        label_a: int64 (B,), the class of the image itself.
        label_b: int64 (B,), the class of its partner.
        lam: share λ of the image itself, in [0, 1].

    Returns:
        scalar.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    >>> round(mixup_cross_entropy(logits, torch.tensor([0]), torch.tensor([1]), 0.7).item(), 4)
    0.7402
    """
    log_p = F.log_softmax(logits, dim=1)  # once for both labels
    return lam * F.nll_loss(log_p, label_a) + (1 - lam) * F.nll_loss(log_p, label_b)
