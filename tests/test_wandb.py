"""What reaches W&B, read back from the offline run's own file; and the choice of loggers."""

import json

import pytest

from regbench.loggers import logged_in_to_wandb
from support import QUICK, wandb_records

ONE_EPOCH = [o for o in QUICK if not o.startswith("logger")]


def test_an_offline_run_holds_config_metrics_images_confusion_and_table(train, tmp_path):
    code, folder = train(*ONE_EPOCH, "regularizer=mixup", "trainer.max_epochs=2", "run_name=my-run",
                         "logger.wandb.group=my-group", "logger.wandb.tags=[a,b]")  # fmt: skip
    assert code == 0
    found = list(wandb_records(folder))
    run = next(record.run for record in found if record.HasField("run"))
    assert (run.display_name, run.run_group, set(run.tags), run.project) == (
        "my-run",
        "my-group",
        {"a", "b"},
        "regbench",
    )
    assert run.run_id == (folder / "wandb_id.txt").read_text()
    config = {}
    for record in found:
        for source in (record.run.config if record.HasField("run") else None, record.config):
            for item in source.update if source is not None else ():
                config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    assert config["regularizer.name"] == "mixup"
    assert config["trainer.max_epochs"] == 2
    logged = {}
    for record in found:
        for item in record.history.item:
            logged.setdefault(item.key or ".".join(item.nested_key), []).append(json.loads(item.value_json))
    assert len([v for v in logged["val/accuracy"] if isinstance(v, float)]) == 2
    assert len(logged["train/loss"]) == 2
    assert {"test/accuracy", "test/nll", "test/ece", "lr"} <= set(logged)
    assert any(key.startswith("train/samples") for key in logged)
    pictures = [p for p in folder.glob("wandb/offline-run-*/files/media/**/*.png") if "samples" in p.name]
    assert 8 < len(pictures) <= 16  # 16 images; W&B keeps equal ones once
    tables = [
        json.loads(p.read_text()) for p in folder.glob("wandb/offline-run-*/files/media/table/**/*.json")
    ]
    columns = {tuple(table["columns"]): table["data"] for table in tables}
    confusion = columns[("Actual", "Predicted", "nPredictions")]
    assert len(confusion) == 100
    assert sum(row[2] for row in confusion) == 359  # each test image once
    final = dict(columns[("metric", "value")])
    result = json.loads((folder / "result.json").read_text())["metrics"]
    assert final == pytest.approx(result)


def test_two_runs_in_one_process_are_two_wandb_runs(train):
    ids = {(train(*ONE_EPOCH, run_dir=name)[1] / "wandb_id.txt").read_text() for name in ("a", "b")}
    assert len(ids) == 2


def test_several_loggers_and_none(train):
    code, folder = train(*ONE_EPOCH, "logger=[wandb,tensorboard]", run_dir="both")
    assert code == 0
    assert list(folder.glob("tensorboard/events.*"))
    assert list(folder.glob("wandb/offline-run-*"))
    code, folder = train(*ONE_EPOCH, "logger=none", run_dir="none")
    assert code == 0
    assert (folder / "metrics.csv").exists()
    assert not (folder / "wandb").exists()


def test_logged_in_is_found_out_from_environment_and_netrc(monkeypatch, tmp_path):
    assert not logged_in_to_wandb()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert logged_in_to_wandb()
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert logged_in_to_wandb()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert not logged_in_to_wandb()
