"""From a table to its runs: order of overrides, seeds, artifacts, shared runs, and composing as `train.py` does."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from regbench.composing import compose_config
from regbench.errors import UserError
from regbench.tables.plan import (
    SHOWN,
    PlannedRun,
    _last_of_each,
    composer,
    hydra_list,
    make_plan,
    quoted_value,
)
from regbench.tables.spec import Table

QUICK = ["dataset=digits", "backbone=mlp"]


def table(runs: dict, cells: list | None = None, **more) -> Table:
    """A table with one column; each run is a row unless `cells` says otherwise."""
    cells = cells or [{"row": name, "column": "c", "run": name} for name in runs]
    whole = {
        "slug": "my_paper",
        "name": "first",
        "title": "A table",
        "metric": "test/accuracy",
        "direction": "max",
        "rows": {cell["row"]: cell["row"] for cell in cells},
        "columns": {cell["column"]: cell["column"] for cell in cells},
        "runs": {name: run if isinstance(run, dict) else {"overrides": run} for name, run in runs.items()},
        "cells": cells,
        "scales": {"small": {"seeds": [0, 1], "overrides": QUICK}},
    }
    return Table.model_validate(whole | more)


@pytest.fixture(scope="module")
def compose():
    with composer() as made:
        yield made


@pytest.fixture
def plan(compose):
    def call(table, scale="small", hashed=False, **options):
        fingerprint = (lambda dataset: f"content of {dataset['name']}") if hashed else None
        return make_plan(table, scale, compose, fingerprint=fingerprint, **options)

    return call


SAMPLE = [
    [],
    ["seed=3", "optimizer.lr=1e-3"],
    ["regularizer=mixup", "regularizer.alpha=0.2", "dataset=digits", "backbone=mlp"],
    ["experiment=decoupled_mixup/cifar100_resnet18", "regularizer.policy=cutmix", "trainer.max_epochs=3"],
    ["experiment=decoupled_mixup/cifar100_resnet18_baselines", "regularizer=cutmix", "dataset=cifar10"],
    ["trainer.max_epochs=7", "regularizer=decoupled_mixup", "optimizer=adamw", "scheduler=multistep"],
    ["regularizer=decoupled_mixup", "regularizer.policy_options={decay: 2.0, size: 3}"],
    ["~optimizer.weight_decay", "+optimizer.weight_decay=0.1"],
    ["~scheduler", "+optimizer.options={a: [1, 2]}", "++trainer.max_epochs=2", "++trainer.other=x"],
    ["callbacks=early_stopping", "callbacks.early_stopping.patience=3", "logger=none"],
    ["logger=[wandb,csv]", "accelerator=ddp_cpu", "accelerator.threads=1"],
    ["++artifacts.teacher.overrides=['regularizer=none','run_name=\\'a b\\'']"],
    ["dataset=image_folder", "dataset.root='a, b = {c}'", "run_name=null"],
    ["optimizer.lr=${optimizer.weight_decay}", "seeds.order=5"],
]


@pytest.mark.parametrize("overrides", SAMPLE, ids=" ".join)
def test_a_configuration_is_the_one_that_hydra_composes(compose, overrides):
    expected = OmegaConf.to_container(compose_config(overrides), resolve=False)
    for _ in range(2):  # the second time from what is remembered of the first
        assert OmegaConf.to_container(compose.compose(overrides), resolve=False) == expected


def test_what_is_remembered_is_not_changed_by_who_got_it(compose):
    first = compose.compose(["regularizer=mixup", "regularizer.alpha=0.2"])
    first.trainer.max_epochs = 99
    assert compose.compose(["regularizer=mixup"]).regularizer.alpha == 1.0
    assert compose.compose(["regularizer=mixup"]).trainer.max_epochs == 10


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["regularizer=mixupp"], "There is no regularizer 'mixupp'. Did you mean mixup"),
        (["optimizer.lrr=1"], "Did you mean optimizer.lr"),
        (
            ["seeds.order=1,2"],
            "seeds.order=1,2 stands for several runs; a table lists each as a run of its own",
        ),
        (["regularizer=glob(*)"], "stands for several runs"),
    ],
)
def test_an_override_that_does_not_compose(compose, overrides, expected):
    with pytest.raises(UserError) as refused:
        compose.compose(overrides)
    assert expected in str(refused.value)


def test_later_overrides_win_and_each_is_said_once(plan):
    scale = {"small": {"seeds": 1, "overrides": [*QUICK, "optimizer.lr=0.1", "trainer.max_epochs=1"]}}
    run = {
        "overrides": ["regularizer=mixup", "optimizer.lr=0.2"],
        "at": {"small": ["optimizer.lr=0.3", "regularizer.alpha=0.5"]},
    }
    mine = table({"run": run}, scales=scale)
    made = plan(mine).runs["run-s0"]
    assert made.overrides == [
        *QUICK,
        "trainer.max_epochs=1",
        "regularizer=mixup",
        "optimizer.lr=0.3",
        "regularizer.alpha=0.5",
        "seed=0",
    ]
    assert made.command == f"python train.py {' '.join(made.overrides)}"
    made = plan(mine, overrides=["optimizer.lr=0.4", "dataset=mnist5k"]).runs["run-s0"]
    assert (made.config["optimizer"]["lr"], made.config["dataset"]["name"]) == (0.4, "mnist5k")
    assert made.overrides.count("dataset=mnist5k") == 1
    assert "dataset=digits" not in made.overrides


def test_of_overrides_with_one_key_the_last_stays_in_its_place():
    assert _last_of_each(["a=1", "b=2", "a=3"]) == ["b=2", "a=3"]
    assert _last_of_each(["x.y=1", "x={y: 2}", "x.y=1"]) == ["x={y: 2}", "x.y=1"]
    # What adds or deletes is not what sets: each may be needed for the next.
    assert _last_of_each(["+a=1", "a=2", "~b", "+b=3", "++c=1", "++c=2"]) == [
        "+a=1",
        "a=2",
        "~b",
        "+b=3",
        "++c=2",
    ]


def test_what_a_table_adds_a_user_can_set(plan):
    mine = table({"run": ["+optimizer.mine=1", "~optimizer.weight_decay"]})
    config = plan(mine, overrides=["optimizer.mine=2", "+optimizer.weight_decay=5"]).runs["run-s0"].config
    assert (config["optimizer"]["mine"], config["optimizer"]["weight_decay"]) == (2, 5)


NASTY = [
    "it's", "a\\", "a\\\\", "\\'", "a\\'b\\", "\\\\'", "x\\n", '"both" \'quotes\'', "a,b", "[x]", "{a: 1}", "(a)",
    "", "é—😀", "a=b", "a:b", "${seed}", "$x", "#", "!", "null", "1", "true", "1e-3", "new\nline", "tab\t", "*?", "~/x",
    "a;b&c|d>e`f`", " a ",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_quoting_comes_through_hydras_own_parser(text):
    parse = OverridesParser.create().parse_override
    assert parse(f"key={quoted_value(text)}").value() == text
    assert parse(f"key={hydra_list([text, 'b', text])}").value() == [text, "b", text]
    inside = f"key={hydra_list([text])}"  # as the overrides of a maker stand in those of its user
    assert parse(f"key={hydra_list([inside])}").value() == [inside]


@pytest.mark.parametrize("text", [f"run_name={quoted_value(text)}" for text in NASTY])
def test_a_printed_command_comes_through_a_shell(text):
    command = PlannedRun("run", 1, [text, "seed=1"], {}, "").command
    assert shlex.split(command) == ["python", "train.py", text, "seed=1"]


def test_one_run_for_two_names_and_many_cells(plan):
    runs = {
        "plain": ["regularizer=none"],
        "same": ["regularizer=none", "optimizer.lr=0.05"],
        "other": ["optimizer.lr=1"],
    }
    cells = [
        {"row": "plain", "column": "accuracy", "run": "plain"},
        {"row": "plain", "column": "nll", "run": "plain", "value": {"metric": "test/nll"}},
        {"row": "same", "column": "accuracy", "run": "same"},
        {"row": "other", "column": "accuracy", "run": "other"},
        {"row": "other", "column": "nll", "why": "No reason."},
    ]
    found = plan(table(runs, cells), hashed=True)
    assert len(found.runs) == 4  # two runs, two seeds
    assert all(key == run.hash and len(key) == 16 for key, run in found.runs.items())
    first = found.runs[found.cells[0].runs[0][0]]
    assert first.cells == ["plain / accuracy", "plain / nll", "same / accuracy"]
    assert found.cells[2].runs == found.cells[0].runs
    assert found.cells[3].runs != found.cells[0].runs
    assert (found.cells[4].state, found.cells[4].why, found.cells[4].runs) == (
        "not runnable",
        "No reason.",
        {},
    )
    assert found.seeds == [0, 1]


def test_seeds_and_the_streams_that_do_not_vary(plan):
    scales = {"small": {"seeds": [4, 5], "overrides": QUICK}}
    found = plan(table({"run": ["regularizer=none"]}, scales=scales, vary=["init", "order"]), seeds=[5, 6])
    assert list(found.runs) == ["run-s5", "run-s6"]
    run = found.runs["run-s6"]
    assert run.overrides[-4:] == ["seeds.data=4", "seeds.noise=4", "seeds.evaluation=4", "seed=6"]
    assert run.config["seed"] == 6
    assert run.config["seeds"] == {"data": 4, "noise": 4, "init": None, "order": None, "evaluation": 4}
    # What is printed composes to what was planned, which leaves out how a run is shown.
    printed = OmegaConf.to_container(compose_config(run.overrides), resolve=True)
    assert {key: printed[key] for key in printed if key not in SHOWN} == run.config


ARTIFACTS = {
    "base": ["regularizer=none", f"run_name={quoted_value('it is a: base, ')}"],
    "teacher": {"overrides": ["regularizer=mixup"], "artifacts": {"start": {"run": "base"}}},
    "student": {
        "overrides": ["regularizer=cutmix"],
        "artifacts": {
            "teacher": {"run": "teacher"},
            "other": {"file": "a b's.ckpt", "sha256": "1" * 63 + "e"},
        },
    },
}


def test_makers_come_before_users_and_have_their_seed(plan):
    found = plan(table(ARTIFACTS, [{"row": "student", "column": "c", "run": "student"}]))
    assert list(found.runs) == [
        f"{name}-s{seed}" for seed in (0, 1) for name in ("base", "teacher", "student")
    ]
    student, teacher, base = (found.runs[f"{name}-s1"] for name in ("student", "teacher", "base"))
    assert (student.makers, teacher.makers, base.makers) == (
        {"teacher": "teacher-s1"},
        {"start": "base-s1"},
        {},
    )
    assert (student.cells, teacher.cells) == (["student / c"], [])
    artifacts = compose_config(student.overrides).artifacts
    assert artifacts.teacher.overrides == teacher.overrides
    assert artifacts.other == {"file": "a b's.ckpt", "sha256": "1" * 63 + "e"}
    assert compose_config([*artifacts.teacher.overrides]).artifacts.start.overrides == base.overrides


def test_a_change_of_a_maker_changes_its_users_and_no_others(plan):
    def hashes(**change):
        runs = {**ARTIFACTS, "base": ["regularizer=none"], "alone": ["regularizer=fmix"], **change}
        cells = [{"row": name, "column": "c", "run": name} for name in ("student", "alone")]
        found = plan(table(runs, cells), seeds=[0], hashed=True)
        return {run.name: key for key, run in found.runs.items()}

    before = hashes()
    after = hashes(base=["regularizer=none", "optimizer.lr=0.3"])
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"base", "teacher", "student"}
    file = {"overrides": ["regularizer=cutmix"], "artifacts": {
        "teacher": {"run": "teacher"}, "other": {"file": "elsewhere.ckpt", "sha256": "1" * 63 + "e"}}}  # fmt: skip
    assert hashes(student=file) == before  # where it lies does not count
    file["artifacts"]["other"]["sha256"] = "2" * 64
    assert {name for name, key in hashes(student=file).items() if key != before[name]} == {"student"}


GRID = [{"row": row, "column": column, "run": row} for row in ("none", "mixup") for column in ("a", "b")]
GRID_RUNS = {"none": ["regularizer=none"], "mixup": ["regularizer=mixup"]}


@pytest.mark.parametrize(
    ("only", "asked"),
    [
        (["none/a"], ["none / a"]),
        (["b"], ["none / b", "mixup / b"]),
        (["mixup", "none/b"], ["none / b", "mixup / a", "mixup / b"]),
    ],
)
def test_only_some_cells(plan, only, asked):
    found = plan(table(GRID_RUNS, GRID), only=only)
    assert [f"{c.cell.row} / {c.cell.column}" for c in found.cells if c.runs] == asked
    assert {c.state for c in found.cells if not c.runs} == {"not asked for"}


def test_rows_and_columns_of_a_scale(plan):
    scales = {
        "small": {"seeds": 1, "overrides": QUICK, "rows": ["mixup"], "columns": ["b"]},
        "paper": {"seeds": 1, "runnable": False, "why": "The data is not public."},
    }
    mine = table(GRID_RUNS, GRID, scales=scales)
    assert [c.state for c in plan(mine).cells] == ["not at this scale"] * 3 + [""]
    paper = plan(mine, "paper")
    assert {(c.state, c.why) for c in paper.cells} == {("not runnable", "The data is not public.")}
    assert paper.runs == {}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scale": "smal"}, "There is no scale of my_paper/first 'smal'. Did you mean small"),
        ({"only": ["mixup/c"]}, "There is no cell of my_paper/first 'mixup/c'. Did you mean mixup/"),
        ({"overrides": ["optimizer.lrr=1"]}, "Did you mean optimizer.lr"),
        ({"overrides": ["seed=3"]}, "seed=3 can't be an override of a table's run: seeds=[…]"),
        ({"overrides": ["+ckpt_path=x.ckpt"]}, "ckpt_path=x.ckpt can't be an override of a table's run"),
        ({"overrides": ["test_only=true"]}, "a table's runs are trained"),
        ({"overrides": ["resume=runs/x"]}, "the same command goes on"),
    ],
)
def test_requests_with_a_mistake(plan, options, expected):
    with pytest.raises(UserError) as refused:
        plan(table(GRID_RUNS, GRID), **options)
    assert expected in str(refused.value)


def test_a_function_that_is_not_there_is_said_before_anything_is_run(plan):
    cells = [{"row": "r", "column": "c", "run": "none", "value": {"function": "regbench.nowhere.f"}}]
    with pytest.raises(UserError, match=r"regbench\.nowhere\.f of a cell's value can't be imported"):
        plan(table(GRID_RUNS, cells))


def test_data_is_read_once_for_each_set(compose):
    read = []

    def fingerprint(dataset):
        read.append((dataset["name"], dataset["root"]))
        return str(len(read))

    runs = {
        "a": ["optimizer.lr=1"],
        "b": ["optimizer.lr=2"],
        "c": ["dataset=mnist5k"],
        "d": ["dataset.root=x"],
    }
    make_plan(table(runs), "small", compose, fingerprint=fingerprint)
    assert read == [("digits", None), ("mnist5k", None), ("digits", "x")]
