"""Every cell of every table at scale paper: it composes, and each kind of run takes two steps on the paper's shapes."""

import json
import math
from typing import Any

import pytest

from regbench.tables.plan import NOT_RUNNABLE, PlannedRun, composer, make_plan
from regbench.tables.spec import load_table, table_files
from regbench.tables.two_steps import two_steps

ROWS = [(key, row) for key in table_files() for row in load_table(key).rows]


def without_numbers(node: Any) -> Any:
    """A configuration with its numbers left out: runs that differ in these alone are of one kind."""
    if isinstance(node, dict):
        return {key: without_numbers(value) for key, value in node.items()}
    return None if isinstance(node, int | float) and not isinstance(node, bool) else node


def kind(run: PlannedRun) -> str:
    config = run.config
    data = {key: config["dataset"][key] for key in ("name", "shape", "num_classes", "image_size")}
    return json.dumps([config["backbone"], data, without_numbers(config["regularizer"])], sort_keys=True)


@pytest.mark.parametrize(("key", "row"), ROWS, ids=["-".join(place) for place in ROWS])
def test_the_cells_of_a_row_compose_and_take_two_steps(key, row, tmp_path_factory):
    table = load_table(key)
    with composer() as compose:
        plan = make_plan(
            table, "paper", compose, overrides=["accelerator=cpu", "accelerator.threads=1"], seeds=[0], only=[row]
        )
    for cell in plan.cells:
        if cell.cell.row == row:
            assert cell.runs or (cell.state == NOT_RUNNABLE and cell.why)
    for i, run in enumerate({kind(run): run for run in plan.runs.values()}.values()):
        folder = tmp_path_factory.mktemp(f"{key}-{row}-{i}".replace("/", "-"))
        metrics = two_steps(run, folder)
        assert math.isfinite(metrics["test/nll"])
