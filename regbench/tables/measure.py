"""From a plan and the folder of runs to the results: the one mapping that reports, W&B and docs/results are made of."""

import datetime
import math
from collections.abc import Container, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regbench import registry
from regbench.errors import UserError
from regbench.identity import code_fingerprint
from regbench.runs import DONE, FAILED, LEFT, RUNNING, RunFolder
from regbench.tables.plan import NOT_ASKED_FOR, NOT_AT_THIS_SCALE, Plan, PlannedCell, PlannedRun
from regbench.tables.ranking import add_ranking
from regbench.tables.reductions import RunData, reduction
from regbench.tables.statistics import summary
from regbench.tables.verdicts import judge

FORMAT = 1
PARTIAL, BLOCKED = "partial", "blocked"
CURVE = "val/accuracy"  # the learning curve that a report shows, where the runs have it


def measure(plan: Plan, runs_dir: Path, command: str) -> dict[str, Any]:
    """What has been measured of a plan so far.

    Args:
        plan: made with hashes.
        runs_dir: the folder of runs.
        command: what makes this table, as one types it.

    Returns:
        Plain values that JSON can hold; docs/tables.md explains the keys.
    """
    table = plan.table
    percent = 100.0 if table.unit == "percent" else 1.0
    folders = {key: RunFolder(runs_dir / key) for key in plan.runs}
    finished = {
        key: RunData(result, folder.path) for key, folder in folders.items() if (result := folder.result())
    }
    states = run_states(plan, folders, finished)
    rows, columns = _at_this_scale(plan)
    cells = [
        _cell(cell, plan, folders, finished, states, percent)
        for cell in plan.cells
        if cell.cell.row in rows and cell.cell.column in columns
    ]
    values = {
        (c["row"], c["column"]): {int(seed): value for seed, value in c["values"].items()}
        for c in cells
        if c["values"]
    }
    alike = {(c["row"], c["column"]) for c in cells if c["deterministic"]}
    data = sorted({run.config["dataset"]["name"] for run in plan.runs.values()})
    context = f"scale {plan.scale}, {', '.join(data) or 'no data'}"
    claims = [
        judge(
            claim,
            values,
            direction=table.direction,
            unit=table.unit,
            deterministic=alike,
            labels={"row": table.rows, "column": table.columns},
            context=context,
        )
        for claim in table.claims
    ]
    first = next(iter(finished.values()), None)
    paper = registry.find(table.slug).paper if table.slug in registry.entries() else None
    results = {
        "format": FORMAT,
        "slug": table.slug,
        "table": table.name,
        "scale": plan.scale,
        "title": table.title,
        "about": " ".join(filter(None, (table.scales[plan.scale].about, table.about))),
        "paper": asdict(paper) if paper else None,
        "metric": table.metric,
        "unit": table.unit,
        "direction": table.direction,
        "data": data,
        "rows": [{"key": key, "label": table.rows[key]} for key in rows],
        "columns": [{"key": key, "label": table.columns[key]} for key in columns],
        "row_title": table.row_title,
        "column_title": table.column_title,
        "cells": cells,
        "claims": claims,
        "runs": {key: _run(run, states[key], finished.get(key)) for key, run in plan.runs.items()},
        "command": command,
        "made": datetime.date.today().isoformat(),
        "versions": first.result["versions"] if first else {},
        "cost_s": round(sum(run.result["duration_s"] for run in finished.values()), 1),
    }
    if table.ranking is not None:
        add_ranking(results, table, finished)
    return results


def run_states(plan: Plan, folders: Mapping[str, RunFolder], finished: Container[str] = ()) -> dict[str, str]:
    """Each run's state; blocked where what it starts from failed. `finished` are known to be done: not read again."""
    states = {key: DONE if key in finished else folder.state() for key, folder in folders.items()}
    for key, run in plan.runs.items():  # makers come before users
        if states[key] != DONE and any(states[maker] in (FAILED, BLOCKED) for maker in run.makers.values()):
            states[key] = BLOCKED
    return states


def _at_this_scale(plan: Plan) -> tuple[list[str], list[str]]:
    """The rows and columns that a report of this scale shows: those with runs, and rows that say why they have none."""
    table = plan.table
    with_runs = {cell.cell.column for cell in plan.cells if cell.runs}
    columns = [key for key in table.columns if key in with_runs or not with_runs]
    used = {
        c.cell.row
        for c in plan.cells
        if c.state not in (NOT_AT_THIS_SCALE, NOT_ASKED_FOR) and c.cell.column in columns
    }
    return [key for key in table.rows if key in used], columns


