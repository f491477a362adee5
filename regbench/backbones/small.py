"""Small networks for small images and two CPU cores. They keep PyTorch's own initialisation of layers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError

NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
    "none": lambda channels: nn.Identity(),
}


def small_cnn(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    width: int = 32,
    norm: str = "batch",
    head: str = "pooled",
    hidden: int = 512,
) -> Backbone:
    """Three blocks of 3×3 convolution, norm, ReLU and 2×2 max-pool, with width, 2·width and 4·width channels.

    Args:
        width: channels of the first block.
        norm: "batch", "group" (8 groups, or fewer where 8 does not divide the channels) or "none".
        head: "pooled" averages over positions; "flatten" keeps them and adds a hidden layer, which gives it
            enough weights to learn a small training set by heart.
        hidden: units of that hidden layer.
    """
    if norm not in NORMS:
        raise UserError(f"small_cnn's norm is batch, group or none, not {norm!r}.")
    if head not in ("pooled", "flatten"):
        raise UserError(f"small_cnn's head is pooled or flatten, not {head!r}.")
    if min(image_size) < 8:
        raise UserError(f"small_cnn halves the image three times and needs 8x8 pixels; got {image_size}.")
    network = nn.Sequential()
    channels = in_channels
    for i, out in enumerate((width, 2 * width, 4 * width), start=1):
        convolution = nn.Conv2d(channels, out, 3, padding=1, bias=norm == "none")
        block = nn.Sequential(convolution, NORMS[norm](out), nn.ReLU(), nn.MaxPool2d(2))
        network.add_module(f"layer{i}", block)
        channels = out
    if head == "pooled":
        network.add_module("pool", nn.AdaptiveAvgPool2d(1))
        network.add_module("flatten", nn.Flatten())
    else:
        positions = (image_size[0] // 8) * (image_size[1] // 8)
        network.add_module("flatten", nn.Flatten())
        network.add_module("hidden", nn.Sequential(nn.Linear(channels * positions, hidden), nn.ReLU()))
        channels = hidden
    network.add_module("fc", nn.Linear(channels, num_classes))
    return Backbone(network, ("layer1", "layer2", "layer3"), "fc", channels_last=True)


def mlp(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    hidden: list[int] | tuple[int, ...] = (512, 512),
    dropout: float = 0.0,
) -> Backbone:
    """The pixels in a row, then fully connected layers with ReLU and dropout.

    Args:
        hidden: units of each hidden layer; an empty list makes a linear classifier.
        dropout: probability of dropping a hidden unit.
    """
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    units = in_channels * image_size[0] * image_size[1]
    for i, out in enumerate(hidden, start=1):
        network.add_module(f"layer{i}", nn.Sequential(nn.Linear(units, out), nn.ReLU(), nn.Dropout(dropout)))
        units = out
    network.add_module("fc", nn.Linear(units, num_classes))
    return Backbone(network, tuple(f"layer{i}" for i in range(1, len(hidden) + 1)), "fc")


class SmallViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) without a class token.

    Norms come before attention and before the MLP (GELU); a learned position embedding, N(0, 0.02²), is added
    to the patches; the mean over patches of the last norm's output goes into the classifier. Submodules:
    patches, layer1 …, norm, fc.
    """

    def __init__(
        self,
        in_channels: int,
        patches: int,
        patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
    ):
        super().__init__()
        self.patches = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.position = nn.Parameter(0.02 * torch.randn(1, patches, dim))
        self.dropout = nn.Dropout(dropout)
        self.stages = tuple(f"layer{i}" for i in range(1, depth + 1))
        for name in self.stages:
            layer = nn.TransformerEncoderLayer(
                dim, heads, int(dim * mlp_ratio), dropout, F.gelu, batch_first=True, norm_first=True
            )
            self.add_module(name, layer)
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)  # (B, patches, dim)
        x = self.dropout(x + self.position)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(self.norm(x).mean(1))


def small_vit(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    patch_size: int | None = None,
    dim: int = 96,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: float = 2.0,
    dropout: float = 0.0,
) -> Backbone:
    """A vision transformer for small images (see `SmallViT`).

    Args:
        patch_size: pixels; None takes the largest that divides height and width and leaves 7 or more patches
            a side (4 at 28 and 32 pixels, 8 at 64), or 1 where none does.
        dim: size of a patch's embedding.
        depth: transformer layers.
        heads: attention heads; they must divide dim.
        mlp_ratio: hidden units of a layer's MLP, as a multiple of dim.
        dropout: after the embedding, and in each layer after attention, inside and after the MLP.
    """
    common = math.gcd(*image_size)
    if patch_size is None:
        fitting = [p for p in range(1, common + 1) if common % p == 0 and min(image_size) // p >= 7]
        patch_size = max(fitting, default=1)
    if common % patch_size:
        sizes = [p for p in range(1, common + 1) if common % p == 0]
        raise UserError(f"patch_size {patch_size} does not divide {image_size} pixels; choose from {sizes}.")
    if dim % heads:
        raise UserError(f"small_vit's heads must divide dim; {heads} does not divide {dim}.")
    patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
    network = SmallViT(in_channels, patches, patch_size, num_classes, dim, depth, heads, mlp_ratio, dropout)
    return Backbone(network, network.stages, "fc")
