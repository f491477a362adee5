"""Learning-rate schedules as functions of the number of optimiser steps taken.

Each is a closed form of the step, so a resumed run needs no schedule state, and lengths are given in epochs.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

from regbench.errors import UserError, unknown


def constant(step: int, *, total: int, per_epoch: float) -> float:
    """Factor 1 throughout."""
    return 1.0


def cosine(step: int, *, total: int, per_epoch: float, min_factor: float = 0.0) -> float:
    """Half a cosine from 1 at step 0 to `min_factor` at step `total` (Loshchilov and Hutter 2017, eq. 5, one cycle).

    >>> [round(cosine(s, total=4, per_epoch=1.0), 4) for s in range(5)]
    [1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def multistep(
    step: int, *, total: int, per_epoch: float, milestones: list[float], gamma: float = 0.1
) -> float:
    """`gamma` to the number of milestones (epochs) passed.

    >>> [round(multistep(s, total=6, per_epoch=2.0, milestones=[1, 2]), 3) for s in range(6)]
    [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    return gamma ** bisect_right(sorted(milestones), step / per_epoch)


def cosine_restarts(
    step: int, *, total: int, per_epoch: float, period_epochs: float = 10, min_factor: float = 0.0
) -> float:
    """`cosine` over `period_epochs`, again and again (Loshchilov and Hutter 2017, eq. 5, T_mult = 1)."""
    return cosine(step % round(period_epochs * per_epoch), total=round(period_epochs * per_epoch), per_epoch=per_epoch,
                  min_factor=min_factor)  # fmt: skip


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "multistep": multistep,
    "cosine_restarts": cosine_restarts,
}


def lr_factor(config: Mapping[str, Any], *, total: int, per_epoch: float) -> Callable[[int], float]:
    """The schedule that a config names, as step → factor on the initial learning rate.

    Args:
        config: {"name": a key of SCHEDULES, "warmup_epochs": linear warm-up from 0 (default none), and the
            schedule's own options}. After a warm-up the schedule runs over the remaining steps.
        total: optimiser steps of the whole run.
        per_epoch: optimiser steps of an epoch.

    Raises:
        UserError: an unknown schedule or option.
    """
    options = dict(config)
    name = options.pop("name")
    warmup = round(options.pop("warmup_epochs", 0) * per_epoch)
    if name not in SCHEDULES:
        raise unknown("scheduler", name, SCHEDULES)
    schedule = SCHEDULES[name]
    if name != "constant" and total <= 0:
        raise UserError(
            f"scheduler={name} needs a known number of steps; set trainer.max_epochs to a positive number."
        )
    if warmup and warmup >= total:
        raise UserError(
            f"scheduler.warmup_epochs lasts {warmup} steps, but the run has only {total}; shorten it."
        )

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return schedule(step - warmup, total=total - warmup, per_epoch=per_epoch, **options)

    try:
        factor(warmup)
    except TypeError as error:
        raise UserError(f"scheduler={name} does not take these options: {error}.") from error
    return factor
