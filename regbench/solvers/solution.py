"""What the adaptive solvers share: the solution, the scaled error and the step size controller."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from regbench.errors import UserError

MAX_STEPS = 10_000  # accepted and rejected


@dataclass
class Solution:
    """The accepted steps of a solve.

    Args:
        times: n + 1 times, from the start to the end.
        states: n + 1 states (B, d), those at the times.
        errors: n scalars E_j, the scaled estimates of the local error, at most 1.
        stiffness: n scalars S_j, lower bounds on the norm of the Jacobian.
        stability: extent of the scheme's stability interval on the negative real axis.
        evaluations: of the field (of the drift, where there is a diffusion), in rejected steps too.
        rejected: steps that were tried again.
        slopes: of each step the slopes (stages, B, d) that `between` weighs; empty where states between the steps are
            interpolated linearly.
        between: maps the shares θ (m,) of a step that have passed to weights (m, stages) b_i(θ), so that the state
            there is z_n + h Σ b_i(θ) k_i.
    """

    times: list[float]
    states: list[Tensor]
    stability: float
    errors: list[Tensor] = field(default_factory=list)
    stiffness: list[Tensor] = field(default_factory=list)
    evaluations: int = 0
    rejected: int = 0
    slopes: list[Tensor] = field(default_factory=list)
    between: Callable[[Tensor], Tensor] | None = None

    @property
    def end(self) -> Tensor:
        """The last state (B, d)."""
        return self.states[-1]

    @property
    def steps(self) -> list[float]:
        """The n step sizes h_j."""
        return [after - before for before, after in pairwise(self.times)]

    def at(self, times: Tensor) -> Tensor:
        """States (len(times), B, d) at ascending times from the start to the end, between the accepted ones.

        They are the scheme's own interpolant's where the solution has the slopes, else linear. Where nothing was
        solved, all are the start.

        >>> solution = Solution([0.0, 0.5, 1.0], [torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1)], 2.0)
        >>> solution.at(torch.tensor([0.0, 0.25, 0.9])).flatten()
        tensor([0.0000, 0.5000, 0.2000])
        """
        states = torch.stack(self.states)
        if len(states) == 1:
            return states.expand(len(times), *states.shape[1:])
        known = torch.tensor(self.times, dtype=torch.float64, device=self.end.device)
        after = torch.searchsorted(known, times.double()).clamp(1, len(known) - 1)
        h = known[after] - known[after - 1]
        share = (times.double() - known[after - 1]) / h
        if self.slopes:
            weights = (h[:, None] * self.between(share)).to(states.dtype)
            slopes = torch.stack(self.slopes)[after - 1]
            return states[after - 1] + torch.einsum("ms,msbd->mbd", weights, slopes)
        share = share.to(states.dtype)[:, None, None]
        return states[after - 1] * (1 - share) + states[after] * share


def scaled_error(error: Tensor, before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """E = RMS over all entries of error / (τ + τ max(|before|, |after|)), τ the absolute and relative tolerance.

    Args:
        error, before, after: (B, d): estimate of the local error, states before and after the step.

    >>> one = torch.ones(1, 2)
    >>> scaled_error(torch.tensor([[0.3, 0.4]]), -2 * one, one, 0.1)  # (1, 4/3) over 0.3: RMS of both
    tensor(1.1785)
    """
    scale = tolerance + tolerance * torch.maximum(before.abs(), after.abs())
    return torch.linalg.vector_norm(error / scale) / math.sqrt(error.numel())


def stiffness(slope: Tensor, other_slope: Tensor, state: Tensor, other_state: Tensor) -> Tensor:
    """S = ‖slope − other_slope‖ / ‖state − other_state‖, 2-norms over the whole batch; 0 where the states are equal.

    For slopes f(state) at one time, a lower bound on the norm of f's Jacobian.
    """
    distance = torch.linalg.vector_norm(state - other_state)
    return torch.linalg.vector_norm(slope - other_slope) / distance.clamp(min=torch.finfo(state.dtype).tiny)


class Controller:
    """OrdinaryDiffEq's PI controller of the step size, with its defaults.

    q = clip(E^(7/(10 p)) / E_old^(2/(5 p)) / 0.9, 0.1, 5); after an accepted step h ← h / q, E_old ← max(E, 1e-4);
    after a rejected one h ← h / min(5, E^(7/(10 p)) / 0.9). E_old starts at 1e-4.

    Args:
        order: p; 5 for Tsit5.
    """

    def __init__(self, order: float):
        self.order = order
        self.old = 1e-4

    def accepted(self, h: float, error: float) -> float:
        """The next step's size after an accepted step of size h.

        >>> round(Controller(order=5).accepted(1.0, 1.0), 6)  # 0.9 · (1e-4)^0.08
        0.430767
        """
        q = error ** (0.7 / self.order) / self.old ** (0.4 / self.order) / 0.9
        self.old = max(error, 1e-4)
        return h / min(max(q, 0.1), 5.0)

    def rejected(self, h: float, error: float) -> float:
        """The size at which a step of size h is tried again; a fifth after an error that is no number.

        >>> Controller(order=5).rejected(1.0, math.inf)
        0.2
        """
        return h / min(5.0, error ** (0.7 / self.order) / 0.9) if math.isfinite(error) else h / 5.0


def check_progress(tried: int, h: float, t: float) -> None:
    """Raises UserError where a solve takes too many steps, or ones that no longer move the time."""
    if tried >= MAX_STEPS or not t + h > t:
        raise UserError(
            f"The differential equation can't be solved to its tolerance: after {tried} steps the time is {t:.4g} and "
            f"the step size {h:.1e}. Lower optimizer.lr, or raise backbone.tolerance (in float32 to 1e-5 or more)."
        )
