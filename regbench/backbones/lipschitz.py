"""A network whose layers other than its convolutions and its last one are 1-Lipschitz, for orthogonal convolutions."""

import torch
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError


class MaxMin(nn.Module):
    """GroupSort with groups of two (Anil et al. 2019): of channels i and n + i of (B, 2n, H, W) the larger, then the
    smaller.

    >>> MaxMin()(torch.tensor([[1.0, 4.0, 3.0, 2.0]]).view(1, 4, 1, 1)).flatten().tolist()
    [3.0, 4.0, 1.0, 2.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)


def lipschitz_cnn(
    in_channels: int, image_size: tuple[int, int], num_classes: int, *, width: int = 16
) -> Backbone:
    """Three 3×3 convolutions with circular padding, width, 2·width and 4·width channels, the last two with stride 2,
    each followed by MaxMin; then a linear classifier on all positions. No norm: batch norm is not 1-Lipschitz.

    Args:
        width: channels of the first convolution, even.
    """
    if width < 2 or width % 2:
        raise UserError(f"lipschitz_cnn's width is even: MaxMin pairs channels; got {width}.")
    if min(image_size) < 8:
        raise UserError(f"lipschitz_cnn halves the image twice and needs 8x8 pixels; got {image_size}.")
    network = nn.Sequential()
    channels = in_channels
    for i, (out, stride) in enumerate(((width, 1), (2 * width, 2), (4 * width, 2)), start=1):
        convolution = nn.Conv2d(channels, out, 3, stride, padding=1, padding_mode="circular")
        network.add_module(f"layer{i}", nn.Sequential(convolution, MaxMin()))
        channels = out
    positions = -(-image_size[0] // 4) * -(-image_size[1] // 4)
    network.add_module("flatten", nn.Flatten())
    network.add_module("fc", nn.Linear(channels * positions, num_classes))
    return Backbone(network, ("layer1", "layer2", "layer3"), "fc")
