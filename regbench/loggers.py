"""Where a run's metrics go: metrics.csv always, W&B and TensorBoard where configured."""

import csv
import io
import logging
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from regbench.errors import UserError

log = logging.getLogger("regbench")


class History(Logger):
    """metrics.csv: a row for each time metrics are logged, with the columns epoch, step (batches) and the metrics.

    Lightning's CSVLogger keeps every row in memory, starts a resumed run's file anew and makes folders of its own.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self._last: dict[str, Any] = {}  # the last row, which later metrics of the same step are added to
        self._last_at = 0  # where it begins in the file
        if path.exists():
            with path.open(newline="") as file:
                self.columns = next(csv.reader(file), [])

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args, **kwargs) -> None:
        """The configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"epoch": metrics.get("epoch", ""), "step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            self._rewrite(self._rows(), self.columns + new)
        if (row["epoch"], step) == (self._last.get("epoch"), self._last.get("step")):
            row = self._last | row
        else:
            self._last_at = self.path.stat().st_size
        self._last = row
        line = io.StringIO()
        csv.DictWriter(line, self.columns, restval="").writerow(row)
        with self.path.open("r+b") as file:
            file.seek(self._last_at)
            file.write(line.getvalue().encode())  # in one piece: a kill leaves the old row or the new one
            file.truncate()

    @rank_zero_only
    def go_on_from(self, epoch: int, batches: int, row: Mapping[str, float]) -> None:
        """Makes the file what it was when the checkpoint of `epoch`, after `batches` in all, was written.

        Rows of later epochs go: they are written again. `row` holds the epoch's metrics, which may be missing:
        they reach the loggers only after the checkpoint is written.
        """
        if self.columns:
            rows = [row for row in self._rows() if row["epoch"] and float(row["epoch"]) < epoch + 1]
            self._rewrite(rows, self.columns)
            if rows:
                last = {name: value for name, value in rows[-1].items() if value}
                self._last = last | {"epoch": int(float(last["epoch"])), "step": int(last["step"])}
        self.log_metrics({"epoch": epoch, **row}, batches - 1)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        self.columns, last = columns, rows[-1:]
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows[:-1])
            self._last_at = file.tell()
            writer.writerows(last)
        os.replace(part, self.path)


def logged_in_to_wandb() -> bool:
    """Whether an API key is at hand (environment or netrc), found out without wandb and without the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(mode: str) -> str:
    """`logger.wandb.mode` as W&B takes it: auto is online when somebody is logged in, else offline.

    Raises:
        UserError: it is none of auto, online, offline.
    """
    if mode not in ("auto", "online", "offline"):
        raise UserError(
            f"logger.wandb.mode={mode} is none of auto, online, offline. Use logger=none to log nothing."
        )
    if mode == "auto":
        return os.environ.get("WANDB_MODE") or ("online" if logged_in_to_wandb() else "offline")
    return mode


def wandb_logger(
    run_dir: Path, *, project: str, entity: str | None, name: str, group: str, tags: list[str], mode: str
):
    """Lightning's WandbLogger; offline when nobody is logged in, so that it neither prompts nor waits.

    Args:
        run_dir: the run's folder; wandb's own files go to `wandb/` in it. A resumed run keeps its W&B id.
        mode: auto | online | offline; the environment variable WANDB_MODE wins over auto.
    """
    mode = wandb_mode(mode)
    if rank_zero_only.rank:  # only the first process talks to W&B
        return None
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    id_file = run_dir / "wandb_id.txt"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    settings = wandb.Settings(silent=True, console="off", mode=mode, init_timeout=60)
    run = wandb.init(
        project=project,
        entity=entity,
        name=name,
        group=group,
        tags=tags,
        dir=run_dir,
        id=id_file.read_text(),
        resume="allow" if mode == "online" else None,  # offline, `wandb sync` joins the pieces by their id
        settings=settings,
    )
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, save_dir=run_dir)


def tensorboard_logger(run_dir: Path):
    """Lightning's TensorBoardLogger, in `tensorboard/` of the run's folder. Raises UserError without tensorboard."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "logger=tensorboard needs TensorBoard: pip install 'regbench[tensorboard]'."
        ) from None
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=run_dir, name="tensorboard", version="")


class WandbPictures(pl.Callback):
    """Logs to W&B what a number can't show: images as the network sees them (mixed), and the confusion matrix."""

    def __init__(self, logger, class_names: list[str], images: int = 16):
        self.logger = logger
        self.class_names = class_names
        self.images = images

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.samples_wanted = self.images

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if module.samples is None:
            return
        images = module.samples.float().cpu()
        low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp_min(1e-8)
        pictures = [image.permute(1, 2, 0).squeeze(-1).numpy() for image in images]
        self.logger.log_image("train/samples", pictures, step=trainer.global_step)
        module.samples = None

    def log_result(self, metrics: Mapping[str, float], confusion: torch.Tensor | None) -> None:
        """The final table, the run's summary, and the confusion matrix.

        Args:
            metrics: test metrics.
            confusion: (C, C) counts; rows are the true classes, columns the predicted ones. None: without classes.
        """
        import wandb

        if confusion is not None:
            rows = [
                [actual, predicted, int(confusion[i, j])]
                for i, actual in enumerate(self.class_names)
                for j, predicted in enumerate(self.class_names)
            ]
            # The table and preset behind wandb.plot.confusion_matrix, which wants every sample's prediction instead.
            fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
            table = wandb.Table(columns=list(fields), data=rows)
            plot = wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "test"})
            self.logger.experiment.log({"test/confusion_matrix": plot})
        self.logger.log_table(
            "test/table", columns=["metric", "value"], data=[list(item) for item in metrics.items()]
        )
        self.logger.experiment.summary.update(metrics)
