"""What several tests use: the repository's root, quick settings, readers of results, and Lightning callbacks."""

import csv
import json
from pathlib import Path

import pytorch_lightning as pl
import torch

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["dataset=digits", "backbone=mlp", "trainer.max_epochs=1", "logger=none", "progress=none"]


def read_result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class StopAfter(pl.Callback):
    """Ctrl-C in the middle of the epoch after `epochs` whole ones."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epochs and batch_idx == 1:
            raise KeyboardInterrupt


class Poison(pl.Callback):
    """Makes a weight NaN before one batch."""

    def __init__(self, epoch: int, batch: int):
        self.place = (epoch, batch)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.place:
            with torch.no_grad():
                next(module.parameters()).fill_(float("nan"))
