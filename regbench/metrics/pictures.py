"""Quality of restored pictures, and means over the samples of an epoch."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def psnr(found: Tensor, image: Tensor) -> Tensor:
    """PSNR in dB of pictures with pixels in [0, 1], what lies outside clipped: mean over the pictures."""
    return peak_signal_noise_ratio(found.clamp(0, 1), image, data_range=1.0, dim=(1, 2, 3))


def picture_quality(found: Tensor, image: Tensor) -> dict[str, Tensor]:
    """PSNR in dB and SSIM of pictures with pixels in [0, 1]: means over the pictures."""
    return {
        "psnr": psnr(found, image),
        "ssim": structural_similarity_index_measure(found.clamp(0, 1), image, data_range=1.0),
    }


class Means:
    """Means over the samples of an epoch, by name."""

    def __init__(self):
        self.metrics: dict[str, MeanMetric] = {}

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Adds the means over `weight` samples."""
        for name, value in values.items():
            # float32 whatever the default type is: bf16 counts no more than 256 samples
            self.metrics.setdefault(name, MeanMetric().set_dtype(torch.float32).to(value.device)).update(
                value, weight=weight
            )

    def finish(self) -> dict[str, Tensor]:
        """The means; starts anew."""
        found = {name: metric.compute() for name, metric in self.metrics.items()}
        self.metrics.clear()
        return found
