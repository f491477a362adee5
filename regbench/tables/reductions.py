"""From runs to a cell's number: a metric, a point of a curve, the best epoch by validation, a fit, or a named function."""

import csv
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from regbench.composing import flat
from regbench.errors import UserError
from regbench.tables.spec import Value


@dataclass(frozen=True)
class RunData:
    """A finished run: its result.json as a mapping, and its folder."""

    result: dict[str, Any]
    folder: Path

    def metric(self, name: str) -> float:
        """A test metric; NaN where the run measured it as no number. Raises UserError for one that it did not measure."""
        metrics = self.result["metrics"]
        if name not in metrics:
            raise UserError(f"the run has no metric {name}; it has {', '.join(sorted(metrics))}")
        return math.nan if metrics[name] is None else float(metrics[name])

    @cached_property
    def _rows(self) -> list[dict[str, str]]:
        with (self.folder / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

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
    """The first run's metric minus the second's. A function for `value: {function: …}`: it gets the runs and the metric."""
    first, second = runs
    return first.metric(metric) - second.metric(metric)


def _at(curve: dict[int, float], epoch: int, name: str) -> float:
    if epoch not in curve:
        raise UserError(
            f"{name} was not measured at epoch {epoch}, only at {', '.join(map(str, curve)) or 'none'}"
        )
    return curve[epoch]


def _at_best(run: RunData, value: Value) -> float:
    """The first of the epochs with the best value counts."""
    by = run.curve(value.best_by)
    if not by:
        raise UserError(f"{value.best_by} was not measured")
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
    return {"slope": line.slope, "exponent": line.slope, "intercept": line.intercept}.get(
        value.give, math.exp(line.intercept)
    )
