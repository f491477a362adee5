"""Tsit5, the explicit Runge-Kutta pair of order 5(4) of Tsitouras (2011), adaptive, in torch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from regbench.solvers.solution import Controller, Solution, check_progress, scaled_error, stiffness

Field = Callable[[float, Tensor], Tensor]

STABILITY = (
    3.5068  # extent of the stability interval on the negative real axis; OrdinaryDiffEq's alg_stability_size
)
NODES = (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0)
STAGES = (
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
)
ERROR = (
    -0.00178001105222577714,
    -0.0008164344596567469,
    0.007880878010261995,
    -0.1447110071732629,
    0.5823571654525552,
    -0.45808210592918697,
    0.015151515151515152,
)
# Coefficients of θ, θ², θ³ and θ⁴ in the weights b_i(θ) of the interpolant of order 4; the factored polynomials of
# Tsitouras's paper, multiplied out.
INTERPOLANT = (
    (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
    (0.0, 0.1317, -0.2234, 0.1017),
    (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
    (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
    (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
    (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
    (0.0, 1.5, -4.0, 2.5),
)


class Step(NamedTuple):
    """One step of the pair; all (B, d).

    Attributes:
        state: z_{n+1} = g_7, of order 5.
        slope: k_7 = f(t + h, z_{n+1}), the next step's first.
        error: estimate of the local error, h Σ b̃_i k_i.
        state_6: g_6, at the same time as g_7.
        slopes: k_1 to k_7.
    """

    state: Tensor
    slope: Tensor
    error: Tensor
    state_6: Tensor
    slopes: list[Tensor]

    @property
    def stiffness(self) -> Tensor:
        """S = ‖k_7 − k_6‖ / ‖g_7 − g_6‖."""
        return stiffness(self.slope, self.slopes[5], self.state, self.state_6)


def between(share: Tensor) -> Tensor:
    """Shares θ (m,) of a step → weights (m, 7) b_i(θ): the state after θ h is z_n + h Σ b_i(θ) k_i, to order 4.

    >>> between(torch.tensor([0.5]))[0, 6]  # 1.5 / 4 − 4 / 8 + 2.5 / 16
    tensor(0.0312)
    """
    powers = torch.stack([share, share**2, share**3, share**4], 1)
    return powers @ torch.tensor(INTERPOLANT, dtype=share.dtype, device=share.device).T


def _move(state: Tensor, weights: tuple[float, ...], slopes: list[Tensor], h: float) -> Tensor:
    """state + h Σ weights_i slopes_i."""
    for weight, slope in zip(weights, slopes, strict=True):
        state = torch.add(state, slope, alpha=h * weight)
    return state


def step(f: Field, t: float, z: Tensor, slope: Tensor, h: float) -> Step:
    """One step of size h from z (B, d) at time t; six evaluations of f, as `slope` = f(t, z) is given.

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> done = step(lambda t, z: -z, 0.0, one, -one, 0.5)  # z' = −z
    >>> round(done.state.item(), 10), round(done.stiffness.item(), 10)
    (0.606532795, 1.0)
    """
    slopes = [slope]
    states = []
    for node, weights in zip(NODES[1:], STAGES, strict=True):
        states.append(_move(z, weights, slopes, h))
        slopes.append(f(t + node * h, states[-1]))
    error = _move(h * ERROR[0] * slopes[0], ERROR[1:], slopes[1:], h)
    return Step(states[-1], slopes[-1], error, states[-2], slopes)


@torch.no_grad()
def first_step(f: Field, t: float, z: Tensor, slope: Tensor, length: float, tolerance: float) -> float:
    """A first step's size by the rule of Hairer, Nørsett and Wanner (Solving ODEs I, II.4), order 5; one evaluation.

    Norms are those of `scaled_error`.

    Args:
        slope: f(t, z).
        length: of the whole interval; no step is longer.
    """
    size = float(scaled_error(z, z, z, tolerance))
    speed = float(scaled_error(slope, z, z, tolerance))
    h = min(1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed, length)
    change = f(t + h, z + h * slope) - slope
    bend = float(scaled_error(change, z, z, tolerance)) / h
    largest = max(speed, bend)
    other = max(1e-6, h * 1e-3) if largest <= 1e-15 else (0.01 / largest) ** (1 / 5)
    return min(100 * h, other, length)


def solve(
    f: Field,
    z: Tensor,
    t: float,
    end: float,
    *,
    tolerance: float,
    h: float | None = None,
    dense: bool = False,
) -> Solution:
    """Solves z' = f(t, z) from t to end. Accepted are steps with E <= 1.

    Gradients flow through the accepted steps, their errors and stiffness. The sizes of the steps are constants.

    Args:
        f: maps a time and states (B, d) to their slopes (B, d). All B share the steps.
        z: (B, d), the states at t.
        end: at least t; where it is t, the solution is z.
        tolerance: absolute and relative.
        h: size of the first step; None: `first_step`.
        dense: keep each step's slopes, seven states' memory, for `Solution.at` between the steps.

    Raises:
        UserError: the steps became too many or too small.
    """
    solution = Solution([t], [z], STABILITY, between=between if dense else None)
    if end == t:
        return solution
    slope = f(t, z)
    solution.evaluations = 1
    if h is None:
        h = first_step(f, t, z, slope, end - t, tolerance)
        solution.evaluations += 1
    controller = Controller(order=5)
    while t < end:
        check_progress(len(solution.errors) + solution.rejected, h, t)
        last = t + h * (1 + 1e-10) >= end
        h = end - t if last else h
        tried = step(f, t, z, slope, h)
        error = scaled_error(tried.error, z, tried.state, tolerance)
        solution.evaluations += 6
        value = float(error.detach())
        if not value <= 1:
            solution.rejected += 1
            h = controller.rejected(h, value)
            continue
        t, z, slope = (end if last else t + h), tried.state, tried.slope
        solution.times.append(t)
        solution.states.append(z)
        solution.errors.append(error)
        solution.stiffness.append(tried.stiffness)
        if dense:
            solution.slopes.append(torch.stack(tried.slopes))
        h = controller.accepted(h, value)
    return solution
