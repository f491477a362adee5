"""Accuracy on turned test images (callback `rotation`): a shift of the images that training may not have seen."""

from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from regbench.errors import UserError
from regbench.regularizers.base import batch_fields


class Rotation(pl.Callback):
    """Logs at the test test/accuracy_rotated_<degrees>, the accuracy on the test images turned counter-clockwise by
    bilinear interpolation, with black corners, and test/accuracy_rotated, its mean over the angles.

    Args:
        degrees: angles.
    """

    def __init__(self, degrees: Sequence[float] = (30,)):
        if not degrees:
            raise UserError("callbacks.rotation.degrees is empty: give an angle, e.g. [30].")
        self.degrees = [float(angle) for angle in degrees]

    def on_test_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._right = torch.zeros(len(self.degrees), device=module.device)
        self._seen = 0

    @torch.no_grad()
    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        image, label = batch_fields(batch, ("image", "label"))
        mean, std = (torch.tensor(v, device=image.device) for v in trainer.datamodule.mean_std)
        black = (-mean / std).tolist()
        for i, angle in enumerate(self.degrees):
            turned = rotate(image, angle, InterpolationMode.BILINEAR, fill=black)
            self._right[i] += (module(turned).argmax(1) == label).sum()
        self._seen += len(label)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for angle, right in zip(self.degrees, self._right / self._seen, strict=True):
            module.log(f"test/accuracy_rotated_{angle:g}", right, sync_dist=True)
        module.log("test/accuracy_rotated", self._right.mean() / self._seen, sync_dist=True)
