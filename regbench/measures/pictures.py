"""Pictures that measures draw."""

from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl


def log_picture(trainer: pl.Trainer, name: str, key: str, draw: Callable[[Path], None]) -> None:
    """Lets `draw` write figures/<name>.png in the run's folder, and shows it as `key` where a logger takes images.

    Only the first process draws.
    """
    if not trainer.is_global_zero:
        return
    path = Path(trainer.default_root_dir) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path)
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key, [str(path)], step=trainer.global_step)
