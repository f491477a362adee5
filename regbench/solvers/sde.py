"""An adaptive Euler-Maruyama scheme for Itô equations du = f dt + g dW with diagonal noise (Lamba 2003), in torch."""

import math
from collections.abc import Callable

from torch import Tensor

from regbench.extras import need
from regbench.solvers.solution import Controller, Solution, check_progress, scaled_error, stiffness

Field = Callable[[float, Tensor], Tensor]
Path = Callable[[float, float], Tensor]

STABILITY = 2.0  # extent of Euler's stability interval on the negative real axis
DELTA = 1 / 6  # share of the drift's error in the estimate


def brownian(z: Tensor, end: float, seed: int) -> Path:
    """(t, t') → the increments (B, d) of Brownian motion like z over it, all of one path on [0, end].

    A step that is tried again is shorter, and its increment is of the same path: torchsde's BrownianInterval.
    """
    need("torchsde", "sde", "Neural SDEs need torchsde")
    import torchsde

    interval = torchsde.BrownianInterval(
        t0=0.0, t1=end, size=tuple(z.shape), dtype=z.dtype, device=z.device, entropy=seed
    )
    return lambda start, stop: interval(start, stop)


def error_estimate(
    drift: Tensor, next_drift: Tensor, noise: Tensor, next_noise: Tensor, dW: Tensor, h: float
) -> Tensor:
    """δ E_d + E_n, (B, d): E_d = h (f(K) − f(u)) / 2, E_n = (g(K + L √h) − L) / √h · dW² / 2.

    K = u + h f(u), L = g(u).

    Args:
        drift, next_drift: f(u), f(K).
        noise, next_noise: L, g(K + L √h).
        dW: the step's increments.

    >>> import torch
    >>> one = torch.ones(1, 1)
    >>> error_estimate(one, 4 * one, one, 2 * one, one, 0.25)  # 1/6 · 0.25 · 3 / 2 + 1 / 0.5 · 1 / 2
    tensor([[1.0625]])
    """
    of_drift = h * (next_drift - drift) / 2
    of_noise = (next_noise - noise) / math.sqrt(h) * dW**2 / 2
    return DELTA * of_drift + of_noise


def solve(
    f: Field,
    g: Field,
    z: Tensor,
    t: float,
    end: float,
    *,
    path: Path,
    tolerance: float,
    h: float | None = None,
) -> Solution:
    """Solves du = f(t, u) dt + g(t, u) dW from t to end by u + h f(u) + g(u) dW. Accepted are steps with E <= 1.

    S of a step is ‖f(K) − f(u)‖ / ‖K − u‖ with K = u + h f(u). The drift is evaluated twice a step, once in one that is
    tried again; the diffusion likewise.

    Args:
        f, g: drift and diffusion, each maps a time and states (B, d) to (B, d).
        z: (B, d), the states at t.
        path: increments of Brownian motion, see `brownian`.
        tolerance: absolute and relative.
        h: size of the first step; None: a twentieth of the interval.

    Raises:
        UserError: the steps became too many or too small.
    """
    solution = Solution([t], [z], STABILITY)
    if end == t:
        return solution
    h = (end - t) / 20 if h is None else h
    controller = Controller(order=1)  # the estimate is of the order h
    drift, noise = f(t, z), g(t, z)
    solution.evaluations = 1
    while t < end:
        check_progress(len(solution.errors) + solution.rejected, h, t)
        last = t + h * (1 + 1e-10) >= end
        h = end - t if last else h
        after = end if last else t + h
        dW = path(t, after)
        moved = z + h * drift
        state = moved + noise * dW
        next_drift = f(after, moved)
        next_noise = g(after, moved + noise * math.sqrt(h))
        solution.evaluations += 1
        error = scaled_error(error_estimate(drift, next_drift, noise, next_noise, dW, h), z, state, tolerance)
        value = float(error.detach())
        if not value <= 1:
            solution.rejected += 1
            h = controller.rejected(h, value)
            continue
        solution.times.append(after)
        solution.states.append(state)
        solution.errors.append(error)
        solution.stiffness.append(stiffness(next_drift, drift, moved, z))
        t, z = after, state
        h = controller.accepted(h, value)
        if t < end:
            drift, noise = f(t, z), g(t, z)
            solution.evaluations += 1
    return solution
