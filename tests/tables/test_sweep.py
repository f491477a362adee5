"""Sweeps as a user runs them: what is shared, what resumes, what fails, and what a SIGKILL leaves."""

import csv
import hashlib
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import warm
from regbench.tables.plan import composer, make_plan
from regbench.tables.spec import load_table
from regbench.tables.sweep import Request, run_plan
from support import ROOT, read_result

TWO = {"none": ["regularizer=none"], "smooth": ["regularizer=label_smoothing"]}
CELLS = [{"row": "none", "column": "a", "run": "none"}, {"row": "smooth", "column": "a", "run": "smooth"}]


def values(results: dict) -> dict:
    return {(cell["row"], cell["column"]): cell["values"] for cell in results["cells"]}


def test_a_table_is_run_reported_and_never_run_again(sweeps, command, tmp_path):
    table = sweeps.table(TWO, CELLS, seeds=2)
    first = sweeps.run(table)
    assert "4 runs, 0 of them finished" in first
    results = sweeps.results()
    assert [cell["state"] for cell in results["cells"]] == ["done", "done"]
    files = sweeps.result_files()
    assert len(files) == 4
    for cell in results["cells"]:
        for seed, (key,) in cell["runs"].items():
            assert cell["values"][seed] == pytest.approx(
                100 * files[key]["metrics"]["test/accuracy"], abs=1e-4
            )
            assert files[key]["seed"] == int(seed)
    # A cell's printed command gives the run's numbers by itself.
    key = results["cells"][1]["runs"]["1"][0]
    arguments = results["runs"][key]["command"].split()[2:]
    alone = command(*arguments, "logger=none", "progress=none", "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    assert read_result(tmp_path / "alone")["metrics"] == files[key]["metrics"]

    # The same table again, and another with a run in common and in other words, run nothing that is finished.
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/result.json")}
    harmless = ["dataset.root=elsewhere", "trainer.log_every_n_steps=7"]
    assert "4 runs, 4 of them finished" in sweeps.run(table, *harmless)
    runs = {"plain": ["regularizer=none", "seeds.data=1"], "more": ["regularizer=none", "optimizer.lr=0.1"]}
    cells = [{"row": "r", "column": name, "run": name} for name in runs]
    other = sweeps.table(runs, cells, seeds=[1], name="other")
    assert "2 runs, 1 of them finished" in sweeps.run(other)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(sweeps.result_files()) == 5


def test_a_failing_run_is_retried_then_shown_and_the_rest_goes_on(sweeps):
    runs = {"flaky": ["regularizer=flaky"], "none": ["regularizer=none"]}
    cells = [{"row": name, "column": "a", "run": name} for name in runs]
    table = sweeps.table(runs, cells, seeds=2)
    sweeps.fail.touch()
    output = sweeps.run(table, "retries=2", expect=1)
    assert sweeps.noted().count("flaky 0") == 6  # two seeds, each three times
    flaky, none = sweeps.results()["cells"]
    assert (flaky["state"], none["state"]) == ("failed", "done")
    assert "told to fail" in flaky["why"]
    log = flaky["why"].partition("log: ")[2].rstrip(")")
    assert "RuntimeError: told to fail" in Path(log).read_text()
    assert log in output
    # As often as asked means in all: the same command shows it as failed, rerun=failed tries it again.
    sweeps.fail.unlink()
    sweeps.run(table, "retries=2", expect=1)
    assert sweeps.noted().count("flaky 0") == 6
    sweeps.run(table, "rerun=failed")
    assert [cell["state"] for cell in sweeps.results()["cells"]] == ["done", "done"]


ARTIFACT = {
    "teacher": ["regularizer=teacher"],
    "half": {"overrides": ["regularizer=distil"], "artifacts": {"teacher": {"run": "teacher"}}},
    "full": {
        "overrides": ["regularizer=distil", "regularizer.weight=1.0"],
        "artifacts": {"teacher": {"run": "teacher"}},
    },
}
STUDENTS = [{"row": "r", "column": name, "run": name} for name in ("half", "full")]


def test_two_sweeps_at_once_make_the_shared_teacher_once(sweeps):
    table = sweeps.table(ARTIFACT, STUDENTS, seeds=2)
    processes = [sweeps.start(table) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    noted = sweeps.noted()
    assert noted.count("teacher") == 2  # one for each seed
    students = [line for line in noted if line.startswith("distil")]
    assert len(students) == 4  # each student once: two weights, two seeds
    assert len(set(students)) == 2  # the two weights had the same teacher, the two seeds had not
    assert [cell["state"] for cell in sweeps.results()["cells"]] == ["done", "done"]
    # The teacher's weights came through unchanged.
    teachers = [r for r in sweeps.result_files().values() if r["config"]["regularizer"]["name"] == "teacher"]
    assert len(teachers) == 2


def test_train_makes_a_missing_artifact_first_and_says_so(sweeps):
    own = ["regularizer=distil", "accelerator.threads=1", "trainer.max_epochs=1", "logger=none"]
    maker = "++artifacts.teacher.overrides=['regularizer=teacher','trainer.max_epochs=1']"

    def train(*arguments: str):
        return warm.run(
            ROOT / "train.py", (*own, *arguments), cwd=sweeps.folder, environment=sweeps.environment
        )

    first = train(maker)
    assert first.returncode == 0, first.stderr
    assert "The teacher is not there yet: it is trained first" in first.stdout + first.stderr
    again = train(maker)
    assert again.returncode == 0
    assert "trained first" not in again.stdout + again.stderr
    assert sweeps.noted().count("teacher") == 1
    (made,) = (p.parent for p in sweeps.folder.glob("runs/*/result.json"))
    # A checkpoint with its checksum does as well; another checksum is refused before any training.
    file = made / read_result(made)["tested"][0]
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    given = [f"++artifacts.teacher.file={file}", f"++artifacts.teacher.sha256={sha}"]
    assert train(*given).returncode == 0
    wrong = train(given[0], f"++artifacts.teacher.sha256={'0' * 64}")
    assert wrong.returncode == 2
    assert sha in wrong.stderr


def test_users_of_a_maker_that_fails_are_blocked(sweeps):
    runs = {
        "flaky": ["regularizer=flaky"],
        "student": {"overrides": ["regularizer=distil"], "artifacts": {"teacher": {"run": "flaky"}}},
    }
    sweeps.fail.touch()
    output = sweeps.run(
        sweeps.table(runs, [{"row": "r", "column": "c", "run": "student"}]), "retries=0", expect=1
    )
    (cell,) = sweeps.results()["cells"]
    assert cell["state"] == "blocked", output
    assert not [line for line in sweeps.noted() if line.startswith("distil")]


FIT = {"line": {"fit": "line", "x": "optimizer.lr", "y": "test/accuracy", "give": "slope"}}


def test_a_run_feeds_many_cells_and_a_cell_is_a_fit_over_several_runs(sweeps):
    runs = {f"lr{lr}": ["regularizer=none", f"optimizer.lr={lr}"] for lr in (0.01, 0.02, 0.05)}
    cells = [
        {"row": "accuracy", "column": "c", "run": "lr0.01"},
        {"row": "nll", "column": "c", "run": "lr0.01", "value": {"metric": "test/nll"}},
        {"row": "first", "column": "c", "run": "lr0.01", "value": {"curve": "val/accuracy", "epoch": 0}},
        {"row": "slope", "column": "c", "runs": list(runs), "value": FIT["line"]},
    ]
    sweeps.run(sweeps.table(runs, cells))
    files = sweeps.result_files()
    assert len(files) == 3
    points = [(r["config"]["optimizer"]["lr"], 100 * r["metrics"]["test/accuracy"]) for r in files.values()]
    mean_x, mean_y = (sum(p[i] for p in points) / 3 for i in (0, 1))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    found = values(sweeps.results())
    assert found["slope", "c"]["0"] == pytest.approx(slope, rel=1e-5)
    assert found["first", "c"]["0"] > 0
    assert len({tuple(found[row, "c"].items()) for row in ("accuracy", "nll", "first")}) == 3


KILLS = 6
LONG = [
    "regularizer=mixup",
    "backbone=mlp",
    "trainer.max_epochs=6",
    "dataset.train_size=400",
    "dataset.batch_size=50",
]


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(sweeps):
    """A sweep that is killed again and again ends with the undisturbed sweep's numbers, bit for bit."""
    runs = {
        "best": [*LONG, "checkpoint.select=best_val"],
        "last": [*LONG, "checkpoint.select=median_last_10"],
    }
    cells = [{"row": name, "column": "a", "run": name} for name in runs]
    table = sweeps.table(runs, cells, seeds=2)
    sweeps.run(table, runs="undisturbed")
    expected = sweeps.results()
    moments = random.Random(20261125)
    kills = 0
    for _ in range(KILLS):
        kills += sweeps.kill_amid(moments.randint(0, 4), moments.uniform(0.0, 0.3), table, runs="killed")
        # Whatever a kill leaves is whole: a result can be read, or is not there.
        assert all("metrics" in result for result in sweeps.result_files("killed").values())
    assert kills >= KILLS // 2
    sweeps.run(table, runs="killed")
    assert values(sweeps.results()) == values(expected)
    whole, killed = (sweeps.result_files(name) for name in ("undisturbed", "killed"))
    assert set(whole) == set(killed)
    for key, result in whole.items():
        assert killed[key]["metrics"] == result["metrics"]
        curves = []
        for name in ("undisturbed", "killed"):
            folder = sweeps.folder / name / key
            with (folder / "metrics.csv").open(newline="") as file:
                curves.append(list(csv.DictReader(file)))
            assert not list(folder.rglob("*.part"))
        assert curves[0] == curves[1]
        weights = [
            torch.load(sweeps.folder / name / key / "checkpoints" / "last.ckpt", weights_only=True)[
                "state_dict"
            ]
            for name in ("undisturbed", "killed")
        ]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_result_that_was_cut_short_is_set_aside_and_run_again(sweeps):
    table = sweeps.table({"none": ["regularizer=none"]}, CELLS[:1])
    sweeps.run(table)
    (path,) = sweeps.folder.glob("runs/*/result.json")
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    output = sweeps.run(table)
    assert "is cut short or damaged; it was moved to result.json.damaged-" in output
    assert len(list(path.parent.glob("result.json.damaged-*"))) == 1
    assert read_result(path.parent)["metrics"] == sweeps.results()["runs"][path.parent.name]["metrics"]


def test_results_of_other_code_are_stale_and_run_anew_when_asked(sweeps):
    table = sweeps.table({"none": ["regularizer=none"]}, CELLS[:1])
    sweeps.run(table)
    (path,) = sweeps.folder.glob("runs/*/result.json")
    path.write_text(path.read_text().replace(read_result(path.parent)["code"], "0" * 16))
    assert "1 runs, 1 of them finished" in sweeps.run(table)
    assert sweeps.results()["runs"][path.parent.name]["stale"] is True
    assert "is run anew; what was there lies in" in sweeps.run(table, "rerun=stale")
    assert sweeps.results()["runs"][path.parent.name]["stale"] is False
    assert len(list(sweeps.folder.glob("runs/old/*/result.json"))) == 1


@pytest.mark.slow
def test_a_cell_may_be_a_run_of_two_processes(sweeps):
    runs = {
        "one": ["regularizer=none"],
        "two": ["regularizer=none", "accelerator=ddp_cpu", "accelerator.threads=1"],
    }
    cells = [{"row": name, "column": "a", "run": name} for name in runs]
    sweeps.run(sweeps.table(runs, cells))
    found = {r["device"] for r in sweeps.result_files().values()}
    assert found == {"cpu (1 threads)", "cpu (1 threads) × 2 processes"}
    one, two = (cell["mean"] for cell in sweeps.results()["cells"])
    assert one == pytest.approx(two, abs=0.5)


def test_status_and_dry_run_start_nothing(sweeps):
    table = sweeps.table(TWO, CELLS, seeds=2)
    listed = sweeps.run(table, "dry_run=true", "only=smooth/a")
    commands = [line for line in listed.splitlines() if line.startswith("python train.py ")]
    assert len(commands) == 2
    assert all("regularizer=label_smoothing" in line for line in commands)
    before = sweeps.run(table, "status=true")
    assert "left         4" in before
    assert "not known before the first run is finished" in before
    sweeps.run(table, "only=none")
    after = sweeps.run(table, "status=true")
    assert "done         2" in after
    assert "(2 runs)" in after
    assert len(sweeps.result_files()) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["table=decoupled_mixup/cifar10x"], "Did you mean decoupled_mixup/cifar10"),
        (["table=decoupled_mixup/cifar100", "scale=smal"], "Did you mean small"),
        (["table=decoupled_mixup/cifar100", "scale=smoke", "only=mixup/dm_20"], "Did you mean mixup/dm_20"),
        (["table=decoupled_mixup/cifar100", "scale=smoke", "optimizer.lrr=1"], "Did you mean optimizer.lr"),
        (["table=decoupled_mixup/cifar100", "scale=smoke", "optimizer.lr=1,2"], "stands for several runs"),
        (["table=decoupled_mixup/cifar100", "scale=smoke", "seed=1"], "seeds=["),
        (["table=decoupled_mixup/cifar100", "scale=smoke", "seeds=0"], "seeds=0"),
        (["table=decoupled_mixup/cifar100", "scale=smoke", "rerun=old"], "Known: all, failed, stale"),
        (["table=decoupled_mixup/cifar100", "scale=smoke", "hydra/launcher=joblb"], "regbench[joblib]"),
        (["table=decoupled_mixup/cifar100", "scale=smoke", "runs_dir=/dev/null/runs"], "runs_dir=<folder>"),
        (["table=nowhere.yaml"], "is no file"),
        (["scale=small"], "Which table?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_explained_before_anything_is_run(monkeypatch, capsys, tmp_path, arguments, expected):
    from regbench import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce.py"])
    assert cli.reproduce(arguments) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message


def test_ctrl_c_says_how_to_go_on(sweeps, capsys):
    path = sweeps.table({"none": ["regularizer=none"]}, CELLS[:1]).removeprefix("table=")
    with composer() as compose:
        plan = make_plan(load_table(path), "tiny", compose, fingerprint=lambda dataset: "its content")

    def launch(jobs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, Request(table=path, scale="tiny"), sweeps.folder / "runs", launch)
    assert "The same command goes on with what is left" in capsys.readouterr().out


def test_a_full_disk_is_said(monkeypatch, tmp_path):
    from regbench.errors import UserError
    from regbench.runs import check_runs_dir

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device.*runs_dir=<folder>"):
        check_runs_dir(tmp_path / "runs")


def test_each_worker_takes_a_gpu_of_its_own(monkeypatch, tmp_path):
    from regbench.composing import compose_config
    from regbench.tables import job

    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cfg = compose_config(["accelerator=gpu"])
    held, taken = [], []
    for _ in range(4):  # four workers, each a process with a `_gpu` of its own
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
        monkeypatch.setattr(job, "_gpu", None)
        job.take_gpu(cfg)
        held.append(job._gpu)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["4", "5", "6", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    held[2].release()  # the worker with the third GPU ends
    monkeypatch.setattr(job, "_gpu", None)
    job.take_gpu(cfg)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
    job._gpu.release()
    shutil.rmtree(tmp_path, ignore_errors=True)
