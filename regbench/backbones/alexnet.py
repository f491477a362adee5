"""The AlexNet for 32 × 32 images of MacKay et al. 2019 (arXiv:1903.03088)."""

from torch import nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError

CHANNELS = (64, 192, 384, 256, 256)
POOLED = (1, 2, 5)  # after these convolutions


def stn_alexnet(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    width: float = 1.0,
    hidden: int = 4096,
    dropout: float = 0.0,
) -> Backbone:
    """Five 3×3 convolutions (the first with stride 2) with ReLU, max-pooling after the first, second and fifth, each
    followed by dropout of whole channels; then two hidden layers, dropout before both, and the classifier. No norm.

    Args:
        width: factor on the channels 64, 192, 384, 256, 256.
        hidden: units of the two hidden layers.
        dropout: probability at each of the seven places of dropout; 0 where a method tunes them.
    """
    if min(image_size) < 16:
        raise UserError(f"stn_alexnet shrinks images 16 times and needs 16x16 pixels; got {image_size}.")
    network = nn.Sequential()
    channels = in_channels
    for i, base in enumerate(CHANNELS, start=1):
        out = max(1, round(width * base))
        stage = [nn.Conv2d(channels, out, 3, stride=2 if i == 1 else 1, padding=1), nn.ReLU()]
        if i in POOLED:
            stage.append(nn.MaxPool2d(2))
        network.add_module(f"layer{i}", nn.Sequential(*stage, nn.Dropout2d(dropout)))
        channels = out
    sides = [-(-side // 2) // 8 for side in image_size]
    network.add_module("flatten", nn.Flatten())
    units = channels * sides[0] * sides[1]
    for i in (6, 7):
        layer = nn.Sequential(nn.Dropout(dropout), nn.Linear(units, hidden), nn.ReLU())
        network.add_module(f"layer{i}", layer)
        units = hidden
    network.add_module("fc", nn.Linear(units, num_classes))
    return Backbone(network, tuple(f"layer{i}" for i in range(1, 8)), "fc", channels_last=True)
