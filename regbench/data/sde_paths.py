"""Paths of stochastic processes."""

import torch
from torch import Tensor

from regbench import seeding
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import fingerprint
from regbench.errors import UserError

MATRIX = ((-0.1, -2.0), (2.0, -0.1))
START = (2.0, 0.0)
STEPS = 60  # of Euler-Maruyama between two times; with 20 the means are off by 0.07


def spiral(
    paths: int, times: int, steps: int, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """du = A u³ dt + noise u dW from (2, 0) on [0, 1], by Euler-Maruyama; A = [[−0.1, −2], [2, −0.1]].

    Args:
        paths: N.
        times: T, at which the paths are kept, evenly from 0 to 1.
        steps: of the scheme between two of them.
        noise: of each coordinate, in units of the coordinate itself.

    Returns:
        Times (N, T) and paths (N, T, 2), float32.
    """
    matrix = torch.tensor(MATRIX, dtype=torch.float64)
    u = torch.tensor(START, dtype=torch.float64).repeat(paths, 1)
    h = 1 / ((times - 1) * steps)
    kept = [u]
    for _ in range(times - 1):
        for _ in range(steps):
            dW = torch.randn(u.shape, generator=generator, dtype=torch.float64) * h**0.5
            u = u + h * u**3 @ matrix.T + noise * u * dW
        kept.append(u)
    return torch.linspace(0, 1, times).repeat(paths, 1), torch.stack(kept, 1).float()


def load_spiral_sde(
    root: str | None = None,
    *,
    train: int = 2000,
    val: int = 2000,
    test: int = 2000,
    times: int = 30,
    noise: float = 0.2,
    seed: int = 0,
) -> SampleSets:
    """Paths of the spiral with noise. `root` is not used; the seed fixes the paths.

    Args:
        train, val, test: numbers of paths.
        times: at which they are known, evenly on [0, 1].
        noise: of each coordinate, in units of the coordinate itself.
    """
    if min(train, val, test, times) < 2:
        raise UserError(
            "dataset.load.train, dataset.load.val, dataset.load.test and dataset.load.times are at least 2."
        )
    splits = {}
    for name, count in (("train", train), ("val", val), ("test", test)):
        time, path = spiral(count, times, STEPS, noise, seeding.generator(seed, "spiral_sde", name))
        splits[name] = Samples({"time": time, "path": path})
    content = fingerprint("spiral_sde", f"{train} {val} {test} {times} {noise}")
    return SampleSets(**splits, shape=(2,), outputs=0, fingerprint=content)
