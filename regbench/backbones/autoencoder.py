"""Autoencoders of images: those of Hsu et al. 2023 (released code, kylehkhsu/latent_quantization) and a small one.

Their two layers beside the code depend on the method (a mean and a deviation, vectors in place of numbers), which makes
them by `connect`.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError

SLOPE = 0.2  # of the leaky ReLUs
EPS = 1e-6  # of the instance norms


class Autoencoder(nn.Module):
    """An encoder to features and a decoder from units, joined by `head` and `stem` once a method has called `connect`.

    Args:
        encoder: images (B, C, H, W) → features (B, features).
        decoder: units (B, units), after a ReLU → logits of pixels (B, C, H, W).
    """

    def __init__(self, encoder: nn.Module, features: int, decoder: nn.Module, units: int):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.features, self.units = features, units

    def connect(self, outputs: int, inputs: int) -> None:
        """Makes the encoder's last layer, with `outputs` numbers, and the decoder's first, of `inputs` numbers."""
        self.head = nn.Linear(self.features, outputs)
        self.stem = nn.Linear(inputs, self.units)

    def encode(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → (B, outputs)."""
        return self.head(self.encoder(image))

    def decode(self, z: Tensor) -> Tensor:
        """(B, inputs) → logits of the pixels (B, C, H, W)."""
        return self.decoder(F.relu(self.stem(z)))

    def forward(self, image: Tensor) -> Tensor:
        """Images → what the encoder ends with: features, or after `connect` what the method makes the code of."""
        return self.encode(image) if hasattr(self, "head") else self.encoder(image)


