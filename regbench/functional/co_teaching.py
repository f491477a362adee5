"""Co-teaching (Han et al. 2018, arXiv:1804.06872): each of two networks learns what has a small loss in the other."""

import torch.nn.functional as F
from torch import Tensor


def forget_rate(epoch: int, rate: float, ramp_epochs: int, exponent: float = 1.0) -> float:
    """R(epoch), the share of a batch that is left out: from 0 to rate^c over the first `ramp_epochs` epochs, linearly.

    Both released codes take that many points from 0 to the end value, so the last of these epochs has it already.

    Args:
        epoch: counted from 0.
        rate: end value, in [0, 1).
        ramp_epochs: 0 or 1: the end value from the start.
        exponent: c of the released code of Han et al.

    >>> [round(forget_rate(e, 0.2, 5), 3) for e in range(6)]
    [0.0, 0.05, 0.1, 0.15, 0.2, 0.2]
    """
    end = rate**exponent
    return end if ramp_epochs < 2 else end * min(epoch / (ramp_epochs - 1), 1.0)


def small_loss(losses: Tensor, forget: float) -> Tensor:
    """Positions of the (1 − R) n smallest of n losses, rounded down, at least one; smallest first.

    >>> import torch
    >>> small_loss(torch.tensor([0.1, 2.0, 0.3, 0.05, 1.0]), 0.4).tolist()
    [3, 0, 2]
    """
    keep = int((1 - forget) * len(losses) + 1e-9)  # (1 − 0.9) · 10 is a little less than 1 in floating point
    return losses.detach().argsort()[: max(keep, 1)]


def exchanged_loss(first: Tensor, second: Tensor, label: Tensor, forget: float) -> Tensor:
    """Sum of both networks' mean cross entropies, each on the samples that have a small one in the other; a scalar.

    Args:
        first, second: logits (B, C) of both networks for the same samples.
        label: (B,).
        forget: R.
    """
    one, two = (F.cross_entropy(logits, label, reduction="none") for logits in (first, second))
    return one[small_loss(two, forget)].mean() + two[small_loss(one, forget)].mean()
