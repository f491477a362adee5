"""Pictures that measures draw."""

from collections.abc import Callable, Mapping, Sequence
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


def draw_curves(
    path: Path, curves: Sequence[Mapping[str, float]], styles: Mapping[str, tuple[str, str]], label: str
) -> None:
    """Writes measures between 0 and 1 against epochs.

    Args:
        curves: for each epoch its number, `epoch`, counted from 0, and the measures.
        styles: measure → (Matplotlib's format of its line, what the legend calls it); those in `curves` are drawn.
        label: of the measures' axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    panel = figure.subplots()
    epochs = [row["epoch"] + 1 for row in curves]
    for name, (style, shown) in styles.items():
        if name in curves[0]:
            panel.plot(epochs, [row[name] for row in curves], style, label=shown)
    panel.set(xlabel="epoch", ylabel=label, ylim=(-0.02, 1.02))
    figure.legend(loc="outside lower left", fontsize="small")
    figure.savefig(path, dpi=80)
