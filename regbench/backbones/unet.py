"""Networks of an image and a time, for diffusion models: a small U-Net, and diffusers' own with trained weights.

Both map images (B, C, H, W) and times (B,) to (B, C, H, W). Without times they take zeros.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.extras import need

GROUPS = 8  # of the group norms
PERIOD = 10_000  # the slowest wave of the times' code has this period over 2 pi, as in Transformers


def time_code(time: Tensor, size: int) -> Tensor:
    """(B, size): cosines and sines of the time times size / 2 frequencies, from 1 down to 1 / 10,000.

    >>> time_code(torch.tensor([0]), 4)
    tensor([[1., 1., 0., 0.]])
    """
    half = size // 2
    frequencies = torch.exp(-math.log(PERIOD) * torch.arange(half, device=time.device) / max(half - 1, 1))
    angles = time[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimedBlock(nn.Module):
    """Two 3 × 3 convolutions with a shortcut; the code of the time is added between them, a number for each channel."""

    def __init__(self, inputs: int, outputs: int, code: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(code, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(code)[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class UNet(nn.Module):
    """A U-Net in the manner of Ho et al. 2020, without attention: a block a level on the way down and up, one between.

    Its last convolution starts at zero, so that the first prediction is zero.

    Args:
        channels: of each level; each level has half the side of the one before, so that sides are multiples of
            2^(levels − 1).
    """

    def __init__(
        self, in_channels: int, image_size: tuple[int, int], *, channels: Sequence[int] = (16, 32, 32)
    ):
        super().__init__()
        step = 2 ** (len(channels) - 1)
        if not channels or any(width % GROUPS for width in channels):
            raise UserError(f"backbone.channels={list(channels)}: a multiple of {GROUPS} for each level.")
        if any(side % step for side in image_size):
            raise UserError(
                f"backbone.channels={list(channels)} has {len(channels)} levels, so that images have sides of a "
                f"multiple of {step}, not {image_size[0]} × {image_size[1]}."
            )
        first, code = channels[0], 4 * channels[0]
        self.first = first
        self.time = nn.Sequential(nn.Linear(first, code), nn.SiLU(), nn.Linear(code, code), nn.SiLU())
        self.stem = nn.Conv2d(in_channels, first, 3, padding=1)
        wide = [first, *channels]
        self.down = nn.ModuleList(TimedBlock(a, b, code) for a, b in zip(wide, channels, strict=False))
        self.shrink = nn.ModuleList(nn.Conv2d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = TimedBlock(channels[-1], channels[-1], code)
        up = list(reversed(channels))
        above = [*up[1:], first]
        self.up = nn.ModuleList(TimedBlock(2 * c, out, code) for c, out in zip(up, above, strict=True))
        self.grow = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c in above[:-1])
        self.norm = nn.GroupNorm(GROUPS, first)
        self.head = nn.Conv2d(first, in_channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor, time: Tensor | None = None) -> Tensor:
        code = self.time(time_code(_times(image, time), self.first).to(self.time[0].weight.dtype))
        x, kept = self.stem(image), []
        for level, block in enumerate(self.down):
            x = block(x, code)
            kept.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        x = self.middle(x, code)
        for level, block in enumerate(self.up):
            x = block(torch.cat([x, kept.pop()], dim=1), code)
            if level < len(self.grow):
                x = self.grow[level](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.head(F.silu(self.norm(x)))


class PretrainedUNet(nn.Module):
    """A UNet2DModel of diffusers with the weights of a local folder, as `save_pretrained` writes it; nothing is loaded
    from elsewhere.

    Args:
        folder: holds config.json and the weights; with a pipeline's folder that is its subfolder unet.
    """

    def __init__(self, in_channels: int, *, folder: str | None):
        super().__init__()
        need("diffusers", "restoration", "backbone=pretrained_unet needs diffusers")
        if folder is None or not (Path(folder) / "config.json").is_file():
            raise UserError(
                f"backbone.folder={folder} is no folder of a diffusers UNet2DModel: it has no config.json. Give the "
                "folder that save_pretrained wrote."
            )
        from diffusers import UNet2DModel

        self.unet = UNet2DModel.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
        if self.unet.config.in_channels != in_channels:
            raise UserError(
                f"The network in {folder} takes {self.unet.config.in_channels} channels, the images have {in_channels}."
            )

    def forward(self, image: Tensor, time: Tensor | None = None) -> Tensor:
        return self.unet(image, _times(image, time)).sample


def _times(image: Tensor, time: Tensor | None) -> Tensor:
    return torch.zeros(len(image), dtype=torch.long, device=image.device) if time is None else time
