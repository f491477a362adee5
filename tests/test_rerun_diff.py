"""`regbench diff` and `regbench rerun`, on folders written by hand and on runs of train.py and of a sweep."""

import json
import sys

import pytest
import yaml

from regbench import cli
from regbench.errors import UserError
from regbench.rerun import prepare
from regbench.run_diff import Row, config_rows, made_by_rows, metric_rows, read_run
from support import QUICK, history, read_result

CONFIG = {
    "seed": 0,
    "optimizer": {"lr": 0.1, "nesterov": False},
    "dataset": {"name": "digits", "root": "here"},
}
RESULT = {
    "metrics": {"test/accuracy": 0.5, "test/nll": 0.1, "test/ece": None},
    "seed": 0,
    "config": CONFIG,
    "duration_s": 1.0,
    "data": {"fingerprint": "d1"},
    "device": "cpu (1 threads)",
    "machine": "2 cores, x86_64",
    "git_commit": None,
    "code": "c1",
    "versions": {"torch": "2.12.0", "numpy": "2.4.6"},
}


@pytest.fixture
def made(tmp_path):
    """made("a", metrics=…) writes a finished run by hand; with finished=False only its config.yaml."""

    def call(name, *, finished=True, config=CONFIG, **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        if finished:
            (folder / "result.json").write_text(json.dumps(RESULT | {"config": config} | changes))
        return folder

    return call


@pytest.fixture
def saved(made):
    """saved("a", overrides) writes an unfinished run with what Hydra leaves of its command line."""

    def call(name, task, hydra=(), sources=()):
        folder = made(name, finished=False)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(task))
        about = {"overrides": {"hydra": list(hydra)}, "runtime": {"config_sources": list(sources)}}
        (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": about}))
        return folder

    return call


def test_configurations_differ_key_by_key_and_harmless_keys_say_so(made):
    other = {
        "seed": 1,
        "optimizer": {"lr": 0.1, "nesterov": False, "momentum": 0.9},
        "dataset": {"name": "digits", "root": "there"},
        "progress": "none",
    }
    assert config_rows(read_run(made("a")), read_run(made("b", config=other))) == [
        Row("optimizer.momentum", "–", "0.9"),
        Row("seed", "0", "1"),
        Row("dataset.root", '"here"', '"there"', "changes no number"),
        Row("progress", "–", '"none"', "changes no number"),
    ]


def test_a_checkpoint_changes_numbers_unless_the_run_went_on_from_its_own(made):
    def rows(name, path):
        run = read_run(made(name, config=CONFIG | {"ckpt_path": path}))
        return [row.note for row in config_rows(start, run)]

    start = read_run(made("start", config=CONFIG | {"ckpt_path": None}))
    assert rows("resumed", "/elsewhere/resumed/checkpoints/last.ckpt") == ["changes no number"]
    assert rows("tuned", "/elsewhere/start/checkpoints/last.ckpt") == [""]


def test_metrics_side_by_side(made):
    left = read_run(made("a"))
    metrics = {"test/accuracy": 0.75, "test/nll": 0.1 + 2**-56, "test/ece": None, "test/new": 1.0}
    assert metric_rows(left, read_run(made("b", metrics=metrics))) == [
        Row("test/accuracy", "0.5", "0.75", "+0.25"),
        Row("test/ece", "not finite", "not finite", "same"),
        Row("test/new", "–", "1", "differs"),
        Row("test/nll", "0.1", "0.1", "+1.39e-17"),  # one bit
    ]


def test_the_command_shows_what_made_the_runs(made, capsys):
    changes = {"code": "c2", "data": {"fingerprint": "d2"}, "versions": {"torch": "2.13.0", "numpy": "2.4.6"}}
    left, right = made("a"), made("b", **changes)
    assert cli.main(["diff", str(left), str(right)]) == 0
    out = capsys.readouterr().out
    assert "The configurations are the same." in out
    assert "The same: commit, device, machine, numpy." in out
    lines = [line.split() for line in out.splitlines()]
    assert ["code", "c1", "c2"] in lines
    assert ["data", "d1", "d2"] in lines
    assert ["torch", "2.12.0", "2.13.0"] in lines
    assert ["test/accuracy", "0.5", "0.5", "same"] in lines


def test_a_result_of_an_older_version_lacks_some_keys(made):
    folder = made("old")
    (folder / "result.json").write_text(
        json.dumps({k: RESULT[k] for k in ("metrics", "seed", "config", "duration_s")})
    )
    rows = {row.name: row for row in made_by_rows(read_run(folder), read_run(made("new")))}
    assert rows["code"] == Row("code", "–", "c1")
    assert rows["torch"] == Row("torch", "–", "2.12.0")


def test_an_unfinished_run_is_compared_by_its_configuration(made, capsys):
    unfinished = made("b", finished=False, config=CONFIG | {"seed": 7})
    assert cli.main(["diff", str(made("a")), str(unfinished)]) == 0
    out = capsys.readouterr().out
    assert f"right: {unfinished} (not finished)" in out
    assert ["seed", "0", "7"] in [line.split() for line in out.splitlines()]
    assert "test/accuracy" not in out


def test_folders_that_hold_no_run(made, tmp_path, capsys):
    def message(folder):
        assert cli.main(["diff", str(made(f"with-{folder.name}")), str(folder)]) == 2
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    cut, broken = made("cut"), made("broken", finished=False)
    (cut / "result.json").write_text('{"metrics": {')
    (broken / "config.yaml").write_text("a: [")
    assert "There is no folder" in message(tmp_path / "nothing")
    assert "neither result.json nor config.yaml" in message(tmp_path / "empty")
    assert "cut short or damaged. Move it away" in message(cut)
    assert "start the run anew" in message(broken)


def test_rerun_takes_the_own_overrides_and_those_given(saved, tmp_path):
    folder = saved("run", ["optimizer=sgd", "optimizer.lr=0.2", "seed=3", "ckpt_path=/models/start.ckpt"])
    earlier, arguments = prepare(folder, ["optimizer=adamw", "seed=4", f"hydra.run.dir={tmp_path / 'new'}"])
    assert earlier is None
    assert arguments == [
        "optimizer.lr=0.2",
        "ckpt_path=/models/start.ckpt",
        "optimizer=adamw",
        "seed=4",
        f"hydra.run.dir='{tmp_path / 'new'}'",
    ]


def test_rerun_leaves_out_what_resumed_the_run(saved):
    own = "ckpt_path='/moved/since/b/checkpoints/last.ckpt'"
    folder = saved("a", ["seed=3", "resume='a'", "ckpt_path='a/checkpoints/last.ckpt'"])
    assert prepare(folder, [])[1][:-1] == ["seed=3"]
    assert prepare(saved("b", ["seed=3", own]), [])[1][:-1] == [
        "seed=3"
    ]  # a sweep's run in several processes
    assert prepare(saved("c", ["seed=3", own]), [])[1][:-1] == ["seed=3", own]  # another run's checkpoint


def test_rerun_keeps_the_user_s_own_config_folder(saved):
    sources = [{"path": "pkg", "provider": "hydra"}, {"path": "/my configs", "provider": "command-line"}]
    hydra = ["hydra.searchpath=[file:///more]", "hydra.sweep.subdir=x", "hydra.run.dir=old"]
    _, arguments = prepare(saved("a", ["experiment=mine"], hydra, sources), [])
    expected = ["--config-dir=/my configs", "hydra.searchpath=[file:///more]", "experiment=mine"]
    assert arguments[:-1] == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["resume=runs/x"], "starts from scratch"),
        (["--multirun"], "overrides only"),
        (["hydra.run.dir={folder}"], "is there already"),
    ],
)
def test_rerun_refuses(saved, overrides, expected):
    folder = saved("run", ["seed=0"])
    with pytest.raises(UserError, match=expected):
        prepare(folder, [override.format(folder=folder) for override in overrides])


