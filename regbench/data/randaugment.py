"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719) for whole batches of uint8 images.

The fourteen operations and their magnitudes are those of torchvision's RandAugment with 31 magnitude bins.
Every image draws its own operations and signs; images with the same operation and sign are transformed
together.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from regbench.errors import UserError

BINS = 30  # the largest magnitude m


def _affine(
    images: Tensor, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    centre = [0.0, 0.0] if any(shear) else None  # shears leave the upper left corner in place, as PIL's do
    return F.affine(images, angle=0.0, translate=list(translate), scale=1.0, shear=list(shear), center=centre)


def _degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))


# name → function of images (B, C, H, W) and the signed level in [-1, 1] (magnitude m / 30, sign of the draw)
OPERATIONS = {
    "identity": lambda x, v: x,
    "shear_x": lambda x, v: _affine(x, shear=(_degrees(0.3 * v), 0.0)),
    "shear_y": lambda x, v: _affine(x, shear=(0.0, _degrees(0.3 * v))),
    "translate_x": lambda x, v: _affine(x, translate=(int(150 / 331 * x.shape[3] * v), 0)),
    "translate_y": lambda x, v: _affine(x, translate=(0, int(150 / 331 * x.shape[2] * v))),
    "rotate": lambda x, v: F.rotate(x, 30.0 * v),
    "brightness": lambda x, v: F.adjust_brightness(x, 1 + 0.9 * v),
    "color": lambda x, v: F.adjust_saturation(x, 1 + 0.9 * v),
    "contrast": lambda x, v: F.adjust_contrast(x, 1 + 0.9 * v),
    "sharpness": lambda x, v: F.adjust_sharpness(x, 1 + 0.9 * v),
    "posterize": lambda x, v: F.posterize(x, 8 - round(4 * abs(v))),
    "solarize": lambda x, v: F.solarize(x, 255 * (1 - abs(v))),
    "autocontrast": lambda x, v: F.autocontrast(x),
    "equalize": lambda x, v: F.equalize(x),
}


def check(options: Mapping[str, int]) -> None:
    """Raises UserError unless `options` is {n: 1 or more, m: 0..30}."""
    if not isinstance(options, Mapping) or set(options) != {"n", "m"}:
        raise UserError(
            f"dataset.augment.randaugment={options}: it is null or {{n: operations per image, m: magnitude}}."
        )
    n, m = options["n"], options["m"]
    if not isinstance(n, int) or n < 1:
        raise UserError(
            f"dataset.augment.randaugment.n={n}: it is the number of operations per image, 1 or more."
        )
    if not isinstance(m, int | float) or not 0 <= m <= BINS:
        raise UserError(f"dataset.augment.randaugment.m={m}: the magnitude lies between 0 and {BINS}.")


def draw(n: int, count: int, generator: torch.Generator) -> Tensor:
    """int64 (count, n): operation · 2 + (1 where the sign is negative), both uniform."""
    return torch.randint(2 * len(OPERATIONS), (count, n), generator=generator)


def apply(images: Tensor, choices: Tensor, magnitude: float) -> Tensor:
    """Applies each image's operations in turn.

    Args:
        images: uint8 (B, C, H, W).
        choices: int64 (B, n) from `draw`.
        magnitude: m in [0, 30].
    """
    functions = list(OPERATIONS.values())
    for column in choices.unbind(1):
        images = images.clone()
        for choice in column.unique().tolist():
            rows = (column == choice).nonzero().flatten()
            level = magnitude / BINS * (-1 if choice % 2 else 1)
            images[rows] = functions[choice // 2](images[rows], level)
    return images
