"""Every mistake that a user can mend: one message that says what to do, exit code 2, no traceback."""

import pytest
import torch

from support import QUICK, read_result


@pytest.fixture
def refused(train, capsys):
    """Runs a command that must be refused and returns its message."""

    def call(*overrides: str, run_dir="run") -> str:
        code, _ = train(*overrides, run_dir=run_dir)
        message = capsys.readouterr().err
        assert code == 2, message
        assert "Traceback" not in message
        assert message.startswith("regbench: ")
        return message

    return call


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dataset=cifar1000"], "Did you mean cifar100"),
        (["backbone=smal_cnn"], "Did you mean small_cnn"),
        (["backbone=resnet50"], "backbone=timm backbone.model_name="),
        (["regularizer=mixupp"], "Did you mean mixup"),
        (["optimizer.lrr=1"], "Did you mean optimizer.lr"),
        (["regularizer=red_diff"], "and no label; dataset=digits gives image, label, index."),
        (["regularizer=denoiser"], "mnist5k_pictures"),  # which images can be taken
        (["regularizer=mixup", "regularizer.alhpa=1"], "Did you mean regularizer.alpha"),
        (["datset=digits"], "Did you mean dataset"),
        (["+optimizer.foo=1"], "foo"),
        (["scheduler.warmup_epochs=7"], "shorten it"),
        (["optimizer.lr=0"], "must be positive"),
        (
            ["regularizer=maestro", "regularizer.full_pass=maybe"],
            "regularizer.full_pass=maybe must be true or false",
        ),
        (["trainer.max_epochs=0"], "at least 1"),
        (["trainer.max_epochs=many"], "whole number"),
        (["seed=-1"], "at least 0"),
        (["checkpoint.select=best"], "Did you mean best_val"),
        (["dataset.val_fraction=0"], "checkpoint.select=last"),
        (["dataset.batch_size=5000"], "1295 training images"),
        (["backbone=timm", "backbone.model_name=vit_tiny_patch16_224"], "patches of (16, 16)"),
        (["ckpt_path=nowhere.ckpt"], "is no file"),
        (["test_only=true"], "ckpt_path"),
        (["resume=nowhere"], "is no run folder"),
        (["hydra.run.dir=/dev/null/run"], "hydra.run.dir=<folder>"),
        (["logger=wandb", "logger.wandb.mode=sometimes"], "none of auto, online, offline"),
        (["checkpoint.monitor=val/acc"], "val/accuracy"),
        (["accelerator.precision=33"], "precision"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_explained(refused, overrides, expected):
    assert expected in refused(*QUICK, *overrides)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("accelerator", ["gpu", "ddp", "fsdp"])
def test_a_gpu_that_is_not_there(refused, accelerator):
    assert "accelerator=cpu" in refused(*QUICK, f"accelerator={accelerator}")


def test_a_missing_download_says_what_to_put_where(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody answers there: no network
    message = refused("dataset=cifar100", "backbone=mlp", "logger=none", f"dataset.root={tmp_path / 'data'}")
    assert str(tmp_path / "data") in message
    assert "cifar-100-python" in message


def test_a_checkpoint_of_another_model(refused, train):
    _, folder = train(*QUICK)
    last = folder / "checkpoints" / "last.ckpt"
    message = refused(*QUICK, "backbone=small_cnn", f"ckpt_path={last}", run_dir="other")
    assert "checkpoint of another model" in message
    broken = folder / "broken.ckpt"
    broken.write_bytes(last.read_bytes()[:1000])
    assert "is no checkpoint" in refused(*QUICK, f"ckpt_path={broken}", run_dir="third")


def test_a_checkpoint_that_would_run_code_is_refused(refused, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    assert "is no checkpoint" in refused(*QUICK, f"ckpt_path={tmp_path / 'evil.ckpt'}")
    assert not (tmp_path / "ran").exists()


def test_debug_shows_the_traceback(command):
    done = command(*QUICK, "dataset.batch_size=5000", "debug=true")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_finished_run_is_not_spoiled_by_resuming_it(train, capsys):
    _, folder = train(*QUICK)
    before = read_result(folder)["metrics"]
    code, _ = train(f"resume={folder}")
    assert code == 0
    assert read_result(folder)["metrics"] == before
