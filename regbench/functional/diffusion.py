"""The noise schedule of diffusion models in discrete time, and the steps that samplers share.

x_t = sqrt(ab_t) x_0 + sqrt(1 − ab_t) eps, eps ~ N(0, I), where ab_t is the product of 1 − beta_i over i = 0 … t. Images
x_0 have pixels in [−1, 1]. Of a time before the first, ab is 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from regbench.errors import UserError, unknown

# How the weight of RED-diff's regularizer grows with r = sqrt(1 − ab) / sqrt(ab), 1 over the signal-to-noise ratio.
WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda r: r,
    "sqrt": math.sqrt,
    "square": lambda r: r**2,
    "log": math.log1p,
    "trunc_linear": lambda r: min(r, 1.0),
    "const": lambda r: 1.0,
    "power2over3": lambda r: r ** (2 / 3),
}


def alpha_bars(times: int, first: float, last: float) -> list[float]:
    """ab_t for t = 0 … times − 1, beta rising in a line from `first` to `last`.

    >>> [round(ab, 3) for ab in alpha_bars(3, 0.1, 0.3)]  # .9, .9 · .8, .9 · .8 · .7
    [0.9, 0.72, 0.504]
    """
    betas = torch.linspace(first, last, times, dtype=torch.float64)
    return (1 - betas).cumprod(0).tolist()


def time_grid(steps: int, times: int) -> list[int]:
    """The times that a sampler visits, rising: 0, times // steps, 2 (times // steps) …, below `times`.

    >>> time_grid(4, 1000)
    [0, 250, 500, 750]
    """
    if not 1 <= steps <= times:
        raise UserError(f"regularizer.steps={steps}: from 1 to the {times} times of the diffusion.")
    return list(range(0, times, times // steps))


def noised(x: Tensor, noise: Tensor, ab: Tensor | float) -> Tensor:
    """x_t = sqrt(ab) x_0 + sqrt(1 − ab) eps; ab a number, or a tensor that broadcasts.

    >>> noised(torch.tensor([1.0]), torch.tensor([2.0]), 0.36)  # .6 · 1 + .8 · 2
    tensor([2.2000])
    """
    ab = torch.as_tensor(ab, dtype=x.dtype, device=x.device)
    return ab.sqrt() * x + (1 - ab).sqrt() * noise


def denoised(xt: Tensor, noise: Tensor, ab: float) -> Tensor:
    """x_0 = (x_t − sqrt(1 − ab) eps) / sqrt(ab), the inverse of `noised`."""
    return (xt - math.sqrt(1 - ab) * noise) / math.sqrt(ab)


def inverse_snr(ab: float) -> float:
    """sqrt(1 − ab) / sqrt(ab), the noise's share against the signal's.

    >>> round(inverse_snr(0.36), 4)
    1.3333
    """
    return math.sqrt(1 - ab) / math.sqrt(ab)


def prior_weight(kind: str, ab: float) -> float:
    """f(1 / SNR_t) of RED-diff's regularizer.

    >>> [round(prior_weight(kind, 0.36), 4) for kind in ("linear", "square", "trunc_linear", "const")]
    [1.3333, 1.7778, 1.0, 1.0]
    """
    if kind not in WEIGHTS:
        raise unknown("regularizer.weight", kind, WEIGHTS)
    return WEIGHTS[kind](inverse_snr(ab))


def ddim_shares(ab: float, ab_next: float, eta: float) -> tuple[float, float]:
    """(c1, c2) of a DDIM step from a time with ab to an earlier one with ab_next:
    x ← sqrt(ab_next) x_0 + c1 z + c2 eps, with z fresh noise.

        c1 = eta sqrt( (1 − ab / ab_next) (1 − ab_next) / (1 − ab) ),  c2 = sqrt(1 − ab_next − c1²)

    eta 0 draws nothing; eta 1 is DDPM's step.

    >>> ddim_shares(0.5, 1.0, 1.0)  # the last step ends without noise
    (0.0, 0.0)
    >>> [round(c, 4) for c in ddim_shares(0.5, 0.8, 1.0)]  # c1² = .375 · .2 / .5 = .15, c2² = .2 − .15
    [0.3873, 0.2236]
    """
    fresh = eta * math.sqrt((1 - ab / ab_next) * (1 - ab_next) / (1 - ab))
    return fresh, math.sqrt(max(1 - ab_next - fresh**2, 0.0))
