"""Checkpoints at epoch boundaries, and progress as plain lines."""

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from regbench.errors import UserError

LAST_EPOCHS = 10  # how many epochs `median_last_10` looks at


class EpochCheckpoint(Checkpoint):
    """Writes `last.ckpt` after every epoch, and what `select` needs beside it; each file whole or not at all.

    Lightning's ModelCheckpoint writes in place, so a kill can leave half a file; this writes beside and renames.

    Args:
        folder: where the checkpoints go.
        select: last | best_val (keeps `best.ckpt`) | median_last_10 (keeps the weights of the last ten epochs).
        monitor: the logged metric that `best_val` compares, e.g. "val/accuracy".
        mode: "max" or "min". The first epoch with the best value wins.
        origin: plain values stored with each checkpoint that say which run it is of.
    """

    def __init__(self, folder: Path, *, select: str, monitor: str, mode: str, origin: dict[str, Any]):
        self.folder = folder
        self.select = select
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.origin = origin
        self.best = -math.inf

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # last.ckpt comes last: a run that is killed between two files goes on from the epoch before and writes
        # them again.
        if self.select == "best_val" and self._improved(trainer):
            self._save(trainer, "best.ckpt")
        first = trainer.max_epochs - LAST_EPOCHS
        if self.select == "median_last_10" and trainer.current_epoch >= first:
            self._save(trainer, f"epoch-{trainer.current_epoch:04d}.ckpt", weights_only=True)
        self._save(trainer, "last.ckpt")

    def _improved(self, trainer: pl.Trainer) -> bool:
        if (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:
            return False
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val/")))
            raise UserError(
                f"checkpoint.monitor={self.monitor} is not measured in validation. Measured: {known}."
            )
        value = self.sign * float(trainer.callback_metrics[self.monitor])
        improved = value > self.best
        self.best = max(value, self.best)
        return improved

    def _save(self, trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
        self.folder.mkdir(exist_ok=True)
        part = self.folder / f"{name}.part"
        trainer.save_checkpoint(part, weights_only=weights_only)  # collective: every process takes part
        if trainer.is_global_zero:
            os.replace(part, self.folder / name)
        trainer.strategy.barrier()  # the others may read it from now on

    def candidates(self) -> list[Path]:
        """The checkpoints to test: one, or the last ten epochs'."""
        if self.select == "median_last_10":
            return sorted(self.folder.glob("epoch-*.ckpt"))[-LAST_EPOCHS:]
        return [self.folder / ("best.ckpt" if self.select == "best_val" else "last.ckpt")]

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        # Loggers get the epoch's metrics only after this: without them here, a kill in between would lose a row.
        validated = (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
        row = {
            name: float(value)
            for name, value in trainer.logged_metrics.items()
            if not name.endswith("_step") and (validated or not name.startswith("val/"))
        }
        checkpoint["regbench"] = self.origin | {"row": row}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


class LineProgress(pl.Callback):
    """One line an epoch, for output that is no terminal.

    Args:
        shown: names of the logged values that a line holds, where they are measured.
    """

    def __init__(self, shown: Iterable[str] = ("val/accuracy", "val/loss")):
        self.shown = tuple(dict.fromkeys(shown))
        self.start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            measured = trainer.callback_metrics
            values = "  ".join(
                f"{name} {float(measured[name]):.4f}" for name in self.shown if name in measured
            )
            seconds = time.perf_counter() - self.start
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {values}  {seconds:.1f} s",
                flush=True,
            )
