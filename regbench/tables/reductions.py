"""From runs to a cell's number: a metric, a point of a curve, the best epoch by validation, a fit, a function."""

import csv
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from regbench.composing import flat
from regbench.errors import UserError
from regbench.tables.spec import Value


@dataclass(frozen=True)
class RunData:
    """A finished run: its result.json as a mapping, and its folder."""

    result: dict[str, Any]
    folder: Path

    def metric(self, name: str) -> float:
        """A test metric; NaN where it came out as no number. Raises UserError for one that was not measured."""
        metrics = self.result["metrics"]
        if name not in metrics:
            raise UserError(f"the run has no metric {name}; it has {', '.join(sorted(metrics))}")
        value = metrics[name]
        if value is None:
            return math.nan
        # Metrics are computed in float32: 0.7126 comes as 0.7125999927520752, and differences would differ by rounding.
        single = np.float32(value)
        return float(str(single)) if float(single) == value else float(value)

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        try:
            with (self.folder / "metrics.csv").open(newline="") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:  # a cell that needs none is not lost by it
            return []

    def curve(self, name: str) -> dict[int, float]:
        """epoch (from 0) → value, for the epochs in which it was measured; the last value of each."""
        return {
            int(float(row["epoch"])): float(row[name]) for row in self._rows if row.get(name) and row["epoch"]
        }

    def number(self, name: str) -> float:
        """A test metric ("test/…"), or a number of the configuration ("dataset.train_size")."""
        if "/" in name:
            return self.metric(name)
        value = flat(self.result["config"]).get(name)
        if not isinstance(value, int | float):
            raise UserError(f"the configuration's {name} is {value}, no number")
        return float(value)


def reduction(value: Value | None, metric: str) -> tuple[str, Callable[[Sequence[RunData]], float]]:
    """How a cell's number is made of its runs of one seed: in words, and as a function.

    Args:
        value: the cell's `value`; None is the test metric of the table.
        metric: the table's.
    """
    value = value or Value(metric=metric)
    if value.metric is not None:
        return value.metric, lambda runs: runs[0].metric(value.metric)
    if value.curve is not None and value.epoch is not None:
        return f"{value.curve} at epoch {value.epoch}", lambda runs: _at(
            runs[0].curve(value.curve), value.epoch, value.curve
        )
    if value.curve is not None:
        words = f"{value.curve} at the epoch with the best {value.best_by}"
        return words, lambda runs: _at_best(runs[0], value)
    if value.fit is not None:
        return f"{value.give} of a {value.fit} fit of {value.y} over {value.x}", lambda runs: _fit(
            runs, value
        )
    module, _, name = value.function.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"The function {value.function} of a cell's value can't be imported: {error}."
        ) from error
    return f"{name} of {metric}", lambda runs: function(runs, metric)


def difference(runs: Sequence[RunData], metric: str) -> float:
    """The first run's metric minus the second's; for `value: {function: …}`, which gets runs and metric."""
    first, second = (run.metric(metric) for run in runs)
    if first == second or not math.isfinite(first - second):
        return first - second
    # To the fifth digit of the larger one: what lies far below is float32's rounding, and would look like a spread.
    return round(first - second, 5 - math.ceil(math.log10(max(abs(first), abs(second)))))


def _at(curve: dict[int, float], epoch: int, name: str) -> float:
    if epoch not in curve:
        raise UserError(
            f"{name} was not measured at epoch {epoch}, only at {', '.join(map(str, curve)) or 'none'}"
        )
    return curve[epoch]


def _at_best(run: RunData, value: Value) -> float:
    """The first of the epochs with the best value counts."""
    by = {epoch: found for epoch, found in run.curve(value.best_by).items() if not math.isnan(found)}
    if not by:
        raise UserError(f"{value.best_by} was not measured, or never came out as a number")
    best = (max if value.mode == "max" else min)(by.values())
    epoch = next(epoch for epoch, found in by.items() if found == best)
    return _at(run.curve(value.curve), epoch, value.curve)


def _fit(runs: Sequence[RunData], value: Value) -> float:
    """Least squares of y = intercept + slope · x, or of y = factor · x^exponent in logarithms."""
    from scipy.stats import linregress

    x, y = [run.number(value.x) for run in runs], [run.number(value.y) for run in runs]
    if len(set(x)) < 2:
        raise UserError(f"a fit over {value.x} needs runs with two values of it or more; it is {x[0]} in all")
    if value.fit == "power":
        if min(x) <= 0 or min(y) <= 0:
            raise UserError(f"a power law needs positive {value.x} and {value.y}")
        x, y = [math.log(v) for v in x], [math.log(v) for v in y]
    line = linregress(x, y)
    if value.give == "factor":
        return math.exp(line.intercept)
    return float(line.intercept if value.give == "intercept" else line.slope)
