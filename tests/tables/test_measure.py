"""From a folder of runs, made by hand, to the results: every state, every kind of cell, and the numbers."""

import json
from pathlib import Path

import pytest

from regbench.identity import code_fingerprint
from regbench.runs import RunFolder
from regbench.tables.measure import is_stale, measure
from regbench.tables.plan import Plan, PlannedCell, PlannedRun
from regbench.tables.spec import Table

SEEDS = (0, 1, 2)
DIFFERENCE = {"function": "regbench.tables.reductions.difference"}


def plan_of(cells: list[dict], *, makers=None, seeds=SEEDS, unit="percent", states=None, **more) -> Plan:
    """A plan of a table with these cells. Runs are known by "<name>-<seed>"; `makers`: run → its maker."""
    makers, states = makers or {}, states or {}
    names = list(
        dict.fromkeys([*makers.values(), *(n for c in cells for n in c.get("runs", [c.get("run")]) if n)])
    )
    table = Table.model_validate(
        {
            "slug": "my_paper",
            "name": "first",
            "title": "A table",
            "about": "About the table.",
            "metric": "test/accuracy",
            "unit": unit,
            "direction": "max",
            "rows": {cell["row"]: cell["row"].upper() for cell in cells},
            "columns": {cell["column"]: cell["column"].upper() for cell in cells},
            "runs": {name: {"overrides": []} for name in names},
            "cells": cells,
            "scales": {"small": {"seeds": list(seeds), "about": "About the scale."}},
        }
        | more
    )
    runs, planned = {}, []
    for seed in seeds:
        for name in names:
            config = {"dataset": {"name": "digits"}, "regularizer": {"name": "none"}}
            maker = {"teacher": f"{makers[name]}-{seed}"} if name in makers else {}
            key = f"{name}-{seed}"
            runs[key] = PlannedRun(name, seed, [f"name={name}", f"seed={seed}"], config, key, maker)
    for cell in table.cells:
        state = states.get((cell.row, cell.column), "not runnable" if cell.why else "")
        keys = {} if state else {seed: [f"{name}-{seed}" for name in cell.runs] for seed in seeds}
        for key in (key for several in keys.values() for key in several):
            runs[key].cells.append(f"{cell.row} / {cell.column}")
        planned.append(PlannedCell(cell, state, cell.why, keys))
    return Plan(table, "small", [], runs, planned)


@pytest.fixture
def finish(tmp_path):
    """Writes a finished run: its test metrics, and its validation accuracies where it has any."""

    def call(key: str, accuracy: float | None, curve=(), nll=1.0, **more) -> None:
        (tmp_path / key).mkdir(exist_ok=True)
        result = {
            "metrics": {"test/accuracy": accuracy, "test/nll": nll},
            "seed": int(key[-1]),
            "config": {"regularizer": {"name": "none"}},
            "duration_s": 1.5,
            "versions": {"torch": "2"},
            "machine": "2 cores",
            "device": "cpu (1 threads)",
            "git_commit": "abc",
            "code": code_fingerprint({"regularizer": {"name": "none"}}),
        }
        (tmp_path / key / "result.json").write_text(json.dumps(result | more))
        if curve:
            lines = ["epoch,val/accuracy", *(f"{epoch},{value}" for epoch, value in enumerate(curve))]
            (tmp_path / key / "metrics.csv").write_text("\n".join(lines) + "\n")

    return call


def cells_of(plan: Plan, folder: Path) -> dict[str, dict]:
    results = measure(plan, folder, "python scripts/reproduce.py")
    json.dumps(results, allow_nan=False)  # plain values, all finite
    return {f"{cell['row']} / {cell['column']}": cell for cell in results["cells"]}


PLAIN = [{"row": "plain", "column": "c", "run": "plain"}]


def test_a_finished_cell(tmp_path, finish):
    for seed, accuracy in zip(SEEDS, (0.5, 0.75, 1.0), strict=True):
        finish(f"plain-{seed}", accuracy, nll=seed)
    published = [{"source": "the paper", "values": {"plain": {"c": 76.4}}}]
    cell = cells_of(plan_of(PLAIN, published=published), tmp_path)["plain / c"]
    assert cell == {
        "row": "plain",
        "column": "c",
        "published": {"value": 76.4, "source": "the paper", "approximate": False},
        "state": "done",
        "why": "",
        "values": {"0": 50.0, "1": 75.0, "2": 100.0},
        "runs": {"0": ["plain-0"], "1": ["plain-1"], "2": ["plain-2"]},
        "mean": 75.0,
        "sd": 25.0,
        "seeds": 3,
        "deterministic": False,
        "reduction": "test/accuracy",
        "curve": None,
    }


