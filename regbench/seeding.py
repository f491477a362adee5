"""Every random number comes from a stream that the seed fixes: (seed, stream name, position) names a generator.

Nothing random is carried across an epoch boundary: each epoch starts its streams anew from (seed, stream, epoch,
rank). So a run that was stopped and resumed at an epoch boundary goes on bit for bit, with no generator state in
the checkpoint.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `streams` and `derive` serve where torch is not loaded
    import torch

STREAMS = ("data", "noise", "init", "order", "evaluation")


def derive(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts and on nothing else (SHA-256, so the same on every machine).

    >>> derive(0, "order", 3) == derive(0, "order", 3), derive(0, "order", 3) == derive(0, "order", 4)
    (True, False)
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` that starts at `derive(*parts)`."""
    import torch

    return torch.Generator(device).manual_seed(derive(*parts))


def seed_globals(*parts: int | str) -> None:
    """Seeds the global generators of Python, NumPy and torch (all devices) from `parts`."""
    import numpy as np
    import torch

    value = derive(*parts)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def streams(seed: int, pinned: dict[str, int | None] | None = None) -> dict[str, int]:
    """The seed of each stream: the run's `seed`, or the value the stream is pinned to (`seeds.noise=123`)."""
    pinned = pinned or {}
    return {name: seed if pinned.get(name) is None else int(pinned[name]) for name in STREAMS}
