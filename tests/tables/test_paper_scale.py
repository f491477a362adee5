"""Every cell of every table at scale paper: it composes, and takes two steps on the paper's shapes.

By default each method that meets the network and each network take their steps once, in whatever company, and the
slow networks none: half an hour is for REGBENCH_EVERY_CELL=1, where each combination takes them. Run that for the
tables that you add or change:

    REGBENCH_EVERY_CELL=1 python -m pytest tests/tables/test_paper_scale.py -k <slug>
"""

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
# Their steps take up to half a minute: by default their own tests (tests/backbones) are enough.
SLOW = ("timm", "vgg19_cifar", "wide_resnet_28_10", "wide_resnet_28_8", "wide_resnet_40_10", "pyramidnet200",
        "resnext29_8x64d", "resnext50_32x4d_cifar", "resnet101_cifar", "densenet121_cifar")  # fmt: skip
tried: set[str] = set()  # what has taken its steps in this process


def without_numbers(node: Any) -> Any:
    """A configuration with its numbers left out."""
    if isinstance(node, dict):
        return {key: without_numbers(value) for key, value in node.items()}
    return None if isinstance(node, int | float) and not isinstance(node, bool) else node


def parts(run: PlannedRun) -> set[str]:
    """What works in one run and may fail in another: methods, with the run's measures, and the network on its data.

    With REGBENCH_EVERY_CELL=1 all together are one part, but for a method that only mixes images or makes a loss of
    the logits: it never meets the network. (Manifold mixup does meet it.) By default such a method takes no steps here:
    tests/test_contract.py has them.
    """
    config = run.config
    measures = sorted(config["callbacks"])
    regularizer, stack = (without_numbers(config[group]) for group in ("regularizer", "stack"))
    network = [
        without_numbers(config["backbone"]),
        *(config["dataset"].get(key) for key in ("shape", "image_size")),
    ]
    hooks = hooks_of(registry.load(regularizer["name"])) if not stack else set()
    outside = hooks and hooks <= OUTSIDE
    outside = outside and "manifold_mixup" not in (regularizer["name"], regularizer.get("policy"))
    if os.environ.get("REGBENCH_EVERY_CELL"):
        method = [regularizer, stack, measures]
        found = [method, network] if outside else [[method, network]]
    elif config["backbone"]["name"] in SLOW:
        found = []
    else:
        alone = [] if outside else [[regularizer, measures]]
        found = [*alone, *([member] for member in stack), network]
    return {json.dumps(part, sort_keys=True) for part in found}


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
    for run in plan.runs.values():
        if not parts(run) <= tried:
            metrics = two_steps(run, tmp_path / "run", plan.runs)
            shutil.rmtree(tmp_path / "run")  # its checkpoints have up to 300 MB
            loss = metrics.get("test/nll")  # of classification; other families' methods measure other things
            assert metrics
            assert math.isfinite(loss) if loss is not None else all(map(math.isfinite, metrics.values()))
            tried.update(parts(run))


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
