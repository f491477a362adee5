"""`regbench compare`: the table that a request makes, what it refuses, and a comparison from command to report."""

import dataclasses
import json
import sys

import pytest
import yaml

from regbench import cli, registry
from regbench.errors import UserError
from regbench.tables.compare import METRIC, prepare

QUICK = ["dataset=digits", "backbone=mlp", "trainer.max_epochs=1", "logger=none", "accelerator=cpu",
         "accelerator.threads=1"]  # fmt: skip


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(<arguments>) → the table's file as a mapping."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> dict:
        passed, _ = prepare([*QUICK, *arguments])
        [file] = (argument.removeprefix("table=") for argument in passed if argument.startswith("table="))
        return yaml.safe_load((tmp_path / file).read_text())

    return call


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        prepare([*QUICK, *arguments])
    return str(caught.value)


def test_a_request_becomes_a_table(made, tmp_path):
    table = made(
        "regularizer=none,mixup,cutmix", "seeds=[3,4]", "mixup.alpha=0.2,1.0", "cutmix.alpha=0.5", "name=mine"
    )
    assert (tmp_path / "reports" / "compare" / "mine.yaml").is_file()
    assert table["rows"] == {
        "none": "none",
        "mixup-1": "mixup (alpha=0.2)",
        "mixup-2": "mixup (alpha=1.0)",
        "cutmix": "cutmix (alpha=0.5)",
    }
    assert table["runs"]["mixup-2"]["overrides"] == ["regularizer=mixup", "regularizer.alpha=1.0"]
    assert table["runs"]["none"]["overrides"] == ["regularizer=none"]
    assert table["scales"]["compare"]["seeds"] == [3, 4]
    assert table["scales"]["compare"]["overrides"] == QUICK
    assert table["ranking"]["methods"] == {
        "none": ["none"],
        "mixup": ["mixup-1", "mixup-2"],
        "cutmix": ["cutmix"],
    }
    assert table["ranking"]["baseline"] == "none"


def test_an_option_with_several_values_is_a_setting_of_each_method(made):
    table = made("regularizer=cutmix,mixup", "optimizer.lr=0.1,0.2", "mixup.alpha=choice(0.2,1.0)")
    assert table["ranking"]["methods"]["cutmix"] == ["cutmix-1", "cutmix-2"]
    assert [table["rows"][f"mixup-{i}"] for i in range(1, 5)] == [
        "mixup (optimizer.lr=0.1, alpha=0.2)",
        "mixup (optimizer.lr=0.1, alpha=1.0)",
        "mixup (optimizer.lr=0.2, alpha=0.2)",
        "mixup (optimizer.lr=0.2, alpha=1.0)",
    ]
    assert table["ranking"]["baseline"] == "cutmix"  # none is not among them: the first


def test_more_seeds_are_the_same_comparison_and_other_settings_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in (["seeds=2"], ["seeds=3", "runs_dir=elsewhere"], ["baseline=mixup"], ["mixup.alpha=0.3"]):
        prepare([*QUICK, "regularizer=none,mixup", *more])
    assert len(list(tmp_path.glob("reports/compare/digits-*.yaml"))) == 3


