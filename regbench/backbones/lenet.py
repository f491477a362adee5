"""LeNet-5 (LeCun et al. 1998) as it is used today: ReLU, max-pooling and no norm."""

from torch import nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError


def lenet(in_channels: int, image_size: tuple[int, int], num_classes: int) -> Backbone:
    """Two 5×5 convolutions without padding, of 6 and 16 channels, each with ReLU and 2×2 max-pool, then layers of 120
    and 84 units. PyTorch's own initialisation of layers.
    """
    if min(image_size) < 16:
        raise UserError(
            f"lenet cuts 4 pixels off and halves the image, twice: it needs 16x16 pixels; got {image_size}."
        )
    sides = [((side - 4) // 2 - 4) // 2 for side in image_size]
    network = nn.Sequential()
    network.add_module("layer1", nn.Sequential(nn.Conv2d(in_channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)))
    network.add_module("layer2", nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)))
    network.add_module("flatten", nn.Flatten())
    network.add_module("layer3", nn.Sequential(nn.Linear(16 * sides[0] * sides[1], 120), nn.ReLU()))
    network.add_module("layer4", nn.Sequential(nn.Linear(120, 84), nn.ReLU()))
    network.add_module("fc", nn.Linear(84, num_classes))
    return Backbone(network, ("layer1", "layer2", "layer3", "layer4"), "fc")
