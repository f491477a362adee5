"""DnCNN (Zhang et al. 2017, arXiv 1608.03981), the usual denoiser of plug-and-play restoration."""

from torch import nn

from regbench.errors import UserError
from regbench.extras import need


def dncnn(in_channels: int, *, depth: int = 20, width: int = 64) -> nn.Module:
    """deepinv's DnCNN: convolutions with biases and ReLU, no batch norm; what the last gives is added to the input."""
    need("deepinv", "restoration", "backbone=dncnn needs deepinv")
    from deepinv.models import DnCNN

    if depth < 3 or width < 1:
        raise UserError(f"backbone.depth={depth} must be at least 3, and backbone.width={width} at least 1.")
    return DnCNN(in_channels, in_channels, depth=depth, nf=width, pretrained=None)
