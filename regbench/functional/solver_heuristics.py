"""Regularizers of differential equations that are made of the solver's own estimates (Pal et al. 2021), and TayNODE's,
which they are compared with (Kelly et al. 2020).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp

from regbench.errors import UserError, unknown
from regbench.solvers.solution import Solution

Field = Callable[[Tensor, Tensor], Tensor]
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


@dataclass(frozen=True)
class SolverPenalty:
    """λ(epoch) R, `heuristic_penalty` times `decayed_weight`, with the options that every method of the paper has.

    Args:
        error, stiffness: weights of the two estimates in R; with both 0 there is no R.
        weight_start, weight_end: λ_0 and λ_1.
        aggregate: mean, sum or max over the steps.

    Raises:
        UserError: an option that can't be.
    """

    error: float
    stiffness: float
    weight_start: float
    weight_end: float
    aggregate: str

    def __post_init__(self):
        if min(self.error, self.stiffness) < 0 or min(self.weight_start, self.weight_end) <= 0:
            raise UserError(
                f"regularizer.error={self.error} and regularizer.stiffness={self.stiffness} are weights, at least 0; "
                f"regularizer.weight_start={self.weight_start} and regularizer.weight_end={self.weight_end} must be "
                "above 0."
            )
        if self.aggregate not in AGGREGATES:
            raise unknown("regularizer.aggregate", self.aggregate, AGGREGATES)

    @property
    def wanted(self) -> bool:
        """Whether there is an R."""
        return bool(self.error or self.stiffness)

    def of(self, solution: Solution, *, epoch: int, epochs: int) -> Tensor | None:
        """The penalty of a solve, a scalar; None where there is no R, or no step."""
        if not solution.errors or not self.wanted:
            return None
        value = heuristic_penalty(
            solution.errors,
            solution.stiffness,
            solution.steps,
            solution.stability,
            error_weight=self.error,
            stiffness_weight=self.stiffness,
            aggregate=self.aggregate,
        )
        return decayed_weight(self.weight_start, self.weight_end, epoch, epochs) * value


def total_derivative(f: Field, order: int) -> Field:
    """(t, z) → d^order z / dt^order along solutions of z' = f(t, z), by nested forward-mode differentiation.

    Args:
        f: maps times (N, 1) and states (N, d) to slopes (N, d).
        order: at least 1; 1 is f.

    >>> square = total_derivative(lambda t, z: z**2, 3)  # z' = z², z'' = 2 z³, z''' = 6 z⁴
    >>> square(torch.zeros(1, 1), torch.full((1, 1), 2.0))
    tensor([[96.]])
    """
    if order == 1:
        return f
    below = total_derivative(f, order - 1)

    def derivative(t: Tensor, z: Tensor) -> Tensor:
        return jvp(below, (t, z), (torch.ones_like(t), f(t, z)))[1]

    return derivative


def taylor_penalty(f: Field, times: Sequence[float], states: Sequence[Tensor], order: int) -> Tensor:
    """∫ ‖d^K z / dt^K‖² dt (Kelly et al. 2020), mean over the samples, by the trapezoidal rule over the accepted steps.

    Args:
        f: maps times (N, 1) and states (N, d) to slopes (N, d).
        times: n + 1 of them, where the steps begin and end.
        states: n + 1 of (B, d), those at the times.
        order: K.

    >>> states = [torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[2.0]])]
    >>> taylor_penalty(lambda t, z: z, [0.0, 0.5, 1.0], states, 1)  # 1/2 · (0 + 1) / 2 + 1/2 · (1 + 4) / 2
    tensor(1.5000)
    """
    along = torch.stack(list(states))
    n, batch, _ = along.shape
    t = torch.tensor(times, dtype=along.dtype, device=along.device)
    slope = total_derivative(f, order)(t.repeat_interleave(batch)[:, None], along.flatten(0, 1))
    return torch.trapezoid(slope.square().sum(1).view(n, batch).mean(1), t)
