"""Every cell of every table at scale paper: it composes, and each kind of run takes two steps on the paper's shapes."""

import json
import math
import os
import shutil
from typing import Any

import pytest

from regbench import registry
from regbench.regularizers.classification.base import hooks_of
from regbench.tables.plan import NOT_AT_THIS_SCALE, NOT_RUNNABLE, PlannedRun, composer, make_plan
from regbench.tables.spec import load_table, table_files
from regbench.tables.two_steps import two_steps

ROWS = [(key, row) for key in table_files() for row in load_table(key).rows]
CPU = ["accelerator=cpu", "accelerator.threads=1"]
OUTSIDE = {"mix", "objective"}  # hooks that see images and logits, and not the network
# Networks of 140 million parameters, a quarter of a minute a step: the row that is tried holds the others' parts. With
# REGBENCH_EVERY_CELL=1 all are.
HEAVY = {"nested_dropout/animal10n": "nested_co"}
tried: set[str] = set()  # kinds of runs that have taken their steps in this process


def without_numbers(node: Any) -> Any:
    """A configuration with its numbers left out."""
    if isinstance(node, dict):
        return {key: without_numbers(value) for key, value in node.items()}
    return None if isinstance(node, int | float) and not isinstance(node, bool) else node


def kind(run: PlannedRun) -> str:
    """What runs differ in that may work for one and fail for another: the data's shape, the regularizer, the network.

    A method that only mixes images or makes a loss of the logits never meets the network: it is tried with one network
    for each shape of the data. (Manifold mixup does meet it.)
    """
    config = run.config
    regularizer = without_numbers(config["regularizer"])
    hooks = hooks_of(registry.load(regularizer["name"])) if not config["stack"] else set()
    outside = hooks and hooks <= OUTSIDE
    outside = outside and "manifold_mixup" not in (regularizer["name"], regularizer.get("policy"))
    data = {key: config["dataset"].get(key) for key in ("name", "shape", "num_classes", "image_size")}
    parts = without_numbers(config["stack"]), sorted(config["callbacks"])
    return json.dumps([data, regularizer, parts, None if outside else config["backbone"]], sort_keys=True)


@pytest.mark.parametrize(("key", "row"), ROWS, ids=["-".join(place) for place in ROWS])
def test_the_cells_of_a_row_compose_and_take_two_steps(key, row, tmp_path):
    table = load_table(key)
    with composer() as compose:
        plan = make_plan(table, "paper", compose, overrides=CPU, seeds=[0], only=[row])
    for cell in plan.cells:
        if cell.cell.row == row:
            # A column of ours (on a set that ships with a package, say) may be left to other scales.
            ours = table.published_value(row, cell.cell.column) is None
            left_out = cell.state == NOT_AT_THIS_SCALE and ours
            assert cell.runs or (cell.state == NOT_RUNNABLE and cell.why) or left_out
    if HEAVY.get(key, row) != row and not os.environ.get("REGBENCH_EVERY_CELL"):
        return
    for run in plan.runs.values():
        if kind(run) not in tried:
            metrics = two_steps(run, tmp_path / "run", plan.runs)
            shutil.rmtree(tmp_path / "run")  # its checkpoints have up to 300 MB
            loss = metrics.get("test/nll")  # of classification; other families' methods measure other things
            assert metrics
            assert math.isfinite(loss) if loss is not None else all(map(math.isfinite, metrics.values()))
            tried.add(kind(run))


def test_two_steps_are_two_on_the_papers_shapes(tmp_path):
    with composer() as compose:
        table = load_table("decoupled_mixup/cifar100")
        plan = make_plan(table, "paper", compose, overrides=CPU, seeds=[0], only=["cutmix/dm_200"])
    [run] = plan.runs.values()
    metrics = two_steps(run, tmp_path, plan.runs)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["data"]["shape"] == [3, 32, 32]
    assert (result["data"]["train"], result["data"]["val"], result["data"]["test"]) == (4, 0, 2)
    assert result["data"]["num_classes"] == 100
    assert (result["epochs"], result["tested"]) == (1, ["checkpoints/last.ckpt"])
    assert result["config"]["regularizer"] == run.config["regularizer"]
    assert result["config"]["backbone"] == run.config["backbone"]
    assert result["metrics"] == metrics
    assert run.config["trainer"]["max_epochs"] == 200  # the plan itself stays as it was
