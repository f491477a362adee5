"""Verdicts on claims: an interval that covers the claimed effect θ with at least 95 %, and what it decides.

A claim holds if all of the interval satisfies it, fails if none of it does, and is undecided otherwise. Differences are
paired by seed, and the interval of one difference is Student's. With k parts θ_i, and one-sided bounds low_i(e) and
high_i(e) of each that are wrong with probability e, here 2.5 %:

    θ = min θ_i:  low = min low_i(e),      high = min high_i(e / k)
    θ = max θ_i:  low = max low_i(e / k),  high = max high_i(e)

On the uncorrected side the bound of θ is wrong only if that of the true minimum (maximum) is: the intersection-union
test (Berger 1982, Technometrics 24). On the other side any of the k may be wrong, hence Bonferroni. So "in all places"
holds when it holds in each at its own level, and fails only by evidence that is corrected for having looked at k
places. For an interior optimum θ is the largest, over the inner places, of the smaller of the differences to the two
ends; the inner place need not be chosen beforehand, because the search for it is paid for.
"""

import math
from collections.abc import Callable, Mapping, Set
from typing import Any, Literal, NamedTuple

from regbench.tables.claims import Cell, Claim, Comparison
from regbench.tables.statistics import ROUNDING, half_width, summary

LEVEL = 0.95


class _Difference(NamedTuple):
    """A comparison, measured. `sd` is 0 for an exact mean and infinite where seeds give no bound; `why` says why."""

    mean: float
    sd: float
    seeds: int
    why: str = ""


def judge(
    claim: Claim,
    values: Mapping[Cell, Mapping[Any, float]],
    *,
    direction: Literal["max", "min"],
    unit: str,
    deterministic: Set[Cell] = frozenset(),
    labels: Mapping[str, Mapping[str, str]] | None = None,
    context: str = "",
) -> dict[str, Any]:
    """Judge a claim by what was measured.

    Args:
        claim: one of the models of `claims`.
        values: (row, column) → seed → value, in the table's unit. Cells without values are left out or empty.
        direction: which values are better.
        unit: the table's unit.
        deterministic: cells whose seeds all came out bit for bit alike; they count as one value, known exactly.
        labels: {"row": {key: label}, "column": {key: label}}; what is missing is shown by its key.
        context: scale and data, which a verdict always names.

    Returns:
        An entry of "claims" in the results format. Effects are in the table's unit (ratios in "times"), with the sign
        that the claim's class says. "parts" has an entry for each place where there are several: its interval is the
        place's own at 95 %, its verdict the one that enters the whole (corrected where the whole's is), so that the
        parts' verdicts make the whole's. "interval" is None where values are exact or the seeds give no bound.
    """
    labels = labels or {}

    def name(coordinate: str, key: str) -> str:
        return labels.get(coordinate, {}).get(key, key)

    parts = claim.parts(direction, name)
    compared = list(dict.fromkeys(
        cell for _, comparisons in parts for comparison in comparisons for pair in comparison.pairs for cell in pair
    ))  # fmt: skip
    shown = {cell: f"{name('row', cell[0])} / {name('column', cell[1])}" for cell in compared}
    entry = {
        "says": claim.says,
        "kind": claim.kind,
        "verdict": "not measured",
        "effect": None,
        "interval": None,
        "level": LEVEL,
        "unit": "times" if claim.logs else unit,
        "seeds": 0,
        "means": getattr(claim, "means", None) or "",
        "parts": [],
        "context": context,
        "note": "",
    }
    if missing := [shown[cell] for cell in compared if not values.get(cell)]:
        more = f" and {len(missing) - 2} other cells" if len(missing) > 3 else ""
        return entry | {"note": f"Nothing is measured for {', '.join(missing[: 2 if more else 3])}{more}."}
    if claim.logs and (low := [shown[cell] for cell in compared if min(values[cell].values()) <= 0]):
        return entry | {"note": f"A ratio needs positive values; not all are in {', '.join(low)}."}

    several, pick = len(parts) > 1, min if claim.extreme == "smallest" else max
    error = (1 - LEVEL) / 2
    low_error, high_error = (error, error / len(parts)) if pick is min else (error / len(parts), error)
    everything, effects, bounds, notes = [], [], [], []
    for place, comparisons in parts:
        found = [_measure(comparison, values, deterministic, claim.logs) for comparison in comparisons]
        everything += found
        notes += [f"{place}: {one.why}." if several else f"{one.why}." for one in found if one.why]
        own = _shown(
            _extreme(min, [one.mean for one in found]), _bounds(found, error, error), found, claim.logs
        )
        if claim.absolute and several:
            found = [one._replace(mean=abs(one.mean)) for one in found]
        effects.append(_extreme(min, [one.mean for one in found]))
        low, high = _bounds(found, low_error, high_error)
        bounds.append((max(low, 0.0) if claim.absolute and several else low, high))
        entry["parts"].append({"place": place, **own, "verdict": claim.verdict(*bounds[-1])})

    low, high = (pick(side) for side in zip(*bounds, strict=True))
    entry |= _shown(_extreme(pick, effects), (low, high), everything, claim.logs)
    entry["verdict"] = claim.verdict(low, high)
    if several:
        extreme = f"{claim.extreme} absolute" if claim.absolute else claim.extreme
        notes.insert(0, f"Effect and interval: the {extreme} of {len(parts)}, corrected for their number.")
    else:
        entry["parts"] = []
        if entry["means"] == "mean":
            averaged = len(parts[0][1][0].pairs)
            notes.insert(0, f"Effect and interval: the mean of {averaged}, taken within each seed.")
    if all(one.sd == 0 for one in everything):
        notes.append("Deterministic: the values themselves decide.")
    return entry | {"note": " ".join(dict.fromkeys(notes))}


