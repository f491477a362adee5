"""What goes into docs/results and the papers' pages, and what is refused there."""

import json
import re

import pytest

from regbench.errors import UserError
from regbench.tables import published
from regbench.tables.published import load_results, publish, show_tables

PAGE = "# A paper\n\nBefore.\n\n<!-- results:first/small -->\n<!-- /results -->\n\nAfter.\n"


def results(scale="small", mean=75.0, state="done", table="first") -> dict:
    cell = {"row": "plain", "column": "c", "published": None, "state": "done", "why": "", "values": {"0": mean},
            "runs": {"0": ["a1"]}, "mean": mean, "sd": None, "seeds": 1, "deterministic": False,
            "reduction": "test/accuracy", "curve": None}  # fmt: skip
    run = {"name": "plain", "cell": "plain / c", "cells": ["plain / c"], "seed": 0, "state": state, "stale": False,
           "metrics": {"test/accuracy": mean / 100}, "duration_s": 2.0, "config_hash": "a1", "commit": "c", "code": "d",
           "machine": "2 cores", "device": "cpu", "command": "python train.py"}  # fmt: skip
    return {
        "format": 1,
        "slug": "my_paper",
        "table": table,
        "scale": scale,
        "title": "A title",
        "about": "",
        "paper": None,
        "metric": "test/accuracy",
        "unit": "percent",
        "direction": "max",
        "data": ["digits"],
        "rows": [{"key": "plain", "label": "Plain λ"}],
        "columns": [{"key": "c", "label": "Top-1"}],
        "row_title": "",
        "column_title": "",
        "cells": [cell],
        "claims": [],
        "runs": {"a1": run},
        "command": "python scripts/reproduce.py table=my_paper/first",
        "made": "2026-01-02",
        "versions": {},
        "cost_s": 2.0,
    }


@pytest.fixture
def docs(tmp_path, monkeypatch):
    """The docs folder of a checkout."""
    (tmp_path / "docs" / "papers").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(published, "docs_dir", lambda: tmp_path / "docs")
    return tmp_path / "docs"


def test_where_the_data_lies_is_not_published(docs):
    made = results()
    made["command"] += " dataset.root=../my/data seeds=3"
    made["runs"]["a1"]["command"] += (
        " dataset.root=/home/me/data logger=none 'x=[\"dataset.root=/home/me/data\"]'"
    )
    publish(made)
    text = (docs / "results" / "my_paper" / "first" / "small.json").read_text()
    found = json.loads(text)
    assert found["command"].endswith("table=my_paper/first dataset.root=<folder> seeds=3")
    assert "data " not in text.replace('"data"', "")
    assert "logger=none 'x=[\"dataset.root=<folder>\"]'" in found["runs"]["a1"]["command"]


def test_results_are_written_and_shown_in_the_papers_page(docs):
    page = docs / "papers" / "my_paper.md"
    page.write_text(PAGE)
    file = docs / "results" / "my_paper" / "first" / "small.json"
    assert publish(results()) == [file, page]
    assert json.loads(file.read_text(encoding="utf-8")) == results()
    assert "λ" in file.read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# A paper\n\nBefore.\n\n<!-- results:first/small -->\n")
    assert text.endswith("<!-- /results -->\n\nAfter.\n")
    assert "| Plain λ | 75.0 " in text
    publish(results(mean=50.0))
    assert "75.0" not in page.read_text(encoding="utf-8")
    assert "| Plain λ | 50.0 " in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", [None, "# A page without markers\n", PAGE.replace("first/small", "first/smaller")]
)
def test_a_page_that_does_not_ask_for_them_stays_as_it_is(docs, text):
    page = docs / "papers" / "my_paper.md"
    if text is not None:
        page.write_text(text)
    assert publish(results()) == [docs / "results" / "my_paper" / "first" / "small.json"]
    assert (page.read_text() if page.exists() else None) == text


@pytest.mark.parametrize("state", ["left", "running", "failed", "blocked", "interrupted"])
def test_unfinished_results_are_not_published(docs, state):
    with pytest.raises(UserError, match="publish=true wants every run finished"):
        publish(results(state=state))
    assert not (docs / "results").exists()


def test_without_a_checkout_nothing_is_published(docs):
    (docs.parent / "pyproject.toml").unlink()
    with pytest.raises(UserError, match="installed from a wheel"):
        publish(results())


def test_of_two_results_of_one_table_and_scale_the_later_folder_counts(tmp_path):
    for folder, mean, scale in [("a", 1.0, "small"), ("a", 2.0, "paper"), ("b", 3.0, "small")]:
        path = tmp_path / folder / "my_paper" / "first" / f"{scale}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results(scale, mean)))
    found = {r["scale"]: r["cells"][0]["mean"] for r in load_results([tmp_path / "a", tmp_path / "b"])}
    assert found == {"small": 3.0, "paper": 2.0}
    assert load_results([tmp_path / "nothing"]) == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"slug": "a"}', "3"])
def test_a_file_that_holds_no_results(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json holds no results of a table .*Remove it, or make it anew"):
        load_results([tmp_path])


def test_every_table_is_listed_with_its_scales(capsys):
    show_tables()
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("decoupled_mixup/cifar100 "))
    assert "Top-1 accuracy on CIFAR-100, ResNet-18" in line
    assert re.search(r"smoke \(1\), small \(\d\), medium \(3\)", line)
    (line,) = (line for line in lines if line.startswith("decoupled_mixup/imagenet "))
    assert "(small)" in line  # not runnable
