"""Augmentation of whole batches on the device: draws first, then pure functions of images and draws.

An epoch's draws are made at once, on the CPU and for all ranks together, so that they depend on the seed and the
epoch alone: not on the device, and not on the number of processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from regbench.data import randaugment
from regbench.errors import UserError, unknown

CROP_MODES = ("zeros", "reflect")


@dataclass(frozen=True)
class Augment:
    """Which augmentations run, in this order; the defaults do nothing.

    Args:
        crop_padding: pixels of padding around the image, of which a random window of the image's size is
            kept.
        crop_mode: what the padding holds: "zeros" (black), or "reflect" (mirrored without repeating the
            edge).
        translate: largest shift in pixels along each axis; what moves in is black.
        flip: mirror left-right with probability 0.5.
        randaugment: {"n": operations per image, "m": magnitude 0..30}, or None. See
            `regbench.data.randaugment`.
        cutout: side in pixels of a square that is set to the mean colour (zero after normalisation), centred
            on a random pixel, so that it may lie partly outside (DeVries & Taylor 2017, arXiv:1708.04552). 0:
            off.
    """

    crop_padding: int = 0
    crop_mode: str = "zeros"
    translate: int = 0
    flip: bool = False
    randaugment: Mapping[str, int] | None = None
    cutout: int = 0

    @classmethod
    def from_config(cls, node: Mapping[str, Any] | None) -> "Augment":
        """Checks the values of a config's `augment`. Raises UserError."""
        known = [field.name for field in fields(cls)]
        for key in node or {}:
            if key not in known:
                raise unknown("augmentation", key, known, "It is a key of dataset.augment.")
        augment = cls(**(node or {}))
        for key in ("crop_padding", "translate", "cutout"):
            value = getattr(augment, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UserError(f"dataset.augment.{key}={value}: it is a number of pixels, 0 (off) or more.")
        if not isinstance(augment.flip, bool):
            raise UserError(f"dataset.augment.flip={augment.flip}: it is true or false.")
        if augment.crop_mode not in CROP_MODES:
            raise unknown("dataset.augment.crop_mode", augment.crop_mode, CROP_MODES)
        if augment.randaugment is not None:
            randaugment.check(augment.randaugment)
        return augment


def draw(
    augment: Augment, count: int, size: tuple[int, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """What `count` images need of chance: tensors whose first dimension is `count`; `size` is (H, W)."""

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (count, *shape), generator=generator)

    draws = {}
    if augment.crop_padding:
        draws["crop"] = integers(2 * augment.crop_padding + 1, 2)
    if augment.translate:
        draws["translate"] = integers(2 * augment.translate + 1, 2)
    if augment.flip:
        draws["flip"] = integers(2)
    if augment.randaugment is not None:
        draws["randaugment"] = randaugment.draw(augment.randaugment["n"], count, generator)
    if augment.cutout:
        draws["cutout"] = torch.stack([integers(side) for side in size], dim=1)
    return draws


def apply(
    images: Tensor, augment: Augment, draws: Mapping[str, Tensor], scale: Tensor, bias: Tensor
) -> Tensor:
    """uint8 (B, C, H, W) → augmented and normalised float32 (B, C, H, W).

    Args:
        draws: rows of what `draw` returned, B of each.
        scale, bias: (C, 1, 1), from `normalization`.
    """
    flip = draws.get("flip")
    if augment.crop_padding:
        images = crop(images, draws["crop"], augment.crop_padding, augment.crop_mode, flip)
        flip = None
    if augment.translate:
        images = crop(images, draws["translate"], augment.translate, "zeros", flip)
        flip = None
    if flip is not None:
        images = crop(images, None, 0, "zeros", flip)
    if augment.randaugment is not None:
        images = randaugment.apply(images, draws["randaugment"], augment.randaugment["m"])
    images = normalize(images, scale, bias)
    return cutout(images, draws["cutout"], augment.cutout) if augment.cutout else images


def pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """(B, C, H, W) → (B, C, H + 2p, W + 2p), of any dtype (torch's reflection padding has no uint8)."""
    if mode == "zeros":
        return torch.nn.functional.pad(images, (padding,) * 4)
    rows, columns = (_mirror(side, padding, images.device) for side in images.shape[-2:])
    return images.index_select(2, rows).index_select(3, columns)


def _mirror(side: int, padding: int, device: torch.device) -> Tensor:
    """Indices p..1, 0..side-1, side-2..side-1-p."""
    index = torch.arange(-padding, side + padding, device=device).abs()
    return torch.where(index >= side, 2 * (side - 1) - index, index)


def crop(
    images: Tensor, corner: Tensor | None, padding: int, mode: str = "zeros", flip: Tensor | None = None
) -> Tensor:
    """Pads each image, keeps the window of the image's size at its corner, and mirrors it left-right where
    asked.

    Args:
        images: (B, C, H, W), contiguous.
        corner: int64 (B, 2), row and column of the window's upper left pixel in the padded image, each in
            [0, 2·padding]; None means zeros.
        flip: (B,), nonzero where the window is mirrored; None means nowhere.
    """
    batch, channels, height, width = images.shape
    device = images.device
    tall, wide = height + 2 * padding, width + 2 * padding
    images = pad(images, padding, mode) if padding else images.contiguous()
    start = torch.arange(batch, device=device) * (channels * tall * wide)
    column = 0
    if corner is not None:
        start = start + corner[:, 0] * wide
        column = corner[:, 1]
    if flip is not None:
        # The mirrored images lie behind the others; there a window's columns count from the other side.
        images = torch.cat((images, images.flip(3)))
        start = start + flip * (batch * channels * tall * wide)
        column = torch.where(flip > 0, 2 * padding - column, column)
    # Each row of a window is `width` values that lie side by side: one look-up of a row, not of each pixel.
    flat = images.view(-1)
    windows = flat.as_strided((flat.numel() - width + 1, width), (1, 1))
    plane = torch.arange(channels, device=device)[:, None] * (tall * wide)
    row = plane + torch.arange(height, device=device) * wide
    index = (start + column)[:, None] + row.view(-1)
    return windows.index_select(0, index.view(-1)).view(batch, channels, height, width)


def cutout(images: Tensor, centre: Tensor, size: int) -> Tensor:
    """Sets, in place, a size × size square of each normalised image (B, C, H, W) to zero.

    Args:
        centre: int64 (B, 2), row and column. The square covers size pixels from `centre - size // 2` on,
            clipped at the borders.
    """
    inside = []
    for axis in (0, 1):
        first = centre[:, axis, None] - size // 2
        position = torch.arange(images.shape[2 + axis], device=images.device)
        inside.append((position >= first) & (position < first + size))
    return images.masked_fill_(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0)


def normalization(mean: list[float], std: list[float], device: torch.device | str = "cpu"):
    """(scale, bias), each float32 (C, 1, 1), with `(x / 255 - mean) / std = x · scale + bias`."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
    return tuple(v.to(device, torch.float32) for v in (1 / (255 * std), -mean / std))


def normalize(images: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """uint8 (B, C, H, W) → float32 `x · scale + bias`."""
    return images.to(torch.float32).mul_(scale).add_(bias)
