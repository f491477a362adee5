"""The convolutional network of tensorpack's MNIST example, which AdaMixUp's authors use."""

from torch import nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError


def mnist_cnn(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    width: int = 32,
    hidden: int = 512,
    dropout: float = 0.5,
) -> Backbone:
    """Conv, pool, conv, conv, pool, conv (3×3 with ReLU, 2×2 max-pool), a hidden layer, dropout. PyTorch's own
    initialisation of layers (tensorpack's was not looked up).

    Args:
        width: channels of each convolution.
        hidden: units of the hidden layer.
        dropout: probability of dropping a hidden unit.
    """
    if min(image_size) < 4:
        raise UserError(f"mnist_cnn halves the image twice and needs 4x4 pixels; got {image_size}.")

    def conv(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]

    positions = (image_size[0] // 4) * (image_size[1] // 4)
    network = nn.Sequential()
    network.add_module("layer1", nn.Sequential(*conv(in_channels), nn.MaxPool2d(2)))
    network.add_module("layer2", nn.Sequential(*conv(width), *conv(width), nn.MaxPool2d(2)))
    network.add_module("layer3", nn.Sequential(*conv(width)))
    network.add_module("flatten", nn.Flatten())
    network.add_module(
        "hidden", nn.Sequential(nn.Linear(width * positions, hidden), nn.ReLU(), nn.Dropout(dropout))
    )
    network.add_module("fc", nn.Linear(hidden, num_classes))
    return Backbone(network, ("layer1", "layer2", "layer3"), "fc", channels_last=True)
