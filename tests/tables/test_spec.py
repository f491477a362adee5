"""A table's file: what it stands for, and that every mistake names file, key and what to do."""

import copy

import pytest
import yaml

from regbench.errors import UserError
from regbench.tables.spec import load_table, read_table, table_files

GOOD = {
    "title": "Plain against mixup",
    "metric": "test/accuracy",
    "unit": "percent",
    "direction": "max",
    "rows": {"plain": "Plain", "mixup": "Mixup"},
    "columns": {"top1": "Top-1"},
    "runs": {
        "plain": {"overrides": ["regularizer=none"]},
        "mixup": {"overrides": ["regularizer=mixup"], "at": {"small": ["trainer.max_epochs=2"]}},
    },
    "cells": [
        {"row": "plain", "column": "top1", "run": "plain"},
        {"row": "mixup", "column": "top1", "run": "mixup"},
    ],
    "published": [{"source": "the paper, table 1", "values": {"plain": {"top1": 76.4}}}],
    "claims": [
        {
            "says": "Mixup beats plain training",
            "kind": "better",
            "left": {"row": "mixup", "column": "top1"},
            "right": {"row": "plain", "column": "top1"},
        }
    ],
    "scales": {name: {"seeds": 2} for name in ("smoke", "small", "paper")},
}


def changed(path: str, value, base=GOOD) -> dict:
    """The good table with one value replaced, or removed for `...`; `path` is dotted, numbers index lists."""
    table = copy.deepcopy(base)
    *above, last = (int(part) if part.isdigit() else part for part in path.split("."))
    node = table
    for part in above:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return table


@pytest.fixture
def read(tmp_path):
    """Writes a table's file and reads it; a string is the file's text."""

    def call(table, **options):
        path = tmp_path / "my_paper" / "first.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(table if isinstance(table, str) else yaml.safe_dump(table, sort_keys=False))
        return read_table(path, **options)

    return call


def test_a_good_file(read):
    table = read(GOOD)
    assert (table.key, table.scales["small"].seeds) == ("my_paper/first", [0, 1])
    assert [cell.runs for cell in table.cells] == [["plain"], ["mixup"]]
    assert table.published_value("plain", "top1") == {
        "value": 76.4,
        "source": "the paper, table 1",
        "approximate": False,
    }
    assert table.published_value("mixup", "top1") is None


def test_of_two_sources_the_first_that_has_a_value_counts(read):
    more = [
        {"source": "figure 2", "approximate": True, "values": {"plain": {"top1": 70}, "mixup": {"top1": 78}}}
    ]
    table = read(changed("published", GOOD["published"] + more))
    assert table.published_value("plain", "top1")["value"] == 76.4
    assert table.published_value("mixup", "top1") == {"value": 78, "source": "figure 2", "approximate": True}


def test_names_that_look_like_numbers(read):
    text = changed("columns", {200: "200 epochs"})
    text["cells"] = [{"row": "plain", "column": 200, "run": "plain"}]
    text["published"] = [{"source": "the paper", "values": {"plain": {200: 76.4}}}]
    text["claims"] = []
    table = read(text)
    assert table.columns == {"200": "200 epochs"}
    assert table.published_value("plain", "200")["value"] == 76.4


