"""Early-learning regularization (Liu et al. 2020, arXiv:2007.00151): running targets of the model's own predictions."""

import math

from torch import Tensor


def update_targets(targets: Tensor, index: Tensor, p: Tensor, beta: float) -> None:
    """t_i ← β t_i + (1 − β) p_i / Σ_c p_ic in place, for the samples of a batch (eq. 9).

    Args:
        targets: (N, C), t; no gradients.
        index: int64 (B,), rows of `targets`, each at most once.
        p: (B, C), predictions; their gradients are not followed.

    >>> import torch
    >>> t = torch.zeros(2, 3)
    >>> update_targets(t, torch.tensor([1]), torch.tensor([[0.7, 0.2, 0.1]]), 0.7)
    >>> t[1]
    tensor([0.2100, 0.0600, 0.0300])
    """
    p = p.detach()
    targets[index] = beta * targets[index] + (1 - beta) * p / p.sum(dim=1, keepdim=True)


def elr_penalty(p: Tensor, t: Tensor) -> Tensor:
    """Mean of log(1 − ⟨p, t⟩) over the batch, scalar (eq. 6): 0 at disagreement, far below it at agreement.

    Args:
        p: (B, C), predictions, kept below 1: at ⟨p, t⟩ = 1 the value is −∞.
        t: (B, C), targets without gradients.

    >>> import torch
    >>> elr_penalty(torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.6, 0.3, 0.1]]))  # log 0.51
    tensor(-0.6733)
    """
    return (1 - (p * t).sum(dim=1)).log().mean()


def kl_penalty(log_p: Tensor, t: Tensor) -> Tensor:
    """Mean of −Σ_c t_c log p_c over the batch, scalar: the alternative that the paper argues against (appendix C).

    >>> import torch
    >>> kl_penalty(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[1.0, 0.0, 0.0]]))  # log 2
    tensor(0.6931)
    """
    return -(t * log_p).sum(dim=1).mean()


def sigmoid_ramp(step: int, length: int) -> float:
    """exp(−5 (1 − step / length)²), 1 from `length` on and where `length` is 0 (Laine & Aila 2017; ELR's code).

    >>> [round(sigmoid_ramp(s, 40_000), 6) for s in (0, 10_000, 20_000, 30_000, 40_000)]
    [0.006738, 0.060055, 0.286505, 0.731616, 1.0]
    """
    return 1.0 if step >= length else math.exp(-5 * (1 - step / length) ** 2)