def test_the_whole_of_the_results(tmp_path, finish):
    finish("plain-0", 0.5)
    finish("plain-1", 0.5, code="0" * 16)
    results = measure(plan_of(PLAIN), tmp_path, "the command")
    assert set(results) == {
        "format", "slug", "table", "scale", "title", "about", "paper", "metric", "unit", "direction", "data", "rows",
        "columns", "row_title", "column_title", "cells", "claims", "runs", "command", "made", "versions", "cost_s",
    }  # fmt: skip
    assert results["about"] == "About the scale. About the table."
    assert (results["slug"], results["table"], results["scale"], results["paper"]) == (
        "my_paper",
        "first",
        "small",
        None,
    )
    assert (results["data"], results["cost_s"], results["versions"]) == (["digits"], 3.0, {"torch": "2"})
    assert (results["rows"], results["columns"]) == (
        [{"key": "plain", "label": "PLAIN"}],
        [{"key": "c", "label": "C"}],
    )
    assert results["command"] == "the command"
    assert results["runs"]["plain-0"] == {
        "name": "plain",
        "cell": "plain / c",
        "cells": ["plain / c"],
        "seed": 0,
        "state": "done",
        "stale": False,
        "metrics": {"test/accuracy": 0.5, "test/nll": 1.0},
        "duration_s": 1.5,
        "config_hash": "plain-0",
        "commit": "abc",
        "code": code_fingerprint({"regularizer": {"name": "none"}}),
        "machine": "2 cores",
        "device": "cpu (1 threads)",
        "command": "python train.py name=plain seed=0",
    }
    assert results["runs"]["plain-1"]["stale"] is True
    left = results["runs"]["plain-2"]
    assert set(left) == set(results["runs"]["plain-0"])
    assert (left["state"], left["stale"], left["metrics"], left["duration_s"]) == ("left", False, {}, None)


def test_a_paper_of_the_catalogue_is_named(tmp_path):
    plan = plan_of(PLAIN, slug="decoupled_mixup")
    assert measure(plan, tmp_path, "")["paper"]["arxiv"] == "2203.10761"


def test_some_seeds_left(tmp_path, finish):
    assert cells_of(plan_of(PLAIN), tmp_path)["plain / c"]["state"] == "left"
    finish("plain-1", 0.5)
    cell = cells_of(plan_of(PLAIN), tmp_path)["plain / c"]
    assert (cell["state"], cell["values"], cell["mean"], cell["sd"], cell["seeds"]) == (
        "partial",
        {"1": 50.0},
        50.0,
        None,
        1,
    )


