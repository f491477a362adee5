"""Residual networks in the forms that papers train on CIFAR: a 3×3 stem and no max-pool.

They take images of any size; `image_size` is there because every backbone's function is called with it. All
are initialised as He et al.'s released code does it: convolutions N(0, 2 / fan_out) (He et al. 2015,
arXiv:1502.01852, eq. 14), norms 1 and 0, the classifier's bias 0 and its weights U(±1/√fan_in).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ResNet(nn.Module):
    """ResNet or ResNeXt for small images. Submodules: conv1, bn1, layer1 … layer4, fc.

    Args:
        depth: a key of `BLOCKS`; basic blocks below 50, bottlenecks (stride in the 3×3 convolution) above.
        width: channels of the stem and of the first stage's blocks; doubles at each later stage.
        groups, base_width: the 3×3 convolution of a bottleneck has `groups` groups of p · base_width / 64
            channels each, where p is width at the first stage and doubles at each later one.
    """

    def __init__(
        self, in_channels: int, num_classes: int, depth: int, width: int, groups: int, base_width: int
    ):
        super().__init__()
        block = BasicBlock if depth < 50 else Bottleneck
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, blocks in enumerate(BLOCKS[depth]):
            planes, stride = width * 2**stage, 1 if stage == 0 else 2
            layers = []
            for first in (True, *(False,) * (blocks - 1)):
                out, step = planes * block.expansion, stride if first else 1
                shortcut = None
                if step != 1 or channels != out:
                    convolution = nn.Conv2d(channels, out, 1, step, bias=False)
                    shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out))
                layers.append(block(channels, planes, step, shortcut, groups, base_width))
                channels = out
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class PreActBlock(nn.Module):
    """BN-ReLU-conv, BN-ReLU-dropout-conv, plus the shortcut (He et al. 2016, arXiv:1603.05027, fig. 1b).

    Where the shape changes, the shortcut is a 1×1 convolution of the first BN-ReLU's output, else the input.
    """

    def __init__(self, channels: int, out: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        changes = stride != 1 or channels != out
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))


class PreActResNet(nn.Module):
    """Pre-activation network of basic blocks. Submodules: conv1, layer1 …, bn (with a final norm only), fc.

    Args:
        stem: channels of the first convolution.
        widths, blocks: channels and number of blocks of each stage; each stage but the first halves the size.
        dropout: probability of dropping a value between a block's two convolutions.
        final_norm: BN and ReLU before the average pooling.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stem: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        dropout: float,
        final_norm: bool,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        channels = stem
        self.stages = tuple(f"layer{i + 1}" for i in range(len(widths)))
        for name, width, count in zip(self.stages, widths, blocks, strict=True):
            layers = []
            for first in (True, *(False,) * (count - 1)):
                layers.append(PreActBlock(channels, width, 2 if first and name != "layer1" else 1, dropout))
                channels = width
            self.add_module(name, nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(channels) if final_norm else None
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image)
        for name in self.stages:
            x = getattr(self, name)(x)
        if self.bn is not None:
            x = F.relu(self.bn(x))
        return self.fc(x.mean((2, 3)))


def resnet(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    depth: int = 18,
    width: int = 64,
    groups: int = 1,
    base_width: int = 64,
) -> Backbone:
    """ResNet (He et al. 2016, arXiv:1512.03385) and ResNeXt (Xie et al. 2017, arXiv:1611.05431), CIFAR form.

    Arguments as in `ResNet`. Raises UserError for a depth that is not in `BLOCKS`, and for groups with basic
    blocks.
    """
    if depth not in BLOCKS:
        raise UserError(f"There is no ResNet of depth {depth}; choose one of {', '.join(map(str, BLOCKS))}.")
    if depth < 50 and (groups, base_width) != (1, 64):
        raise UserError("groups and base_width need bottleneck blocks: depth=50, 101 or 152.")
    network = ResNet(in_channels, num_classes, depth, width, groups, base_width)
    return Backbone(network, ("layer1", "layer2", "layer3", "layer4"), "fc", channels_last=True)


def preact_resnet(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    depth: int = 18,
    width: int = 64,
    final_norm: bool = False,
) -> Backbone:
    """Pre-activation ResNet (He et al. 2016, arXiv:1603.05027) of basic blocks, CIFAR form.

    The mixup papers' form has no BN and ReLU before the pooling; He et al.'s has (`final_norm`).

    Args:
        depth: 18 or 34.
        width: channels of the stem and of the first stage; doubles at each later stage.
        final_norm: BN and ReLU before the average pooling.
    """
    if depth not in (18, 34):
        raise UserError(f"There is no PreActResNet of depth {depth} with basic blocks; choose 18 or 34.")
    widths = (width, 2 * width, 4 * width, 8 * width)
    network = PreActResNet(in_channels, num_classes, width, widths, BLOCKS[depth], 0.0, final_norm)
    return Backbone(network, network.stages, "fc", channels_last=True)


def wide_resnet(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    depth: int = 28,
    widen_factor: int = 10,
    dropout: float = 0.0,
) -> Backbone:
    """Wide residual network WRN-depth-k (Zagoruyko, Komodakis 2016, arXiv:1605.07146, table 1).

    Args:
        depth: 6n + 4, with n blocks in each of the three stages.
        widen_factor: k; the stages have 16k, 32k and 64k channels, the stem has 16.
        dropout: between a block's two convolutions (the paper's, where it uses it: 0.3 on CIFAR).
    """
    if depth < 10 or depth % 6 != 4:
        raise UserError(f"A wide ResNet's depth is 6n + 4 (10, 16, 22, 28, 40, …); {depth} is not.")
    widths = (16 * widen_factor, 32 * widen_factor, 64 * widen_factor)
    blocks = ((depth - 4) // 6,) * 3
    network = PreActResNet(in_channels, num_classes, 16, widths, blocks, dropout, final_norm=True)
    return Backbone(network, network.stages, "fc", channels_last=True)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """He et al.'s initialisation (see the top of this file); norms have theirs already."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