def _measure(
    comparison: Comparison,
    values: Mapping[Cell, Mapping[Any, float]],
    deterministic: Set[Cell],
    logs: bool,
) -> _Difference:
    """The paired differences of a comparison, over the seeds that all its cells have."""
    cells = {cell for pair in comparison.pairs for cell in pair}
    exact = cells <= deterministic
    if exact:
        rows = [{cell: next(iter(values[cell].values())) for cell in cells}]
    else:
        seeds = set.intersection(*(set(values[cell]) for cell in cells))
        rows = [{cell: values[cell][seed] for cell in cells} for seed in seeds]
    if not all(math.isfinite(value) for row in rows for value in row.values()):
        return _Difference(math.nan, math.inf, len(rows), "A value is not finite and decides nothing")
    size = max((abs(value) for row in rows for value in row.values()), default=0.0)
    if logs:
        size, rows = 1.0, [{cell: math.log(value) for cell, value in row.items()} for row in rows]
    differences = [
        comparison.sign * math.fsum(row[left] - row[right] for left, right in comparison.pairs)
        / len(comparison.pairs) for row in rows
    ]  # fmt: skip
    mean, sd, n = summary(differences)
    if exact:
        return _Difference(mean, 0.0, 1)
    if n < 2:
        found = "1 common seed" if n else "No common seed"
        return _Difference(mean if n else math.nan, math.inf, n, f"{found}, two or more are needed")
    if max(differences) - min(differences) <= ROUNDING * size:
        return _Difference(mean, math.inf, n, "All differences are equal, more seeds are needed")
    return _Difference(mean, sd, n)


def _bounds(found: list[_Difference], low_error: float, high_error: float) -> tuple[float, float]:
    """Bounds of the smallest of the differences: uncorrected below, corrected above."""
    bounded = [one for one in found if one.sd < math.inf]
    lows = [one.mean - half_width(one.sd, one.seeds, low_error) for one in bounded]
    highs = [one.mean + half_width(one.sd, one.seeds, high_error / len(found)) for one in bounded]
    return min(lows) if len(lows) == len(found) else -math.inf, min(highs, default=math.inf)


def _extreme(pick: Callable[[list[float]], float], means: list[float]) -> float:
    """The smallest or largest; nan if any is nan, which min and max would miss."""
    return math.nan if any(math.isnan(mean) for mean in means) else pick(means)


def _shown(
    effect: float, bounds: tuple[float, float], found: list[_Difference], logs: bool
) -> dict[str, Any]:
    """Effect, interval and seeds as a report has them: ratios for logarithms, None for what is not finite."""
    numbers = [math.exp(number) if logs and number < 700 else number for number in (effect, *bounds)]
    exact = all(one.sd == 0 for one in found)
    bounded = all(math.isfinite(number) for number in bounds)
    return {
        "effect": numbers[0] if math.isfinite(effect) else None,
        "interval": numbers[1:] if bounded and not exact else None,
        "seeds": 1 if exact else min(one.seeds for one in found if one.sd),
    }
