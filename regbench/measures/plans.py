"""A picture of a transport plan."""

from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor

from regbench.errors import UserError
from regbench.measures.pictures import log_picture
from regbench.regularizers.optimal_transport.base import TransportMethod


class PlanPicture(pl.Callback):
    """Draws the plan of the test's first problem, with its weights beside it: figures/plan.png in the run's folder.

    Where the problem is of colours, both palettes stand along the plan, and below it the source's colours as the plan
    maps them: the mean of the target's colours over each row.
    """

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not isinstance(module, TransportMethod):
            raise UserError("callbacks=plans draws transport plans; leave it out for other methods.")

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.first is None:  # the method makes no plans
            return
        test = trainer.datamodule.sets.test
        weights = test.fields["source"][0], test.fields["target"][0]
        colours = [test.hidden.get(f"{side}_colours") for side in ("source", "target")]
        palettes = None if colours[0] is None else (colours[0][0], colours[1][0])
        log_picture(
            trainer,
            "plan",
            "test/plan",
            lambda path: draw(path, module.first.plan, *weights, palettes=palettes),
        )


def draw(
    path: Path, plan: Tensor, source: Tensor, target: Tensor, *, palettes: tuple[Tensor, Tensor] | None = None
) -> None:
    """Writes the picture.

    Args:
        plan: (m, n).
        source: (m,), target: (n,).
        palettes: the colours (m, 3), (n, 3), in [0, 1].
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.6 if palettes else 5))
    heights = [1, 4] if palettes is None else [1, 4, 0.6]
    grid = figure.add_gridspec(
        len(heights), 2, width_ratios=[1, 4], height_ratios=heights, wspace=0.02, hspace=0.02
    )
    middle = figure.add_subplot(grid[1, 1])
    middle.imshow(plan, cmap="Reds", aspect="auto", interpolation="nearest", vmin=0)
    top, left = figure.add_subplot(grid[0, 1], sharex=middle), figure.add_subplot(grid[1, 0], sharey=middle)
    shades = ("grey", "tab:orange") if palettes is None else tuple(colours.numpy() for colours in palettes)
    top.bar(range(len(target)), target, color=shades[1], width=1)
    left.barh(range(len(source)), source, color=shades[0], height=1)
    left.invert_xaxis()
    axes = [middle, top, left]
    if palettes is not None:
        mapped = plan @ palettes[1] / plan.sum(1, keepdim=True).clamp(min=1e-12)
        below = figure.add_subplot(grid[2, 1])
        below.imshow(
            [palettes[0].numpy(), mapped.clamp(0, 1).numpy()], aspect="auto", interpolation="nearest"
        )
        below.set_title("source colours, and below them what they are mapped to", y=-0.6, fontsize=8)
        axes.append(below)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=100)