class StyleBlock(nn.Module):
    """Transposed convolution, leaky ReLU, instance norm, then the scale and shift that the style w gives each channel.

    (scale, shift) = ReLU(Linear(w)): the released code keeps the ReLU of its dense layers there.
    """

    def __init__(self, channels: int, width: int, style: int, kernel: int, stride: int):
        super().__init__()
        self.convolution = nn.ConvTranspose2d(channels, width, kernel, stride, padding=1, bias=False)
        self.style = nn.Linear(style, 2 * width)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, channels, H, W) and (B, style) → (B, width, stride H, stride W)."""
        scale, shift = F.relu(self.style(w))[..., None, None].chunk(2, dim=1)
        x = F.leaky_relu(self.convolution(x), SLOPE)
        return F.instance_norm(x, eps=EPS) * scale + shift


class StyleDecoder(nn.Module):
    """A learned constant image, and style blocks that the code scales and shifts.

    Args:
        side: height and width of the constant, 0.1 everywhere before training.
    """

    def __init__(
        self, side: tuple[int, int], dense: Sequence[int], layers: Sequence[tuple[int, int, int]], out: int
    ):
        super().__init__()
        channels = layers[0][0]
        self.constant = nn.Parameter(torch.full((channels, *side), 0.1))
        self.dense = _dense(dense)
        self.blocks = nn.ModuleList()
        for width, kernel, stride in layers:
            self.blocks.append(StyleBlock(channels, width, dense[-1], kernel, stride))
            channels = width
        self.out = nn.Conv2d(channels, out, 3, padding=1, bias=False)

    def forward(self, w: Tensor) -> Tensor:
        w = self.dense(w)
        x = self.constant.expand(len(w), -1, -1, -1)
        for block in self.blocks:
            x = block(x, w)
        return self.out(x)


def image_autoencoder(
    in_channels: int,
    image_size: tuple[int, int],
    *,
    widths: Sequence[int] = (32, 64, 128, 256),
    repeats: int = 3,
    dense: Sequence[int] = (256, 256),
    style: bool = True,
) -> Backbone:
    """Convolutions that halve the image once for each width, dense layers, and the mirror image of both.

    Encoder: 3 × 3 convolutions, the last of each width 4 × 4 with stride 2, without biases, each with instance norm and
    leaky ReLU; then dense layers with ReLU. Decoder: dense layers, then style blocks, or with style false a dense layer
    to the encoder's last shape and transposed convolutions like the encoder's; at last a convolution without bias, of
    3 × 3 with style and 1 × 1 without.

    Args:
        widths: channels after each halving.
        repeats: convolutions of each width.
        dense: units of the dense layers.
        style: whether the code works through scales and shifts of the decoder's channels.
    """
    if not widths or not dense or repeats < 1 or min(*widths, *dense) < 1:
        raise UserError(
            f"backbone.widths={list(widths)}, backbone.dense={list(dense)}: they name at least one positive number "
            f"each, and backbone.repeats={repeats} is at least 1."
        )
    factor = 2 ** len(widths)
    if any(side % factor for side in image_size):
        raise UserError(
            f"The autoencoder halves the image {len(widths)} times; {'x'.join(map(str, image_size))} pixels don't "
            f"divide by {factor}. Set dataset.size or fewer backbone.widths, or take backbone=autoencoder_mlp."
        )
    side = (image_size[0] // factor, image_size[1] // factor)
    shapes = [(3, 1)] * (repeats - 1) + [(4, 2)]  # (kernel, stride)
    encoder, channels = nn.Sequential(), in_channels
    for width in widths:
        for kernel, stride in shapes:
            encoder.append(nn.Conv2d(channels, width, kernel, stride, padding=1, bias=False))
            encoder.append(nn.InstanceNorm2d(width, eps=EPS, affine=True))
            encoder.append(nn.LeakyReLU(SLOPE))
            channels = width
    flat = channels * side[0] * side[1]
    encoder.append(nn.Flatten()).append(nn.Linear(flat, dense[0])).append(nn.ReLU())
    encoder.extend(_dense(dense))

    layers = [(width, *shape) for width in reversed(widths) for shape in shapes]
    if style:
        return _wrap(encoder, dense[-1], StyleDecoder(side, dense, layers, in_channels), dense[0])
    decoder = _dense(dense)
    decoder.append(nn.Linear(dense[-1], flat)).append(nn.ReLU()).append(nn.Unflatten(1, (channels, *side)))
    for width, kernel, stride in layers:
        decoder.append(nn.ConvTranspose2d(channels, width, kernel, stride, padding=1, bias=False))
        decoder.append(nn.InstanceNorm2d(width, eps=EPS, affine=True)).append(nn.LeakyReLU(SLOPE))
        channels = width
    decoder.append(nn.Conv2d(channels, in_channels, 1, bias=False))
    return _wrap(encoder, dense[-1], decoder, dense[0])


def mlp_autoencoder(
    in_channels: int, image_size: tuple[int, int], *, hidden: Sequence[int] = (256, 256)
) -> Backbone:
    """The pixels in a row through dense layers with ReLU, and the mirror image.

    Args:
        hidden: units of the encoder's layers; the decoder's are the same in the other order.
    """
    if not hidden or min(hidden) < 1:
        raise UserError(f"backbone.hidden={list(hidden)} names at least one positive number of units.")
    shape = (in_channels, *image_size)
    pixels = in_channels * image_size[0] * image_size[1]
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden[0]), nn.ReLU(), *_dense(hidden))
    back = list(reversed(hidden))
    decoder = nn.Sequential(*_dense(back), nn.Linear(back[-1], pixels), nn.Unflatten(1, shape))
    return _wrap(encoder, hidden[-1], decoder, back[0])


def _dense(units: Sequence[int]) -> nn.Sequential:
    """Layers with ReLU between units[0] and the others."""
    layers = nn.Sequential()
    for before, after in itertools.pairwise(units):
        layers.append(nn.Linear(before, after)).append(nn.ReLU())
    return layers


def _wrap(encoder: nn.Module, features: int, decoder: nn.Module, units: int) -> Backbone:
    return Backbone(Autoencoder(encoder, features, decoder, units), stages=())
