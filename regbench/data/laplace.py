"""Numbers of the Laplace distribution."""

import torch

from regbench import seeding
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import fingerprint
from regbench.errors import UserError


def load_laplace(
    root: str | None = None, *, train: int, val: int, test: int, scale: float, seed: int = 0
) -> SampleSets:
    """Draws x with density exp(−|x| / scale) / (2 scale), field `image`, float32 (N, 1). `root` is not used.

    Args:
        train, val, test: how many.
    """
    if min(train, val, test) < 1 or scale <= 0:
        raise UserError(
            f"dataset.train={train}, dataset.val={val} and dataset.test={test} must be at least 1, "
            f"and dataset.scale={scale} be positive."
        )
    splits = {}
    for name, count in (("train", train), ("val", val), ("test", test)):
        centred = (
            torch.rand(count, 1, generator=seeding.generator(seed, "laplace", name), dtype=torch.float64)
            - 0.5
        )
        x = -scale * centred.sign() * torch.log1p(-2 * centred.abs().clamp(max=0.5 - 1e-12))
        splits[name] = Samples({"image": x.float()})
    return SampleSets(
        **splits, shape=(1,), outputs=0, fingerprint=fingerprint("laplace", f"{train} {val} {test} {scale}")
    )
