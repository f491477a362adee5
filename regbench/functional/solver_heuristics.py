"""Regularizers of differential equations that are made of the solver's own estimates (Pal et al. 2021)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

AGGREGATES = {"mean": torch.mean, "sum": torch.sum, "max": torch.max}


def heuristic_penalty(
    errors: Sequence[Tensor],
    stiffness: Sequence[Tensor],
    steps: Sequence[float],
    stability: float,
    *,
    error_weight: float,
    stiffness_weight: float,
    aggregate: str,
) -> Tensor:
    """R = agg_j( a E_j |h_j| + b S_j / s ) over the accepted steps j; a scalar.

    The paper's R_E = Σ_j E_j |h_j| has a = 1, b = 0 and agg = sum, its R_S = Σ_j S_j has a = 0, b = s and agg = sum.
    The released code divides S_j by s and takes means or the maximum.

    Args:
        errors: E_j, n scalars, at least one.
        stiffness: S_j, n scalars.
        steps: h_j.
        stability: s, extent of the scheme's stability interval on the negative real axis.
        error_weight, stiffness_weight: a and b.
        aggregate: mean, sum or max.

    >>> e, s = [torch.tensor(0.5), torch.tensor(1.0)], [torch.tensor(2.0), torch.tensor(4.0)]
    >>> weights = {"error_weight": 1.0, "stiffness_weight": 0.5, "aggregate": "sum"}
    >>> heuristic_penalty(e, s, [0.2, 0.8], 4.0, **weights)  # 0.5 · 0.2 + 1 · 0.8 + 0.5 · (2 + 4) / 4
    tensor(1.6500)
    """
    error = torch.stack(list(errors))
    h = torch.tensor(steps, dtype=error.dtype, device=error.device).abs()
    value = error_weight * error * h + stiffness_weight * torch.stack(list(stiffness)) / stability
    return AGGREGATES[aggregate](value)


def decayed_weight(start: float, end: float, epoch: int, epochs: int) -> float:
    """λ(e) = λ_0 exp(−e log(λ_0 / λ_1) / epochs), e counted from 0; at e = epochs it would be λ_1.

    >>> [round(decayed_weight(100, 10, epoch, 75), 2) for epoch in (0, 37, 74)]
    [100.0, 32.11, 10.31]
    """
    return start if start == end else start * math.exp(-epoch * math.log(start / end) / epochs)
