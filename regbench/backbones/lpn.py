"""Learned proximal networks (Fang et al. 2024): the gradient of an input-convex network.

psi(y) is convex in y, as each layer adds a linear function of y to a sum, with weights of at least 0, of the convex and
increasing activations of the layer before. So f(y) = grad psi(y) is the proximal operator of a function R.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError

FIRST_MEAN, FIRST_STD = -10.0, 0.1  # of the logarithm of an image network's weights that must not be negative


class ProximalNetwork(nn.Module):
    """f(y) = grad psi(y). A network defines `_convex`, and names in `positive` the layers whose weights are at least 0.

    A constant that is added to psi does not change f: released networks have one, here it is not trained, since several
    processes want a gradient of all that is.

    Args:
        beta: of the softplus, log(1 + exp(beta z)) / beta.
        alpha: psi has alpha |y|² as a summand, so that the slope of f is at least 2 alpha.
    """

    def __init__(self, beta: float, alpha: float):
        super().__init__()
        if beta <= 0 or alpha < 0:
            raise UserError(f"backbone.beta={beta} must be positive, and backbone.alpha={alpha} at least 0.")
        self.activation, self.alpha = nn.Softplus(beta=beta), alpha

    def _convex(self, y: Tensor) -> Tensor:
        """(B, ...) → (B, 1), convex in y while the weights of `positive` are at least 0."""
        raise NotImplementedError

    def positive(self) -> Iterator[nn.Module]:
        """Layers whose weights must not be negative."""
        raise NotImplementedError

    def potential(self, y: Tensor) -> Tensor:
        """psi: (B, ...) → (B,)."""
        return self._convex(y)[:, 0] + self.alpha * y.flatten(1).square().sum(1)

    def forward(self, y: Tensor) -> Tensor:
        """f(y), (B, ...) → (B, ...). A gradient can be taken of it where gradients are on."""
        wanted = torch.is_grad_enabled()
        # Lightning tests in inference mode, whose tensors have no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            if not (wanted and y.requires_grad):
                y = (y.clone() if y.is_inference() else y.detach()).requires_grad_()
            (slope,) = torch.autograd.grad(self.potential(y).sum(), y, create_graph=wanted)
        return slope

    @torch.no_grad()
    def clamp(self) -> None:
        """Sets the weights that must not be negative to 0 where they are."""
        for layer in self.positive():
            layer.weight.clamp_(min=0)


class VectorLPN(ProximalNetwork):
    """Of vectors (B, d): `layers` + 1 hidden layers, each but the first with a linear skip from the input, as has psi.

    The weights start as PyTorch's layers do, as in the released code: psi is convex from the first `clamp` on.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        hidden: int = 50,
        layers: int = 4,
        beta: float = 10.0,
        alpha: float = 0.0,
    ):
        super().__init__(beta, alpha)
        if hidden < 1 or layers < 1:
            raise UserError(f"backbone.hidden={hidden} and backbone.layers={layers} must be at least 1.")
        self.first = nn.Linear(in_channels, hidden, bias=False)
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(layers))
        self.last = nn.Linear(hidden, 1, bias=False)
        self.skips = nn.ModuleList(nn.Linear(in_channels, hidden) for _ in range(layers))
        self.last_skip = nn.Linear(in_channels, 1)
        self.last_skip.bias.requires_grad_(False)

    def positive(self) -> Iterator[nn.Module]:
        yield from (*self.inner, self.last)

    def _convex(self, y: Tensor) -> Tensor:
        z = self.activation(self.first(y))
        for layer, skip in zip(self.inner, self.skips, strict=True):
            z = self.activation(layer(z) + skip(y))
        return self.last(z) + self.last_skip(y)


class ImageLPN(ProximalNetwork):
    """Of images (B, C, H, W): convolutions and a dense layer with skips from the resized input, a weighted sum.

    Args:
        image_size: (H, W), divisible by the product of the strides.
        channels: of the convolutions.
        strides: of those after the first.
        features: units of the dense layer; over all places, so a network is of one image size.
        biases: whether the first and the last layer have biases.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: tuple[int, int],
        *,
        channels: int = 64,
        strides: Sequence[int] = (2, 1, 2),
        features: int = 64,
        beta: float = 10.0,
        alpha: float = 0.01,
        biases: bool = False,
    ):
        super().__init__(beta, alpha)
        if len(image_size) != 2:
            raise UserError("backbone=lpn takes images; backbone=lpn_vector takes vectors.")
        if min(channels, features, *strides) < 1:
            raise UserError("backbone.channels, backbone.features and backbone.strides must be at least 1.")
        side, self.sides = tuple(image_size), []
        for stride in strides:
            if any(length % stride for length in side):
                raise UserError(
                    f"Images of {image_size[0]}x{image_size[1]} do not fit backbone.strides={list(strides)}: "
                    "the product of the strides must divide both sides."
                )
            self.sides.append(side)  # of what the layer takes
            side = tuple(length // stride for length in side)
        self.sides.append(side)
        places = side[0] * side[1]

        def convolution(inputs: int, stride: int, bias: bool) -> nn.Conv2d:
            return nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=bias)

        self.first = convolution(in_channels, 1, biases)
        self.inner = nn.ModuleList(convolution(channels, stride, False) for stride in strides)
        self.skips = nn.ModuleList(convolution(in_channels, stride, True) for stride in strides)
        self.dense = nn.Linear(channels * places, features, bias=False)
        self.dense_skip = nn.Linear(in_channels * places, features)
        self.last = nn.Linear(features, 1, bias=biases)
        if biases:
            self.last.bias.requires_grad_(False)
        with torch.no_grad():
            for layer in self.positive():
                layer.weight.normal_(FIRST_MEAN, FIRST_STD).exp_()

    def positive(self) -> Iterator[nn.Module]:
        yield from (*self.inner, self.dense, self.last)

    def _convex(self, y: Tensor) -> Tensor:
        z = self.activation(self.first(y))
        for layer, skip, side in zip(self.inner, self.skips, self.sides[:-1], strict=True):
            z = self.activation(layer(z) + skip(resized(y, side)))
        z = self.activation(self.dense(z.flatten(1)) + self.dense_skip(resized(y, self.sides[-1]).flatten(1)))
        return self.last(z)


def resized(image: Tensor, side: tuple[int, int]) -> Tensor:
    """(B, C, H, W) → (B, C, *side), bilinear, without antialiasing: linear in the image.

    >>> resized(torch.arange(4.0).view(1, 1, 2, 2), (1, 1)).item()
    1.5
    """
    return image if image.shape[2:] == side else F.interpolate(image, side, mode="bilinear")
