"""train.py from its command line to what it leaves in the run folder, and exact resuming."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from regbench.loggers import History
from support import QUICK, ROOT, check_resume, history, read_result, weights


def test_a_run_leaves_result_config_metrics_and_checkpoints(train):
    code, folder = train(*QUICK, "trainer.max_epochs=2", "seed=3")
    assert code == 0
    result = read_result(folder)
    assert 0 <= result["metrics"]["test/accuracy"] <= 1
    shown = ("accuracy", "accuracy_top5", "nll", "ece", "ece10", "aurc", "eaurc")
    assert {f"test/{name}" for name in shown} == set(result["metrics"])
    assert result["seed"] == 3
    assert result["epochs"] == 2
    assert result["tested"] == ["checkpoints/best.ckpt"]
    assert result["versions"]["torch"] == torch.__version__
    assert result["duration_s"] > 0
    assert result["device"].startswith("cpu")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config == result["config"]
    assert config["trainer"]["max_epochs"] == 2
    assert [row["epoch"] for row in history(folder)] == ["0", "1", "2"]
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


def test_best_val_tests_the_epoch_with_the_highest_validation_accuracy(train):
    _, folder = train(*QUICK, "trainer.max_epochs=5", "optimizer.lr=0.5", "scheduler=constant")
    accuracies = [float(row["val/accuracy"]) for row in history(folder) if row["val/accuracy"]]
    epoch = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    assert epoch == accuracies.index(max(accuracies))


def test_median_of_the_last_ten_epochs(train):
    _, folder = train(
        *QUICK, "trainer.max_epochs=12", "checkpoint.select=median_last_10", "dataset.val_fraction=0"
    )
    tested = [float(row["test/accuracy"]) for row in history(folder) if row["test/accuracy"]]
    result = read_result(folder)
    assert result["tested"] == [f"checkpoints/epoch-{e:04d}.ckpt" for e in range(2, 12)]
    # The history has one row for the test step, whose last value is the last epoch's; the result is the median.
    each = [_test_accuracy(train, folder / "checkpoints" / f"epoch-{e:04d}.ckpt") for e in range(2, 12)]
    middle = sorted(each)[4:6]
    assert result["metrics"]["test/accuracy"] == pytest.approx(sum(middle) / 2)
    assert tested[-1] == pytest.approx(each[-1])


def _test_accuracy(train, checkpoint):
    same_data = ["dataset.val_fraction=0", "checkpoint.select=last"]
    options = [*QUICK, *same_data, "test_only=true", f"ckpt_path={checkpoint}"]
    _, folder = train(*options, run_dir=f"test-{checkpoint.stem}")
    return read_result(folder)["metrics"]["test/accuracy"]


RESUMED = ["regularizer=mixup", "dataset=digits", "backbone=small_cnn", "backbone.width=4", "logger=none",
           "progress=none", "dataset.augment.translate=1", "dataset.train_size=400"]  # fmt: skip


def test_resuming_continues_bit_for_bit(train):
    """An interrupted run, resumed with the whole length, ends where an uninterrupted one ends."""
    check_resume(train, *RESUMED, "trainer.max_epochs=4", after=2)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(train):
    _, first = train(*QUICK, "seed=5", run_dir="a")
    _, again = train(*QUICK, "seed=5", run_dir="b")
    _, other = train(*QUICK, "seed=6", run_dir="c")
    assert all(torch.equal(weights(first)[k], v) for k, v in weights(again).items())
    assert not all(torch.equal(weights(first)[k], v) for k, v in weights(other).items())


def test_a_pinned_stream_does_not_follow_the_seed(train):
    folders = [
        train(*QUICK, f"seed={s}", "seeds.init=7", "optimizer.lr=1e-12", run_dir=str(s))[1] for s in (1, 2)
    ]
    first, second = (weights(folder) for folder in folders)
    key = next(k for k in first if k.endswith("weight"))
    torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=0)


def test_nan_stops_names_the_step_and_keeps_the_last_good_checkpoint(train, capsys):
    options = [
        *QUICK,
        "trainer.max_epochs=3",
        "+callbacks.poison={_target_: support.Poison, epoch: 1, batch: 2}",
    ]
    code, folder = train(*options)
    message = capsys.readouterr().err
    batches = 1295 // 128
    assert code == 2
    assert f"step {batches + 2} (epoch 1, batch 2)" in message
    assert "Traceback" not in message
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path):
    arguments = [*QUICK, "trainer.max_epochs=100000", "progress=lines", f"hydra.run.dir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a shell inherits an ignored SIGINT, which Python then leaves ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"resume={tmp_path / 'run'}" in out
    assert "Traceback" not in err
    assert torch.load(last, weights_only=True)["epoch"] >= 0


def test_multirun_with_hydras_own_launcher(command, tmp_path):
    done = command(
        "--multirun", "regularizer=none,label_smoothing", "seed=1,2", *QUICK, "hydra.sweep.dir=sweep"
    )
    assert done.returncode == 0, done.stderr
    results = sorted(tmp_path.glob("sweep/*/result.json"))
    assert len(results) == 4
    configs = [json.loads(path.read_text())["config"] for path in results]
    assert [(c["regularizer"]["name"], c["seed"]) for c in configs] == [
        ("none", 1), ("none", 2), ("label_smoothing", 1), ("label_smoothing", 2)
    ]  # fmt: skip


def test_history_merges_a_step_and_forgets_what_a_resumed_run_writes_again(tmp_path):
    log = History(tmp_path / "metrics.csv")
    log.log_metrics({"epoch": 0, "a": 1.0}, step=9)
    log.log_metrics({"epoch": 0, "b": 2.0}, step=9)
    log.log_metrics({"epoch": 1, "a": 3.0}, step=19)
    log.log_metrics({"epoch": 1, "b": 4.0}, step=19)
    expected = [
        {"epoch": "0", "step": "9", "a": "1.0", "b": "2.0"},
        {"epoch": "1", "step": "19", "a": "3.0", "b": "4.0"},
    ]
    assert history(tmp_path) == expected
    reopened = History(tmp_path / "metrics.csv")
    reopened.go_on_from(0, 10, {"a": 1.0, "b": 2.0})
    reopened.log_metrics({"epoch": 1, "a": 5.0}, step=19)
    assert history(tmp_path) == [expected[0], {"epoch": "1", "step": "19", "a": "5.0", "b": ""}]


def test_history_gets_the_checkpoints_row_where_a_kill_came_before_it_was_logged(tmp_path):
    log = History(tmp_path / "metrics.csv")
    log.log_metrics({"epoch": 0, "val/a": 1.0}, step=9)
    log.log_metrics({"epoch": 0, "b": 2.0}, step=9)
    log.log_metrics({"epoch": 1, "val/a": 3.0}, step=19)  # killed before b of epoch 1
    reopened = History(tmp_path / "metrics.csv")
    reopened.go_on_from(1, 20, {"val/a": 3.0, "b": 4.0})
    assert history(tmp_path) == [
        {"epoch": "0", "step": "9", "val/a": "1.0", "b": "2.0"},
        {"epoch": "1", "step": "19", "val/a": "3.0", "b": "4.0"},
    ]


def test_multirun_over_every_regularizer_that_a_pattern_names(command, tmp_path):
    pattern = "regularizer=glob(*mixup,exclude=[manifold*,ada*])"
    done = command("--multirun", pattern, "seed=1,2", *QUICK, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text())["config"] for path in sorted(tmp_path.glob("sweep/*/result.json"))]
    assert {(c["regularizer"]["name"], c["seed"]) for c in found} == {
        ("mixup", 1), ("mixup", 2), ("decoupled_mixup", 1), ("decoupled_mixup", 2)
    }  # fmt: skip


def test_an_optuna_search_over_a_regularizers_own_hyperparameters(command, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'regbench[optuna]'")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1",
              "hydra.sweeper.direction=maximize", "hydra.sweep.dir=search"]  # fmt: skip
    space = ["regularizer.eta=tag(log, interval(0.01, 1))", "regularizer.mode=choice(both,less,more)"]
    done = command("--multirun", *search, "regularizer=decoupled_mixup", *space, *QUICK)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load((tmp_path / "search" / "optimization_results.yaml").read_text())
    tried = []
    for path in tmp_path.glob("search/*/result.json"):
        chosen = json.loads(path.read_text())["config"]["regularizer"]
        best = max(float(row["val/accuracy"]) for row in history(path.parent) if row["val/accuracy"])
        tried.append((best, chosen["eta"], chosen["mode"]))
    assert len(tried) == 3
    best = max(value for value, _, _ in tried)
    assert found["best_value"] == pytest.approx(best, abs=1e-6)
    params = found["best_params"]
    of_the_best = [
        (eta, mode) for value, eta, mode in tried if value == best
    ]  # several may have the best value
    assert (params["regularizer.eta"], params["regularizer.mode"]) in of_the_best
