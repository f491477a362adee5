"""A run's folder: its state, and what becomes of a result that was cut short."""

import json
from pathlib import Path

import pytest

from regbench.runs import RunFolder

RESULT = {"metrics": {"test/accuracy": 0.5}, "seed": 0, "config": {}, "duration_s": 1.5}


@pytest.mark.parametrize("text", ["[]", "{}", '{"metrics": {}, "seed": 0}', "", "\x00" * 20])
def test_what_is_no_result_is_damaged(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    assert RunFolder(tmp_path).result() is None
    assert len(list(tmp_path.glob("result.json.damaged-*"))) == 1


def test_a_result_that_can_not_be_read_now_stays_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))

    def broken(self, **options):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", broken)
        with pytest.raises(OSError, match="Input/output"):
            RunFolder(tmp_path).result()
    assert RunFolder(tmp_path).result() == RESULT


def test_states_of_a_folder(tmp_path):
    folder = RunFolder(tmp_path / "a1b2")
    assert folder.state() == "left"
    with folder.lock:
        assert folder.state() == "running"
    assert folder.state() == "left"
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints" / "last.ckpt").touch()
    assert folder.state() == "interrupted"
    folder.fail("once")
    assert (folder.state(), folder.failure()["attempts"]) == ("failed", 1)
    folder.fail("twice")
    assert folder.failure() == {"attempts": 2, "error": "twice", "log": str(folder.path / "train.log")}
    folder.forgive()
    assert folder.state() == "interrupted"
    folder.fail("again")
    (folder.path / "result.json").write_text(json.dumps(RESULT))
    assert folder.state() == "done"
    old = folder.set_aside()
    assert old.parent == tmp_path / "old"
    assert (old / "result.json").is_file()
    assert folder.state() == "left"


def test_epochs_that_a_run_has_behind_it(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.epochs_done() == 0
    (tmp_path / "metrics.csv").write_text("epoch,val/accuracy\n")
    assert folder.epochs_done() == 0
    (tmp_path / "metrics.csv").write_text("epoch,val/accuracy\n0,0.1\n1,0.2\n")
    assert folder.epochs_done() == 2