CLAIM = "claims.0"
TWO_RUNS = {"row": "mixup", "column": "top1", "runs": ["plain", "mixup"]}
FIT = {"fit": "line", "x": "optimizer.lr", "y": "test/accuracy", "give": "slope"}
MISTAKES = [
    # keys
    ("titel", "x", "There is no key 'titel'. Did you mean title"),
    ("runs.plain.override", ["a=1"], "runs.plain.override: There is no key 'override'. Did you mean overrides"),
    ("cells.0.colum", "x", "Did you mean column"),
    ("published.0.sources", "x", "Did you mean source"),
    ("scales.small.seed", 3, "scales.small.seed: There is no key 'seed'. Did you mean seeds"),
    ("claims.0.over_all", {}, "There is no key 'over_all'. Did you mean over"),
    ("title", ..., "title: is missing"),
    ("metric", ..., "metric: is missing"),
    ("runs", ..., "runs: it is a mapping from a run's name"),
    ("cells", ..., "cells: it is a list of {row, column, run}"),
    ("cells.0.row", ..., "cells.0.row: is missing"),
    ("scales.small.seeds", ..., "scales.small.seeds: is missing"),
    ("claims.0.kind", "beter", "'interior_optimum'"),
    ("direction", "up", "direction: Input should be 'max' or 'min' (it is 'up')"),
    # values
    ("published.0.values.plain.top1", "76.4 %", "published.0.values.plain.top1"),
    ("published.0.values.plain.top1", "76.4 %", "valid number"),
    ("published.0.values.plain.top1", None, "valid number (it is None)"),
    ("published.0.values.plain.top1", float("nan"), "finite number"),
    ("published.0.source", ..., "published.0.source: is missing"),
    ("scales.small.seeds", 0, "scales.small.seeds: List should have at least 1 item"),
    ("scales.small.seeds", [-1], "scales.small.seeds.0: Input should be greater than or equal to 0 (it is -1)"),
    ("scales.small.seeds", [1, 1], "scales.small: a seed is listed twice"),
    ("scales.small.runnable", False, "scales.small: runnable: false needs why"),
    ("vary", ["ordr"], "vary.0: Input should be 'data', 'noise', 'init', 'order' or 'evaluation' (it is 'ordr')"),
    # names
    ("cells.0.row", "plian", "There is no row 'plian'. Did you mean plain"),
    ("cells.0.column", "top2", "There is no column 'top2'. Did you mean top1"),
    ("cells.0.run", "plan", "There is no run 'plan'. Did you mean plain"),
    ("runs.mixup.at", {"smal": []}, "There is no scale (in runs.mixup.at) 'smal'. Did you mean small"),
    ("runs.mixup.artifacts", {"teacher": {"run": "plian"}},
     "There is no run (in runs.mixup.artifacts.teacher) 'plian'. Did you mean plain"),
    ("published.0.values", {"plian": {"top1": 1}}, "There is no row (in published) 'plian'. Did you mean plain"),
    ("published.0.values.plain", {"top2": 1}, "There is no column (in published) 'top2'. Did you mean top1"),
    ("scales.small.rows", ["mixupp"], "There is no row (in scales) 'mixupp'. Did you mean mixup"),
    ("scales.small.columns", ["top"], "There is no column (in scales) 'top'. Did you mean top1"),
    ("claims.0.left.row", "mixupp", "claim 'Mixup beats plain training': the table has no cell mixupp / top1"),
    # cells
    ("cells.1.row", "plain", "cells: plain / top1 is there twice"),
    ("cells.0.run", ..., "cells.0: give run (or runs); a cell that can't be run says why instead"),
    ("cells.0.why", "no code", "cells.0: give run (or runs); a cell that can't be run says why instead"),
    ("cells.0.runs", ["plain"], "cells.0: give run or runs, not both"),
    ("cells.1", TWO_RUNS, "cells.1: several runs need value: {fit: …} or value: {function: …}"),
    ("cells.1", TWO_RUNS | {"value": {"metric": "test/nll"}}, "several runs need value"),
    ("cells.0.value", {}, "cells.0.value: give one of metric, curve"),
    ("cells.0.value", {"metric": "test/nll", "function": "f"}, "give one of metric, curve"),
    ("cells.0.value", {"curve": "val/nll"}, "a curve needs epoch (the value at that epoch) or best_by"),
    ("cells.0.value", {"curve": "val/nll", "epoch": 1, "best_by": "val/nll"}, "a curve needs epoch"),
    ("cells.0.value", {"curve": "val/nll", "best_by": "test/nll"},
     "best_by=test/nll would choose by the test set; choose by a val/ metric"),
    ("cells.0.value", {"metric": "test/nll", "best_by": "val/nll"}, "metric does not go with best_by"),
    ("cells.0.value", {"metric": "test/nll", "bestby": "x"}, "Did you mean best_by"),
    ("cells.0.value", FIT | {"give": "exponent"}, "fit: line needs x, y, and give: slope or intercept"),
    ("cells.0.value", {"fit": "power", "x": "a", "give": "factor"}, "fit: power needs x, y, and give: exponent"),
    # artifacts
    ("runs.mixup.artifacts", {"teacher": {}}, "runs.mixup.artifacts.teacher: give either run"),
    ("runs.mixup.artifacts", {"teacher": {"run": "plain", "file": "x"}}, "give either run"),
    ("runs.mixup.artifacts", {"teacher": {"file": "x.ckpt", "sha256": "abc"}}, "64 hexadecimal digits"),
    ("runs.mixup.artifacts", {"teacher": {"run": "mixup"}}, "runs: mixup starts from mixup, which is a circle"),
    # claims
    ("claims.0.right", {"row": "mixup", "column": "top1"}, "compares the cell mixup / top1 with itself"),
    ("claims.0.left", {"row": "mixup"}, "left has no column: name it in left or give several under over"),
    # each
    ("runs.plain", ["regularizer=none"], "runs.plain: it is a mapping such as {overrides: […]}"),
    ("cells.0", "plain", "cells[0]: it is a mapping such as {row: …, column: …, run: …}"),
    ("runs.plain.each", ["a"], "runs.plain.each: it is {variable: [value, …]}"),
    ("runs.plain.each", {"a": 1}, "runs.plain.each: it is {variable: [value, …]}"),
    ("runs.plain.each", {"a": {"x": 1}}, "runs.plain.each: it is {variable: [value, …]}"),
    ("runs.plain.overrides", ["a=<b>"], "runs.plain: <b> is not in its each, which has nothing"),
    ("cells.0", {"row": "<p>", "each": {"q": ["x"]}}, "cells[0]: <p> is not in its each, which has q"),
    ("runs", {"<p>": {"overrides": [], "each": {"p": ["x", "x"]}}}, "runs: x is there twice"),
    # scales
    ("scales.paper", ..., "scales: paper is missing; every paper's table has smoke, small, paper"),
    ("scales", ..., "scales: smoke is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "expected"), MISTAKES)
def test_a_mistake_names_file_key_and_mend(read, tmp_path, path, value, expected):
    with pytest.raises(UserError) as refused:
        read(changed(path, value))
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'my_paper' / 'first.yaml'}: ")
    assert expected in message
    assert "Traceback" not in message
    assert "Value error" not in message


def test_several_mistakes_are_said_together(read):
    text = changed("runs.plain", {"override": []})
    text |= {"titel": "", "direction": "up", "unite": "", "row": ""}
    with pytest.raises(UserError, match=r"direction: .*; .* and 3 more$"):
        read(text)


def test_a_longer_circle_of_artifacts(read):
    text = changed("runs.plain.artifacts", {"teacher": {"run": "mixup"}})
    text["runs"]["mixup"]["artifacts"] = {"teacher": {"run": "plain"}}
    with pytest.raises(UserError, match="plain starts from mixup starts from plain, which is a circle"):
        read(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: [1", "can't be read as YAML: while parsing a flow sequence"),
        ("title: a\ntitle: b\n", "found duplicate key title"),
        ("- 1\n- 2\n", "holds no table: it should be a mapping with title, rows, columns"),
        ("", "holds no table"),
    ],
)
def test_a_file_that_is_no_table(read, text, expected):
    with pytest.raises(UserError) as refused:
        read(text)
    assert expected in str(refused.value)


def test_a_file_in_another_encoding(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("title: Größe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml can't be read as YAML: .*utf-8"):
        read_table(path)


def test_a_value_that_is_published_twice_is_not_lost_silently(read):
    text = yaml.safe_dump(GOOD).replace("top1: 76.4", "top1: 76.4\n      top1: 99.9")
    with pytest.raises(UserError, match="found duplicate key top1"):
        read(text)


def test_a_users_own_file_has_the_scales_that_the_user_likes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(changed("scales", {"small": {"seeds": 1}})))
    table = load_table(str(path))
    assert list(table.scales) == ["small"]
    assert table.name == "mine"


def test_each_with_a_list_and_with_further_variables(read):
    text = copy.deepcopy(GOOD) | {"published": [], "claims": []}
    text["rows"] = {"mixup": "Mixup", "cutmix": "CutMix"}
    text["columns"] = {"e200": "200", "e400": "400", "none": "None"}
    text["runs"] = {
        "<policy>/<epochs>": {
            "each": {"policy": {"mixup": {"alpha": 1.0}, "cutmix": {"alpha": 0.2}}, "epochs": [200, 400]},
            "overrides": ["regularizer=<policy>", "regularizer.alpha=<alpha>"],
            "at": {"paper": ["trainer.max_epochs=<epochs>"]},
        },
        "<kind>": {"each": {"kind": {"none": None}}, "overrides": ["regularizer=<kind>"]},
    }
    text["cells"] = [
        {
            "row": "<p>",
            "column": "e<e>",
            "run": "<p>/<e>",
            "each": {"p": ["mixup", "cutmix"], "e": [200, 400]},
        },
        {"row": "mixup", "column": "none", "run": "none"},
    ]
    table = read(text)
    assert {name: run.overrides for name, run in table.runs.items()} == {
        "mixup/200": ["regularizer=mixup", "regularizer.alpha=1.0"],
        "mixup/400": ["regularizer=mixup", "regularizer.alpha=1.0"],
        "cutmix/200": ["regularizer=cutmix", "regularizer.alpha=0.2"],
        "cutmix/400": ["regularizer=cutmix", "regularizer.alpha=0.2"],
        "none": ["regularizer=none"],
    }
    assert table.runs["cutmix/400"].at == {"paper": ["trainer.max_epochs=400"]}
    assert [(c.row, c.column, *c.runs) for c in table.cells] == [
        ("mixup", "e200", "mixup/200"),
        ("mixup", "e400", "mixup/400"),
        ("cutmix", "e200", "cutmix/200"),
        ("cutmix", "e400", "cutmix/400"),
        ("mixup", "none", "none"),
    ]


def test_tables_are_found_by_name():
    files = table_files()
    assert files["decoupled_mixup/cifar100"].name == "cifar100.yaml"
    with pytest.raises(
        UserError, match=r"There is no table 'decoupled_mixup/cifar1000'. Did you mean .*cifar100"
    ):
        load_table("decoupled_mixup/cifar1000")
    with pytest.raises(
        UserError, match=r"decoupled_mixup has \d tables; choose table=decoupled_mixup/cifar10 or "
    ):
        load_table("decoupled_mixup")
    with pytest.raises(UserError, match=r"table=nowhere\.yaml is no file"):
        load_table("nowhere.yaml")


def test_a_paper_with_one_table_needs_no_more_than_its_slug(monkeypatch, tmp_path):
    from regbench.tables import spec

    folder = tmp_path / "table" / "my_paper"
    folder.mkdir(parents=True)
    (folder / "only.yaml").write_text(yaml.safe_dump(GOOD))
    monkeypatch.setattr(spec, "config_folders", lambda: [tmp_path])
    assert load_table("my_paper").key == "my_paper/only"


@pytest.mark.parametrize("key", table_files())
def test_every_table_of_regbench_is_in_order(key):
    assert load_table(key).key == key
