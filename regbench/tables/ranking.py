"""Which method is best on validation, and which help over a baseline: paired differences, corrected for their number.

A method is measured with one setting or several; the one with the best mean validation value stands for it. The p-value
of a paired difference of two methods is Student's, times the number of pairs of settings that it was chosen from
(Bonferroni: the search is paid for). Over the methods these are corrected as Holm (1979, Scandinavian Journal of
Statistics 6) does: with m of them, the i-th smallest is compared with 0.05 / (m - i + 1), until one is above. So the
probability that any method without an effect is said to help or to hurt is at most 5 %, whatever the others do.

The interval of a difference is Student's at the level of its own comparison (from the first one above on, at that
one's level). It leaves out 0 exactly where Holm decides. Each interval covers with at least 95 % by itself; it is the
decisions, and not all intervals at once, that are protected jointly.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from regbench.errors import UserError
from regbench.tables.reductions import RunData
from regbench.tables.spec import Table
from regbench.tables.statistics import ROUNDING, half_width, summary

ERROR = 0.05  # probability of any wrong decision


class _Difference(NamedTuple):
    """Of two methods over the seeds; `p` is already multiplied by `pairs`. sd is infinite where seeds give no bound."""

    mean: float
    sd: float
    pairs: int
    p: float


def validation(runs: Sequence[RunData], metric: str) -> float:
    """A run's validation metric for the weights that were tested; for a table's `value: {function: …}`.

    With checkpoint.select=best_val it is that of the epoch with the best checkpoint.monitor, with `last` the last one
    measured, with median_last_10 the median of the last ten.
    """
    from regbench.callbacks import LAST_EPOCHS  # here, because it loads Lightning

    [run] = runs
    chosen = run.result["config"]["checkpoint"]
    curve = run.curve(metric)
    if not curve:
        raise UserError(f"{metric} was not measured")
    if chosen["select"] == "best_val":
        sign = 1.0 if chosen["mode"] == "max" else -1.0
        by = run.curve(chosen["monitor"])
        values = [curve[max(by, key=lambda epoch: sign * by[epoch])]]  # the first epoch wins ties
    else:
        values = list(curve.values())[-(1 if chosen["select"] == "last" else LAST_EPOCHS) :]
    return float(f"{statistics.median(values):.7g}")  # metrics.csv holds float32: the rest is rounding


def holm(p: Mapping[Hashable, float], error: float = ERROR) -> dict[Hashable, tuple[float, float]]:
    """Holm's step-down correction: for each p-value the corrected one, and the bound that it was compared with.

    From the first that is above its bound on, the others keep that one's bound.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})["a"]
    (0.03, 0.016666666666666666)
    """
    corrected, bound, stopped, found = 0.0, error, False, {}
    for i, key in enumerate(sorted(p, key=p.get)):
        left = len(p) - i
        bound = bound if stopped else error / left
        stopped = stopped or p[key] > bound
        corrected = max(corrected, min(1.0, left * p[key]))
        found[key] = (corrected, bound)
    return found


def rank(
    values: Mapping[str, Mapping[str, Mapping[int, float]]], baseline: str, direction: Literal["max", "min"]
) -> dict[str, Any]:
    """Orders methods by their mean validation value and compares each with the baseline.

    Args:
        values: method → setting → seed → validation value; a setting that was not measured has none.
        baseline: one of the methods.
        direction: which values are better.

    Returns:
        "seeds": those that all measured settings have; only they count, so that all differences are paired.
        "methods": the best first, each with method, setting (the chosen one), budget (its number of settings), mean,
        sd, difference (to the baseline, in the values' unit), interval, level, p (corrected) and verdict: helps,
        hurts, undecided, baseline or not measured.
        "level_with_best": the methods whose difference to the first is not decided, all pairs being corrected for.
        "equal": the methods whose differences to the baseline are all alike, from which nothing can be decided.
    """
    sign = 1.0 if direction == "max" else -1.0
    measured = [set(found) for settings in values.values() for found in settings.values() if found]
    seeds = sorted(set.intersection(*measured)) if measured else []
    chosen: dict[str, str] = {}
    for method, settings in values.items():
        means = {
            name: summary([found[seed] for seed in seeds]).mean for name, found in settings.items() if found
        }
        if seeds and means:
            chosen[method] = max(means, key=lambda name: sign * means[name])
    own = {method: [values[method][name][seed] for seed in seeds] for method, name in chosen.items()}
    order = sorted(own, key=lambda method: -sign * summary(own[method]).mean)

    def difference(method: str, other: str) -> _Difference:
        size = max(map(abs, (*own[method], *own[other])))
        differences = [a - b for a, b in zip(own[method], own[other], strict=True)]
        mean, sd, n = summary(differences)
        pairs = len(values[method]) * len(values[other])
        if sd is None or max(differences) - min(differences) <= ROUNDING * size:
            return _Difference(mean, math.inf, pairs, 1.0)
        from scipy.special import stdtr

        return _Difference(
            mean, sd, pairs, min(1.0, pairs * 2 * float(stdtr(n - 1, -abs(mean) * math.sqrt(n) / sd)))
        )

    against = {m: difference(m, baseline) for m in order if m != baseline and baseline in own}
    corrected = holm({method: found.p for method, found in against.items()})
    pairs = {frozenset((a, b)): difference(a, b).p for i, a in enumerate(order) for b in order[i + 1 :]}
    apart = {pair for pair, (p, _) in holm(pairs).items() if p <= ERROR}

    def line(method: str) -> dict[str, Any]:
        numbers = summary(own.get(method, []))
        about = {
            "method": method,
            "setting": chosen.get(method),
            "budget": len(values[method]),
            "mean": numbers.mean,
            "sd": numbers.sd,
            "difference": None,
            "interval": None,
            "level": None,
            "p": None,
            "verdict": "baseline" if method == baseline else "not measured",
        }
        if method not in against:
            return about
        found, (p, bound) = against[method], corrected[method]
        about |= {"difference": found.mean, "verdict": "undecided"}
        if found.sd < math.inf:
            half = half_width(found.sd, len(seeds), bound / found.pairs / 2)
            interval = [found.mean - half, found.mean + half]
            about |= {"interval": interval, "level": round(1 - bound / found.pairs, 4), "p": p}
        if p <= ERROR:
            about["verdict"] = "helps" if sign * found.mean > 0 else "hurts"
        return about

    return {
        "seeds": seeds,
        "methods": [line(method) for method in (*order, *(m for m in values if m not in own))],
        "level_with_best": [m for m in order[1:] if frozenset((order[0], m)) not in apart],
        "equal": [m for m, found in against.items() if len(seeds) > 1 and found.sd == math.inf],
    }


def add_ranking(results: dict[str, Any], table: Table, finished: Mapping[str, RunData]) -> None:
    """Adds "ranking" to results: `rank` of the table's rows, with test value and cost of the chosen settings.

    The test values of the other settings' runs are taken out: nobody should choose by them.

    Args:
        results: of `regbench.tables.measure`; its cells hold the validation values.
        table: with a `ranking`.
        finished: run's hash → the run.
    """
    asked = table.ranking
    test_metric = f"test/{table.metric.removeprefix('val/')}"
    of_row = {cell["row"]: cell for cell in results["cells"]}
    values = {
        method: {row: {int(seed): v for seed, v in of_row[row]["values"].items()} for row in rows}
        for method, rows in asked.methods.items()
    }
    found = rank(values, asked.baseline, table.direction)
    percent = 100.0 if table.unit == "percent" else 1.0
    for line in found["methods"]:
        test, cost = summary([]), []
        if line["setting"] is not None:
            runs = [finished[of_row[line["setting"]]["runs"][str(seed)][0]] for seed in found["seeds"]]
            test = summary([float(f"{percent * run.metric(test_metric):.10g}") for run in runs])
            timed = [run.result for run in runs if run.result.get("steps")]
            cost = [1000 * result["fit_s"] / result["steps"] for result in timed]
        line |= {
            "label": line["method"] if line["setting"] is None else table.rows[line["setting"]],
            "test": {"mean": test.mean, "sd": test.sd},
            "step_ms": float(f"{statistics.median(cost):.3g}") if cost else None,
        }
    chosen = {line["setting"] for line in found["methods"]}
    tested = {key for row in chosen - {None} for keys in of_row[row]["runs"].values() for key in keys}
    for key, run in results["runs"].items():
        if key not in tested:
            run["metrics"] = {name: v for name, v in run["metrics"].items() if not name.startswith("test/")}
    results["command"] = asked.command
    results["ranking"] = {
        "metric": table.metric,
        "test_metric": test_metric,
        "unit": table.unit,
        "baseline": asked.baseline,
        **found,
        "notes": _notes(table, found, values),
    }


def _notes(
    table: Table, found: Mapping[str, Any], values: Mapping[str, Mapping[str, Mapping[int, float]]]
) -> list[str]:
    """What a reader of the ranking has to know."""
    lines, seeds = found["methods"], found["seeds"]
    notes = []
    if not seeds:
        return ["Nothing is ranked: no seed is finished in every setting that was measured."]
    best = table.rows[lines[0]["setting"]]
    level = [table.rows[line["setting"]] for line in lines if line["method"] in found["level_with_best"]]
    if level:
        notes.append(f"Best on validation: {best}. These seeds don't tell it apart from {', '.join(level)}.")
    else:
        notes.append(f"Best on validation: {best}, told apart from every other method.")
    if len(seeds) == 1:
        notes.append("One seed ranks the methods and decides nothing: give seeds=3 or more.")
    if found["equal"]:
        equal = ", ".join(found["equal"])
        notes.append(
            f"All differences to the baseline are equal for {equal}: more seeds, or more validation images."
        )
    asked = {seed for settings in values.values() for of_seed in settings.values() for seed in of_seed}
    if left_out := sorted(asked - set(seeds)):
        notes.append(
            f"Left out are seeds that not every measured setting has: {', '.join(map(str, left_out))}."
        )
    budgets = {line["method"]: line["budget"] for line in lines}
    if len(set(budgets.values())) > 1:
        said = ", ".join(f"{method} {budget}" for method, budget in budgets.items())
        notes.append(
            f"Unequal tuning budgets (settings tried: {said}): more settings are an advantage on validation. The "
            "intervals and verdicts are corrected for it, the order of the means is not."
        )
    return notes
