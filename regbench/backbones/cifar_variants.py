"""Networks in the forms that papers train on CIFAR, beside those of `resnet.py`: DenseNet, ResNeXt-29, PyramidNet.

All start with a 3×3 convolution and have no max-pool.
"""

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from regbench.backbones.backbone import Backbone
from regbench.backbones.resnet import initialise
from regbench.errors import UserError


class ResNeXt29(nn.Module):
    """ResNeXt for CIFAR (Xie et al. 2017): three stages of bottlenecks with 256, 512 and 1024 output channels.

    Submodules: conv1, bn1, layer1 … layer3, fc.

    Args:
        depth: 9n + 2, with n blocks in each stage.
        groups, base_width: the 3×3 convolutions of the first stage have `groups` groups of `base_width` channels.
    """

    def __init__(self, in_channels: int, num_classes: int, depth: int, groups: int, base_width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage in range(3):
            planes, layers = 64 * 2**stage, []
            for block in range((depth - 2) // 9):
                shortcut, stride = None, 1
                if block == 0:
                    stride = 1 if stage == 0 else 2
                    convolution = nn.Conv2d(channels, 4 * planes, 1, stride, bias=False)
                    shortcut = nn.Sequential(convolution, nn.BatchNorm2d(4 * planes))
                layers.append(Bottleneck(channels, planes, stride, shortcut, groups, base_width))
                channels = 4 * planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class PyramidBlock(nn.Module):
    """BN-conv1, BN-ReLU-conv3, BN-ReLU-conv1, BN; the shortcut is average-pooled and filled up with zero channels."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(4 * width)
        self.stride, self.added = stride, 4 * width - channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn4(self.conv3(F.relu(self.bn3(self.conv2(y)))))
        kept = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
        return y + F.pad(kept, (0, 0, 0, 0, 0, self.added))


class PyramidNet(nn.Module):
    """PyramidNet of bottlenecks for CIFAR (Han et al. 2017): each block is a little wider than the one before.

    Submodules: conv1, bn1, layer1 … layer3, bn, fc.

    Args:
        depth: 9n + 2, with n blocks in each of three stages.
        alpha: what all blocks together add to the width of 16.
    """

    def __init__(self, in_channels: int, num_classes: int, depth: int, alpha: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, channels = (depth - 2) // 9, 16
        for stage in range(3):
            layers = []
            for block in range(blocks):
                width = round(16 + alpha * (stage * blocks + block + 1) / (3 * blocks))
                layers.append(PyramidBlock(channels, width, 2 if stage and not block else 1))
                channels = 4 * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        x = self.bn1(self.conv1(image))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


def densenet(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    growth_rate: int = 32,
    blocks: tuple[int, ...] = (6, 12, 24, 16),
) -> Backbone:
    """DenseNet-BC (Huang et al. 2017, arXiv:1608.06993): torchvision's, with a 3×3 stem without norm and max-pool.

    Args:
        growth_rate: channels that each layer adds; the stem has twice as many.
        blocks: number of layers of each dense block; (6, 12, 24, 16) is DenseNet-121.
    """
    network = torchvision.models.DenseNet(
        growth_rate, tuple(blocks), 2 * growth_rate, num_classes=num_classes
    )
    stem = network.features
    stem.conv0 = nn.Conv2d(in_channels, 2 * growth_rate, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.conv0.weight)  # as torchvision initialises the others
    for name in ("norm0", "relu0", "pool0"):
        del stem._modules[name]
    stages = tuple(f"features.denseblock{i + 1}" for i in range(len(blocks)))
    return Backbone(network, stages, "classifier", channels_last=True)


def resnext29(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    depth: int = 29,
    groups: int = 8,
    base_width: int = 64,
) -> Backbone:
    """ResNeXt for CIFAR (Xie et al. 2017, arXiv:1611.05431), see `ResNeXt29`."""
    _check_depth("ResNeXt", depth)
    network = ResNeXt29(in_channels, num_classes, depth, groups, base_width)
    return Backbone(network, ("layer1", "layer2", "layer3"), "fc", channels_last=True)


def pyramidnet(
    in_channels: int, image_size: tuple[int, int], num_classes: int, *, depth: int = 200, alpha: int = 240
) -> Backbone:
    """PyramidNet of bottlenecks for CIFAR (Han et al. 2017, arXiv:1610.02915), see `PyramidNet`."""
    _check_depth("PyramidNet", depth)
    network = PyramidNet(in_channels, num_classes, depth, alpha)
    return Backbone(network, ("layer1", "layer2", "layer3"), "fc", channels_last=True)


def _check_depth(name: str, depth: int) -> None:
    if depth < 11 or depth % 9 != 2:
        raise UserError(
            f"The depth of a {name} of bottlenecks is 9n + 2 (11, 20, 29, …, 200); {depth} is not."
        )