def test_what_concerns_the_sweep_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = ["runs_dir=elsewhere", "retries=3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    passed, results = prepare([*QUICK, "regularizer=none,mixup", "name=a", "reports_dir=there", *own])
    assert passed == ["table=there/compare/a.yaml", "scale=compare", "reports_dir=there", *own]
    assert str(results) == "there/compare/a/compare/results.json"
    table = yaml.safe_load((tmp_path / "there" / "compare" / "a.yaml").read_text())
    assert table["ranking"]["command"] == f"regbench compare {' '.join(QUICK)} regularizer=none,mixup name=a"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Which methods?"),
        (["regularizer=none"], "two methods or more"),
        (["regularizer=none,mixup,none"], "each once"),
        (["regularizer=none,mixpu"], "Did you mean mixup"),
        (["regularizer=none,mixup", "baseline=cutmix"], "There is no baseline 'cutmix'"),
        (
            ["regularizer=none,mixup", "cutmix.alpha=0.1"],
            "cutmix is not compared; the methods are none, mixup",
        ),
        (["regularizer=none,mixup", "mixup.alhpa=0.1"], "Did you mean regularizer.alpha"),
        (["regularizer=none,mixup", "dataset.val_fraction=0"], "dataset.val_fraction=0.1"),
        (["regularizer=none,mixup", "dataset.val_fraction=0.1,0.2"], "dataset.val_fraction=0.2"),
        (["regularizer=none,mixup", "backbone=mlp,small_cnn"], "Set backbone="),
        (["regularizer=none,mixup", "seeds=0"], "seeds=0"),
        (["regularizer=none,mixup", "seeds=[1"], "seeds=[1 is no override"),
        (["regularizer=none,mixup", "seeds=1,2"], "seeds=1,2: it is a number of seeds"),
        (["regularizer=none,mixup", "scale=small"], "takes no scale="),
        (["regularizer=none,mixup", "--config-dir=x"], "takes key=value"),
        (["regularizer=none,mixup", "name=a/b"], "name=a/b"),
        (["regularizer=none,mixup", "trainer.max_epochs=0"], "trainer.max_epochs=0"),
        (["regularizer=none,mixup", "reports_dir=/dev/null"], "can't be written"),
    ],
)
def test_mistakes_are_said_before_anything_runs(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(*arguments)
    assert not list(tmp_path.iterdir())


def test_methods_of_different_tasks_are_refused(monkeypatch):
    other = dataclasses.replace(registry.find("mixup"), task="denoising")
    monkeypatch.setitem(registry.entries(), "mixup", other)
    assert "none does classification, mixup does denoising" in refused("regularizer=none,mixup")


def test_methods_of_a_task_without_a_ranking_are_refused(monkeypatch):
    assert METRIC.keys() < registry.TASKS.keys()
    for slug in ("none", "mixup"):
        other = dataclasses.replace(registry.find(slug), task="restoration")
        monkeypatch.setitem(registry.entries(), slug, other)
    assert "Methods of restoration have no validation accuracy" in refused("regularizer=none,mixup")


@pytest.mark.slow
def test_a_comparison_from_command_to_report(tmp_path, monkeypatch, capsys):
    """Three methods, one with two settings, over three seeds; again, nothing is run and nothing changes."""
    monkeypatch.setattr(sys, "argv", ["regbench"])
    monkeypatch.chdir(tmp_path)
    command = [
        "compare",
        *QUICK,
        "regularizer=none,mixup,label_smoothing",
        "mixup.alpha=0.2,1.0",
        "seeds=3",
        "name=mine",
    ]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "12 runs, 0 of them finished" in printed
    assert "Best on validation: " in printed

    report = tmp_path / "reports" / "compare" / "mine" / "compare"
    results = json.loads((report / "results.json").read_text())
    ranking = results["ranking"]
    assert ranking["seeds"] == [0, 1, 2]
    assert {line["method"]: line["budget"] for line in ranking["methods"]} == {
        "none": 1,
        "mixup": 2,
        "label_smoothing": 1,
    }
    files = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/tables/*/result.json")
    }
    means = {cell["row"]: cell["mean"] for cell in results["cells"]}
    for line in ranking["methods"]:
        cell = next(cell for cell in results["cells"] if cell["row"] == line["setting"])
        own = [files[keys[0]] for keys in cell["runs"].values()]
        # One epoch: its validation value is what metrics.csv has of it.
        curves = [
            (tmp_path / "runs/tables" / keys[0] / "metrics.csv").read_text() for keys in cell["runs"].values()
        ]
        measured = [
            float(dict(zip(*(row.split(",") for row in c.split()[:2]), strict=True))["val/accuracy"])
            for c in curves
        ]
        assert line["mean"] == pytest.approx(100 * sum(measured) / 3, abs=1e-4)
        assert line["test"]["mean"] == pytest.approx(
            100 * sum(r["metrics"]["test/accuracy"] for r in own) / 3, abs=1e-4
        )
        assert all(
            r["steps"] == -(-r["data"]["train"] // 128) or r["steps"] == r["data"]["train"] // 128
            for r in own
        )
        middle = sorted(1000 * r["fit_s"] / r["steps"] for r in own)[1]
        assert line["step_ms"] == pytest.approx(middle, rel=0.01)
    assert ranking["methods"][0]["mean"] == max(means.values())
    # The test values of the setting that was not chosen are not told.
    chosen = {line["setting"] for line in ranking["methods"]}
    told = {run["name"] for run in results["runs"].values() if "test/accuracy" in run["metrics"]}
    assert told == chosen
    assert len(chosen) == 3
    page = (report / "index.html").read_text()
    for line in ranking["methods"]:
        assert line["label"] in page
    assert (report / "ranking.csv").read_text().count("\n") == 4
    assert (report / "ranking.tex").read_text().count("\\\\") == 4

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/tables/*/result.json")}
    assert cli.main(command) == 0
    assert "12 runs, 12 of them finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/tables/*/result.json")} == before
    again = json.loads((report / "results.json").read_text())
    assert again == results | {"made": again["made"]}

    # One seed of the same runs ranks and decides nothing; status alone ranks nothing.
    assert cli.main([*command, "status=true"]) == 0
    assert "Best on validation" not in capsys.readouterr().out
    assert cli.main([*(a for a in command if a != "seeds=3"), "seeds=1"]) == 0
    printed = capsys.readouterr().out
    assert "4 runs, 4 of them finished" in printed
    assert "One seed ranks the methods and decides nothing" in printed
    one = json.loads((report / "results.json").read_text())["ranking"]
    assert {line["verdict"] for line in one["methods"]} == {"baseline", "undecided"}
