"""A space of regularization hyperparameters that are tuned while a network trains, and how they act on a batch."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional import per_example


class Range(NamedTuple):
    """Where a hyperparameter lies, in (low, high), and where it starts. `whole`: it is used rounded down."""

    low: float
    high: float
    start: float
    whole: bool = False


# Ranges and starts are those of asteroidhouse/self-tuning-networks, cnn/util/hyperparameter.py, but for the two whole
# numbers' starts (there 4 and 1, and the floor at a whole number lets the first step change the value).
RANGES = {
    "dropout": Range(0.0, 0.9, 0.05),  # a rate for each place of dropout in the network
    "input_dropout": Range(0.0, 1.0, 0.05),  # rate, pixels and colours apart
    "input_scale": Range(0.0, 0.3, 0.05),  # s: the image times U[1 / (1 + s), 1 + s]
    "brightness": Range(0.0, 1.0, 0.05),  # j: factor U[1 − j, 1 + j]
    "contrast": Range(0.0, 1.0, 0.05),  # the same
    "saturation": Range(0.0, 1.0, 0.05),  # the same
    "hue": Range(0.0, 0.5, 0.05),  # h: the hue is turned by U[−h, h] of the circle
    "cutout_length": Range(0.0, 24.0, 4.5, whole=True),  # pixels
    "cutout_holes": Range(0.0, 4.0, 1.5, whole=True),  # squares an image
}
LIMITS = dict.fromkeys(("dropout", "input_dropout", "brightness", "contrast", "saturation"), 1.0) | {
    "hue": 0.5
}
JITTER = ("brightness", "contrast", "saturation", "hue")  # in this order


def constrain(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """low + (high − low) · sigmoid(value).

    >>> round(constrain(torch.tensor(-2.833213), 0.0, 0.9).item(), 6)
    0.05
    """
    return low + (high - low) * torch.sigmoid(value)


def unconstrain(value: float, low: float, high: float) -> float:
    """The inverse of `constrain`, of a number strictly between both ends.

    >>> round(unconstrain(0.05, 0.0, 0.9), 6), round(unconstrain(0.05, 0.0, 0.5), 6)
    (-2.833213, -2.197225)
    """
    share = (value - low) / (high - low)
    return math.log(share / (1 - share))


class Space:
    """The hyperparameters that are tuned, in a fixed order.

    Args:
        tune: keys of RANGES.
        ranges: key → [low, high, start], where they differ from RANGES.
        sites: places of dropout in the network: "dropout" stands for dropout_1, dropout_2, ….

    Attributes:
        names: of the H hyperparameters.
        ranges: their ranges.

    >>> Space(["dropout", "hue"], {"hue": [0.0, 0.2, 0.1]}, sites=2).names
    ['dropout_1', 'dropout_2', 'hue']
    """

    def __init__(self, tune: Sequence[str], ranges: Mapping[str, Sequence[float]], sites: int):
        for key in (*tune, *ranges):
            if key not in RANGES:
                raise unknown("hyperparameter to tune", key, RANGES)
        if not tune or len(set(tune)) < len(tune):
            raise UserError(
                f"regularizer.tune={list(tune)} must name one or more hyperparameters, each once."
            )
        if ("cutout_length" in tune) != ("cutout_holes" in tune):
            raise UserError(
                "regularizer.tune: cutout_length and cutout_holes work together; name both or none."
            )
        if "dropout" in tune and not sites:
            raise UserError(
                "regularizer.tune names dropout, but the backbone has one layer and no dropout layer; leave it out."
            )
        own = dict(RANGES)
        for key, values in ranges.items():
            if len(values) != 3 or not 0 <= values[0] < values[2] < values[1]:
                raise UserError(
                    f"regularizer.ranges.{key}={list(values)} must be [low, high, start] with 0 ≤ low < start < high."
                )
            if values[1] > LIMITS.get(key, math.inf):
                raise UserError(
                    f"regularizer.ranges.{key}={list(values)} must end at {LIMITS[key]:g} or below."
                )
            own[key] = Range(*map(float, values), whole=RANGES[key].whole)
        expanded = [
            (f"dropout_{i}" if key == "dropout" else key, own[key])
            for key in tune
            for i in range(1, sites + 1 if key == "dropout" else 2)
        ]
        self.names = [name for name, _ in expanded]
        self.ranges = [range_ for _, range_ in expanded]
        self.column = {name: i for i, name in enumerate(self.names)}
        self._low = torch.tensor([r.low for r in self.ranges])
        self._high = torch.tensor([r.high for r in self.ranges])
        self._whole = torch.tensor([r.whole for r in self.ranges])

    def __len__(self) -> int:
        return len(self.names)

    def start(self) -> Tensor:
        """The unconstrained start values (H,)."""
        return torch.tensor([unconstrain(r.start, r.low, r.high) for r in self.ranges])

    def real(self, value: Tensor) -> Tensor:
        """Unconstrained (..., H) → values in their ranges (..., H), whole numbers rounded down."""
        # Copied to the device once, not at each step.
        self._low, self._high, self._whole = (
            t.to(value.device) for t in (self._low, self._high, self._whole)
        )
        return self.rounded(constrain(value, self._low, self._high))

    def rounded(self, real: Tensor) -> Tensor:
        """Values (..., H) with whole numbers rounded down."""
        self._whole = self._whole.to(real.device)
        return torch.where(self._whole, real.floor(), real)

    def regularised(self, image: Tensor, real: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """What is tuned of the input, applied to a batch: colours, cutout, input dropout, scaling, in this order.

        Args:
            image: (B, C, H, W), normalised.
            real: values (B, number of hyperparameters).
            mean, std: (C, 1, 1), of the normalisation.

        Returns:
            (B, C, H, W).
        """
        value = {name: real[:, i] for name, i in self.column.items()}
        if any(name in value for name in JITTER):
            pixels = (image * std + mean).clamp(0, 1)
            for name in JITTER:
                if name in value:
                    draw = 2 * torch.rand(len(image), device=image.device) - 1
                    change = value[name] * draw if name == "hue" else 1 + value[name] * draw
                    pixels = getattr(per_example, name)(pixels, change)
            image = (pixels - mean) / std
        if "cutout_length" in value:
            most = int(self.ranges[self.column["cutout_holes"]].high)
            image = per_example.cutout(image, value["cutout_length"], value["cutout_holes"], most)
        if "input_dropout" in value:
            image = per_example.dropout(image, value["input_dropout"])
        if "input_scale" in value:
            image = per_example.scale(image, value["input_scale"])
        return image

    def check_channels(self, channels: int) -> None:
        """Raises UserError where colours are tuned of images that have none."""
        if channels != 3 and {"saturation", "hue"} & set(self.names):
            raise UserError(
                f"regularizer.tune: saturation and hue need 3 channels, the images have {channels}; leave them out."
            )


class Current:
    """The values (B, H) that the batch in the network is regularised with; None: not at all."""

    def __init__(self):
        self.real: Tensor | None = None


class DropInput:
    """A forward pre-hook: drops the module's input at the rates in a column of `current`, in training mode only."""

    def __init__(self, current: Current, column: int, channels: bool):
        self.current, self.column, self.channels = current, column, channels

    def __call__(self, module: nn.Module, args: tuple) -> tuple | None:
        if self.current.real is None or not module.training:
            return None
        return per_example.dropout(args[0], self.current.real[:, self.column], self.channels), *args[1:]