def test_rerun_needs_a_run_folder(made, tmp_path, capsys):
    assert cli.main(["rerun", str(made("a"))]) == 2
    assert "no .hydra/overrides.yaml" in capsys.readouterr().err
    assert cli.main(["rerun", str(tmp_path / "nothing")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_rerun_of_a_run_gives_the_same_bits_and_another_seed_others(train, tmp_path, capsys):
    _, folder = train(*QUICK, "regularizer=mixup", "accelerator=cpu", "seed=5")
    before = (folder / "result.json").read_bytes()
    assert cli.main(["rerun", str(folder)]) == 0
    assert "Bit for bit the same: test/accuracy," in capsys.readouterr().out
    (again,) = tmp_path.glob("run-rerun-*")
    assert read_result(again)["metrics"] == read_result(folder)["metrics"]
    assert history(again) == history(folder)
    assert (folder / "result.json").read_bytes() == before

    assert cli.main(["rerun", str(folder), "seed=6", "optimizer=adamw", "hydra.run.dir=other"]) == 0
    out = capsys.readouterr().out
    assert "The metrics are not the same:" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["seed", "5", "6"] in lines
    assert ["optimizer._target_", '"torch.optim.SGD"', '"torch.optim.AdamW"'] in lines
    config = read_result(tmp_path / "other")["config"]
    assert (config["seed"], config["regularizer"]["name"]) == (6, "mixup")


def test_rerun_of_a_sweep_s_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce.py"])
    request = ["table=decoupled_mixup/cifar100", "scale=smoke", "only=mixup/dm_200", "logger=none"]
    assert cli.reproduce([*request, "runs_dir=runs", "reports_dir=reports"]) == 0
    (result,) = (tmp_path / "runs").glob("*/result.json")
    folder = result.parent
    assert cli.main(["rerun", str(folder), "progress=none"]) == 0
    assert "Bit for bit the same: test/accuracy," in capsys.readouterr().out
    (again,) = (tmp_path / "runs").glob(f"{folder.name}-rerun-*")
    config = read_result(again)["config"]
    assert config["run_group"] == "decoupled_mixup"  # it is no run of the table
    assert config["runs_dir"] == str(tmp_path / "runs")  # where artifacts of the table lie

    assert cli.main(["diff", str(folder), str(again)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run_group ")]
    assert len(rows) == 1
    assert rows[0].endswith("changes no number")
