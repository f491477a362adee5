"""What a sweep adds to its runs, and how long planning and reporting take, as a user waits for them: whole commands."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from regbench.fingerprints import fingerprint_of
from regbench.tables.plan import composer, make_plan
from regbench.tables.spec import load_table

REPRODUCE = Path(__file__).parents[1] / "scripts" / "reproduce.py"
COLUMNS = 20
OVERRIDES = ["dataset=digits", "backbone=mlp", "trainer.max_epochs=1", "accelerator=cpu", "accelerator.threads=1",
             "logger=none"]  # fmt: skip


def write_table(folder: Path, cells: int) -> Path:
    """A table with so many cells, each of a run of its own."""
    places = [(f"r{i // COLUMNS}", f"c{i % COLUMNS}", i) for i in range(cells)]
    table = {
        "title": "A table of the benchmark",
        "metric": "test/accuracy",
        "unit": "percent",
        "direction": "max",
        "rows": {row: row for row, _, _ in places},
        "columns": {column: column for _, column, _ in places},
        "runs": {
            f"x{i}": {"overrides": ["regularizer=mixup", f"regularizer.alpha={1 + i / 1000}"]}
            for _, _, i in places
        },
        "cells": [{"row": row, "column": column, "run": f"x{i}"} for row, column, i in places],
        "scales": {"bench": {"seeds": 1, "overrides": OVERRIDES}},
    }
    path = folder / f"cells{cells}.yaml"
    path.write_text(yaml.safe_dump(table, sort_keys=False))
    return path


def reproduce_seconds(folder: Path, table: Path, *arguments: str) -> float:
    """Seconds that the whole command takes, from launch to prompt."""
    places = [f"runs_dir={folder / 'runs'}", f"reports_dir={folder / 'reports'}"]
    command = [sys.executable, str(REPRODUCE), f"table={table}", "scale=bench", *places, *arguments]
    start = time.perf_counter()
    subprocess.run(
        command, check=True, capture_output=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return time.perf_counter() - start


def added_seconds(folder: Path, cells: int = 7) -> list[float]:
    """For each cell but the first: the time from one result to the next, less what the run itself took."""
    table = write_table(folder, cells)
    reproduce_seconds(folder, table)
    found = folder.glob("runs/*/result.json")
    done = sorted(
        ((path.stat().st_mtime, json.loads(path.read_text())) for path in found), key=lambda item: item[0]
    )
    return [now - before - result["duration_s"] for (before, _), (now, result) in itertools.pairwise(done)]


def finish(folder: Path, table: Path) -> None:
    """Fills the folder of runs with results as runs leave them: the first one is run, the others are copies of it."""
    reproduce_seconds(folder, table, "only=r0/c0")
    (made,) = folder.glob("runs/*/result.json")
    result, rows = json.loads(made.read_text()), (made.parent / "metrics.csv").read_bytes()
    with composer() as compose:
        plan = make_plan(load_table(str(table)), "bench", compose, fingerprint=fingerprint_of)
    for i, run in enumerate(plan.runs.values()):
        target = folder / "runs" / run.hash
        target.mkdir(exist_ok=True)
        metrics = result["metrics"] | {"test/accuracy": 0.5 + i / 1000}
        (target / "result.json").write_text(json.dumps(result | {"metrics": metrics}))
        (target / "metrics.csv").write_bytes(rows)