def test_one_that_was_interrupted_is_left(tmp_path):
    (tmp_path / "plain-0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "plain-0" / "checkpoints" / "last.ckpt").touch()
    results = measure(plan_of(PLAIN), tmp_path, "")
    assert results["cells"][0]["state"] == "left"
    assert results["runs"]["plain-0"]["state"] == "interrupted"


def test_a_failed_one_names_its_log(tmp_path, finish):
    finish("plain-0", 0.5)
    (tmp_path / "plain-1").mkdir()
    for _ in range(2):
        RunFolder(tmp_path / "plain-1").fail("RuntimeError: out of memory")
    cell = cells_of(plan_of(PLAIN), tmp_path)["plain / c"]
    assert (cell["state"], cell["values"]) == ("failed", {"0": 50.0})
    log = tmp_path / "plain-1" / "train.log"
    assert cell["why"] == f"RuntimeError: out of memory (after 2 attempts; log: {log})"


def test_one_that_is_at_work_is_running(tmp_path):
    with RunFolder(tmp_path / "plain-2").lock:
        results = measure(plan_of(PLAIN), tmp_path, "")
    assert (results["cells"][0]["state"], results["runs"]["plain-2"]["state"]) == ("running", "running")
    assert measure(plan_of(PLAIN), tmp_path, "")["cells"][0]["state"] == "left"


def test_users_of_a_failed_maker_are_blocked_and_so_are_theirs(tmp_path):
    plan = plan_of(
        [{"row": "r", "column": "c", "run": "student"}],
        makers={"student": "teacher", "teacher": "base"},
        seeds=[0],
    )
    plan.runs = {key: plan.runs[key] for key in ("base-0", "teacher-0", "student-0")}
    (tmp_path / "base-0").mkdir()
    RunFolder(tmp_path / "base-0").fail("told to fail")
    results = measure(plan, tmp_path, "")
    assert [results["runs"][key]["state"] for key in plan.runs] == ["failed", "blocked", "blocked"]
    (cell,) = results["cells"]
    assert (cell["state"], cell["why"]) == ("blocked", "what it starts from could not be made")


def test_a_result_from_before_the_maker_failed_counts(tmp_path, finish):
    plan = plan_of([{"row": "r", "column": "c", "run": "student"}], makers={"student": "teacher"}, seeds=[0])
    (tmp_path / "teacher-0").mkdir()
    RunFolder(tmp_path / "teacher-0").fail("told to fail")
    finish("student-0", 0.25)
    assert cells_of(plan, tmp_path)["r / c"]["state"] == "done"


def test_seeds_that_came_out_alike_in_every_metric_are_one(tmp_path, finish):
    for seed in SEEDS:
        finish(f"plain-{seed}", 0.5)
    cell = cells_of(plan_of(PLAIN), tmp_path)["plain / c"]
    assert (cell["deterministic"], cell["sd"], cell["seeds"]) == (True, 0.0, 3)
    finish("plain-2", 0.5, nll=1.25)  # the same accuracy by chance
    assert cells_of(plan_of(PLAIN), tmp_path)["plain / c"]["deterministic"] is False
    one = cells_of(plan_of(PLAIN, seeds=[0]), tmp_path)["plain / c"]
    assert (one["deterministic"], one["seeds"], one["sd"]) == (False, 1, None)


@pytest.mark.parametrize(
    ("unit", "expected"), [("percent", 71.26), ("fraction", 0.7126), ("", 0.7126), ("nats", 0.7126)]
)
def test_only_percent_is_scaled(tmp_path, finish, unit, expected):
    finish("plain-0", 0.7125999927520752)
    assert cells_of(plan_of(PLAIN, unit=unit, seeds=[0]), tmp_path)["plain / c"]["values"] == {"0": expected}


def test_rows_that_say_why_and_cells_outside_the_scale(tmp_path, finish):
    finish("plain-0", 0.5)
    cells = [
        {"row": "plain", "column": "small", "run": "plain"},
        {"row": "plain", "column": "large", "run": "plain"},
        {"row": "puzzle", "column": "small", "why": "RegBench does not have it."},
        {"row": "puzzle", "column": "large", "why": "RegBench does not have it."},
        {"row": "other", "column": "small", "run": "plain"},
    ]
    states = {("plain", "large"): "not at this scale", ("other", "small"): "not at this scale"}
    results = measure(plan_of(cells, states=states, seeds=[0]), tmp_path, "")
    assert [row["key"] for row in results["rows"]] == ["plain", "puzzle"]
    assert [column["key"] for column in results["columns"]] == ["small"]
    assert [(c["row"], c["column"], c["state"], c["why"]) for c in results["cells"]] == [
        ("plain", "small", "done", ""),
        ("puzzle", "small", "not runnable", "RegBench does not have it."),
    ]


def test_a_scale_that_can_not_be_run_shows_all_rows(tmp_path):
    results = measure(plan_of(PLAIN, states={("plain", "c"): "not runnable"}), tmp_path, "")
    assert [(c["state"], c["mean"], c["runs"]) for c in results["cells"]] == [("not runnable", None, {})]


GAIN = [
    {"row": "r", "column": "with", "run": "with"},
    {"row": "r", "column": "without", "run": "without"},
    {"row": "r", "column": "gain", "runs": ["with", "without"], "value": DIFFERENCE},
]


def test_a_cell_that_is_a_difference_of_two_runs(tmp_path, finish):
    for seed, (more, less) in enumerate([(0.934, 0.928), (0.9315, 0.9255), (0.9, 0.91)]):
        finish(f"with-{seed}", more, nll=seed)
        finish(f"without-{seed}", less)
    cells = cells_of(plan_of(GAIN), tmp_path)
    assert cells["r / gain"]["values"] == {
        "0": 0.6,
        "1": 0.6,
        "2": -1.0,
    }  # equal ones are equal: no rounding left
    assert cells["r / gain"]["runs"]["1"] == ["with-1", "without-1"]
    assert cells["r / gain"]["reduction"] == "difference of test/accuracy"
    assert (cells["r / gain"]["curve"], cells["r / gain"]["deterministic"]) == (None, False)


def test_a_difference_waits_for_both_runs(tmp_path, finish):
    finish("with-0", 0.5)
    cells = cells_of(plan_of(GAIN, seeds=[0]), tmp_path)
    assert {place: cell["state"] for place, cell in cells.items()} == {
        "r / with": "done",
        "r / without": "left",
        "r / gain": "left",
    }


def test_a_number_that_can_not_be_made_is_said_and_the_rest_goes_on(tmp_path, finish):
    finish("plain-0", None)
    finish("plain-1", 0.5)
    finish("plain-2", 0.75)
    cells = [
        *PLAIN,
        {"row": "curve", "column": "c", "run": "plain", "value": {"curve": "val/accuracy", "epoch": 3}},
    ]
    found = cells_of(plan_of(cells), tmp_path)
    diverged = found["plain / c"]
    assert (diverged["state"], diverged["values"]) == ("failed", {"1": 50.0, "2": 75.0})
    assert diverged["why"] == "test/accuracy is no finite number at seed 0"
    curve = found["curve / c"]
    assert (curve["state"], curve["mean"], curve["seeds"]) == ("failed", None, 0)
    expected = "val/accuracy at epoch 3 can't be made: val/accuracy was not measured at epoch 3, only at none"
    assert curve["why"] == expected


def test_the_learning_curve_is_in_percent_at_the_epochs_that_all_have(tmp_path, finish):
    finish("plain-0", 0.5, curve=[0.1, "", 0.5, 0.75])
    finish("plain-1", 0.5, curve=[0.2, 0.3, 0.5])
    curve = cells_of(plan_of(PLAIN, seeds=[0, 1]), tmp_path)["plain / c"]["curve"]
    assert curve == {
        "metric": "val/accuracy",
        "unit": "percent",
        "epoch": [1, 3],
        "mean": [15.0, 50.0],
        "sd": [7.071, 0.0],  # 5 √2
    }


def test_a_cell_names_the_curve_that_is_drawn(tmp_path, finish):
    finish("plain-0", 0.5)
    rows = ["epoch,val/accuracy,train/wrong_given,val/loss", "0,0.5,,3", "1,0.6,0.25,2", "2,0.7,0.75,1"]
    (tmp_path / "plain-0" / "metrics.csv").write_text("\n".join(rows) + "\n")
    cells = [
        *PLAIN,
        {
            "row": "drawn",
            "column": "c",
            "run": "plain",
            "value": {"metric": "test/nll", "draw": "train/wrong_given"},
        },
        {"row": "own", "column": "c", "run": "plain", "value": {"curve": "val/loss", "epoch": 1}},
    ]
    found = cells_of(plan_of(cells, seeds=[0]), tmp_path)
    curves = {
        name: (cell["curve"]["metric"], cell["curve"]["epoch"], cell["curve"]["mean"])
        for name, cell in found.items()
    }
    assert curves == {
        "plain / c": ("val/accuracy", [1, 2, 3], [50.0, 60.0, 70.0]),
        "drawn / c": ("train/wrong_given", [2, 3], [25.0, 75.0]),
        "own / c": ("val/loss", [1, 2, 3], [300.0, 200.0, 100.0]),  # in the table's unit, as all its numbers
    }


def test_claims_are_judged_on_what_was_measured(tmp_path, finish):
    claim = {"says": "It helps", "kind": "better", "left": {"row": "r", "column": "with"},
             "right": {"row": "r", "column": "without"}}  # fmt: skip
    plan = plan_of(GAIN[:2], claims=[claim])
    (before,) = measure(plan, tmp_path, "")["claims"]
    assert (before["verdict"], before["context"]) == ("not measured", "scale small, digits")
    for seed, (more, less) in enumerate([(0.55, 0.5), (0.57, 0.51), (0.53, 0.49)]):
        finish(f"with-{seed}", more)
        finish(f"without-{seed}", less)
    (after,) = measure(plan, tmp_path, "")["claims"]
    # 5, 6 and 4 points: mean 5, sd 1, t(2) at 97.5 % is 4.303, so the interval is 5 ± 4.303 / √3.
    assert (after["verdict"], after["effect"], after["unit"]) == ("holds", pytest.approx(5.0), "percent")
    assert after["interval"] == pytest.approx([5 - 2.484, 5 + 2.484], abs=1e-3)


def test_a_damaged_result_is_moved_aside_and_its_run_is_left(tmp_path, finish, capsys):
    finish("plain-0", 0.5)
    file = tmp_path / "plain-0" / "result.json"
    file.write_text(file.read_text()[:40])
    assert cells_of(plan_of(PLAIN, seeds=[0]), tmp_path)["plain / c"]["state"] == "left"
    assert f"{file} is cut short or damaged; it was moved to result.json.damaged-" in capsys.readouterr().out
    assert not file.exists()
    (aside,) = file.parent.glob("result.json.damaged-*")
    assert len(aside.read_text()) == 40


def test_stale_is_what_other_code_made():
    config = {"regularizer": {"name": "mixup"}}
    result = {"config": config, "code": code_fingerprint(config)}
    assert not is_stale(result)
    assert is_stale(result | {"code": code_fingerprint({"regularizer": {"name": "cutmix"}})})
    assert is_stale({"config": result["config"]})