def _cell(
    planned: PlannedCell,
    plan: Plan,
    folders: Mapping[str, RunFolder],
    finished: Mapping[str, RunData],
    states: Mapping[str, str],
    percent: float,
) -> dict[str, Any]:
    cell, table = planned.cell, plan.table
    values, why, mine = {}, planned.why, {}
    reduction_words = ""
    if planned.runs:
        reduction_words, reduce = reduction(cell.value, table.metric)
    for seed, keys in planned.runs.items():
        if all(key in finished for key in keys):
            try:
                value = reduce([finished[key] for key in keys])
            except (UserError, ArithmeticError, ValueError, OSError) as error:
                why = f"{reduction_words} can't be made: {error}"
                continue
            if math.isfinite(value):
                values[seed] = float(f"{value * percent:.10g}")  # equal differences stay equal
                mine[seed] = [finished[key].result["metrics"] for key in keys]
            else:
                why = f"{reduction_words} is no finite number at seed {seed}"
    missing = {states[key] for seed, keys in planned.runs.items() if seed not in values for key in keys} - {
        DONE
    }
    if planned.state:
        state = planned.state
    elif len(values) == len(planned.runs):
        state = DONE
    else:
        state = next((s for s in (FAILED, BLOCKED, RUNNING) if s in missing), LEFT if missing else FAILED)
        failures = [f for keys in planned.runs.values() for key in keys if (f := folders[key].failure())]
        if failures:
            why = f"{failures[0]['error']} (after {failures[0]['attempts']} attempts; log: {failures[0]['log']})"
        elif state == BLOCKED:
            why = "what it starts from could not be made"
        if values and state != FAILED:
            state = PARTIAL
    numbers = summary(list(values.values())) if values else None
    # All metrics, and not the cell's number alone: accuracies on a small test set may agree by chance.
    same = len(values) > 1 and all(metrics == next(iter(mine.values())) for metrics in mine.values())
    return {
        "row": cell.row,
        "column": cell.column,
        "published": table.published_value(cell.row, cell.column),
        "state": state,
        "why": why,
        "values": {str(seed): value for seed, value in values.items()},
        "runs": {str(seed): keys for seed, keys in planned.runs.items()},
        "mean": numbers.mean if numbers else None,
        "sd": numbers.sd if numbers else None,
        "seeds": len(values),
        "deterministic": same,
        "reduction": reduction_words,
        "curve": _curve(
            [finished[k[0]] for k in planned.runs.values() if len(k) == 1 and k[0] in finished],
            (cell.value and (cell.value.draw or cell.value.curve)) or CURVE,
            table.unit,
        ),
    }


def _curve(runs: list[RunData], metric: str, unit: str) -> dict[str, Any] | None:
    """Mean and standard deviation over the seeds of a logged curve, at the epochs that all have, in the table's unit
    (accuracies always in percent).
    """
    curves = [run.curve(metric) for run in runs]
    if not curves or not all(curves):
        return None
    unit = "percent" if metric == CURVE else unit
    factor = 100 if unit == "percent" else 1
    epochs = sorted(set.intersection(*map(set, curves)))
    found = [summary([factor * curve[epoch] for curve in curves]) for epoch in epochs]
    return {
        "metric": metric,
        "unit": unit,
        "epoch": [epoch + 1 for epoch in epochs],
        "mean": [round(s.mean, 3) for s in found],
        "sd": [None if s.sd is None else round(s.sd, 3) for s in found],
    }


def _run(run: PlannedRun, state: str, finished: RunData | None) -> dict[str, Any]:
    result = finished.result if finished else {}
    return {
        "name": run.name,
        "cell": run.cells[0] if run.cells else "",
        "cells": run.cells,
        "seed": run.seed,
        "state": state,
        "stale": finished is not None and is_stale(result),
        "metrics": result.get("metrics", {}),
        "duration_s": result.get("duration_s"),
        "config_hash": run.hash,
        "commit": result.get("git_commit"),
        "code": result.get("code"),
        "machine": result.get("machine", ""),
        "device": result.get("device", ""),
        "command": run.command,
    }


def is_stale(result: Mapping[str, Any]) -> bool:
    """Whether the code that made a result is not the code that is here now."""
    return result.get("code") != code_fingerprint(result["config"])