def weight_layers(network: nn.Module) -> list[str]:
    """Names of the linear layers and 2-D convolutions, in the order of their definition.

    Of exactly these classes: torch's attention has a linear layer that it never calls.
    """
    return [name for name, module in network.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]


def dropout_sites(network: nn.Module) -> list[tuple[str, bool]]:
    """Where dropout is tuned: (name of a module whose input is dropped, whether in whole channels).

    They are the network's own dropout layers; where it has none, all weight layers but the first.

    Raises:
        UserError: the network's own dropout is on.
    """
    own = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    on = [name for name, module in own if module.p > 0]
    if on:
        raise UserError(
            f"The backbone's own dropout is on ({on[0]}), beside the one that is tuned; set backbone.dropout=0."
        )
    if own:
        return [(name, isinstance(module, nn.Dropout2d)) for name, module in own]
    return [(name, isinstance(network.get_submodule(name), nn.Conv2d)) for name in weight_layers(network)[1:]]


def attach_dropout(
    network: nn.Module, sites: Sequence[tuple[str, bool]], space: Space, current: Current
) -> None:
    """Puts the hooks of the space's dropout_1, dropout_2, … on the sites."""
    for i, (name, channels) in enumerate(sites, start=1):
        if f"dropout_{i}" in space.column:
            hook = DropInput(current, space.column[f"dropout_{i}"], channels)
            network.get_submodule(name).register_forward_pre_hook(hook)


def softplus_inverse(value: float) -> float:
    """x with ln(1 + e^x) = value > 0.

    >>> round(softplus_inverse(0.5), 6)
    -0.432752
    """
    return math.log(math.expm1(value))
