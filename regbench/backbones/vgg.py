"""VGG (Simonyan & Zisserman 2015) with batch norm for small images: one linear layer after the convolutions."""

from torch import nn

from regbench.backbones.backbone import Backbone
from regbench.errors import unknown

# Channels of the convolutions of each stage, in units of the first stage's; a 2×2 max-pool ends a stage.
STAGES = {
    11: ((1,), (2,), (4, 4), (8, 8), (8, 8)),
    13: ((1, 1), (2, 2), (4, 4), (8, 8), (8, 8)),
    16: ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8)),
    19: ((1, 1), (2, 2), (4, 4, 4, 4), (8, 8, 8, 8), (8, 8, 8, 8)),
}


def vgg(in_channels: int, num_classes: int, *, depth: int = 19, width: int = 64) -> Backbone:
    """3×3 convolutions (with bias) with batch norm and ReLU in five stages that each halve the image, a half pixel
    counting as one; what is left of it is averaged. PyTorch's own initialisation of layers.

    Args:
        depth: 11, 13, 16 or 19 layers.
        width: channels of the first stage; the last two have eight times as many.
    """
    if depth not in STAGES:
        raise unknown("depth of vgg", str(depth), map(str, STAGES))
    network = nn.Sequential()
    channels = in_channels
    for i, factors in enumerate(STAGES[depth], start=1):
        stage = []
        for factor in factors:
            out = factor * width
            stage += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        network.add_module(f"layer{i}", nn.Sequential(*stage, nn.MaxPool2d(2, ceil_mode=True)))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("fc", nn.Linear(channels, num_classes))
    return Backbone(network, tuple(f"layer{i}" for i in range(1, 6)), "fc", channels_last=True)
