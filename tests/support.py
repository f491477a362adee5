"""What several tests use: the repository's root, quick settings, readers of results, and Lightning callbacks."""

import csv
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
BLOCK, WHOLE, LAST = 32768, 1, 4  # of W&B's own file
QUICK = ["dataset=digits", "backbone=mlp", "trainer.max_epochs=1", "logger=none", "progress=none"]


def ranks_of_two(monkeypatch) -> Iterator[int]:
    """0, then 1: while one is out, torch.distributed says that this is that process of two."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        yield rank


def read_result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def wandb_records(folder: Path) -> list:
    """The records of the offline run in the folder, once W&B's own process has written a finished run's last one."""
    end = time.monotonic() + 30
    while True:
        records = list(_written_records(folder))
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < end, f"the W&B run in {folder} has {len(records)} records and no end"
        time.sleep(0.1)


def _written_records(folder: Path):
    """W&B's file is a LevelDB log of protobuf messages.

    After a header of 7 bytes come blocks of 32 KiB (the first one is shorter by the header) of pieces, each with
    checksum (4 bytes), length (2), kind (1): a whole record, or the first, a middle or the last piece of one.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, message = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:  # a piece's head does not fit: the rest of the block is padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:
            at += left
            continue
        if at + 7 + length > len(data):  # the piece is still being written
            return
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record
            message = b""


class StopAfter(pl.Callback):
    """Ctrl-C in the middle of the epoch after `epochs` whole ones."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epochs and batch_idx == 1:
            raise KeyboardInterrupt


def check_resume(train, *options: str, after: int) -> Path:
    """Stopped in the epoch after `after` whole ones and resumed, a run ends where a whole one ends, bit for bit.

    Args:
        train: the fixture.

    Returns:
        The whole run's folder.
    """
    code, whole = train(*options, run_dir="whole")
    assert code == 0
    stop = f"+callbacks.stop={{_target_: support.StopAfter, epochs: {after}}}"
    code, stopped = train(*options, stop, run_dir="stopped")
    assert code == 130
    assert not (stopped / "result.json").exists()
    code, _ = train(f"resume={stopped}", "callbacks.stop.epochs=99")
    assert code == 0
    again = weights(stopped)
    for name, value in weights(whole).items():
        assert torch.equal(value, again[name]), name
    assert history(whole) == history(stopped)
    assert read_result(whole)["metrics"] == read_result(stopped)["metrics"]
    return whole


class Poison(pl.Callback):
    """Makes a weight NaN before one batch."""

    def __init__(self, epoch: int, batch: int):
        self.place = (epoch, batch)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.place:
            with torch.no_grad():
                next(module.parameters()).fill_(float("nan"))
