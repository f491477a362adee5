"""A sparse mixture of experts as a classifier of images, each of which is one token.

The router stands in the network, so that it is what is tested; a method chooses it (`regularizer=moe_router`).
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError
from regbench.functional.routing import Routing, route


class Routed(NamedTuple):
    """What a router did in its last pass.

    Attributes:
        logits: (N, E), without noise.
        noisy: (N, E), those that were routed; `logits` itself where there was no noise.
        routings: one for each group of tokens.
    """

    logits: Tensor
    noisy: Tensor
    routings: list[Routing]


class Router(nn.Module):
    """Gate logits (N, E) → where tokens go and the gates, group by group; it has no weights.

    Args:
        group_size: tokens that are routed together; the last group may be smaller.
        options: those of `regbench.functional.routing.route`.

    Attributes:
        noise: standard deviation of normal noise on the logits while training; 0: none.
        generator: a function that gives the noise's generator; None: no noise.
        last: what the last pass did; whoever reads it takes it away.
    """

    def __init__(self, group_size: int = 256, **options):
        super().__init__()
        self.group_size = group_size
        self.route = partial(route, **({"router": "topk"} | options))
        self.noise = 0.0
        self.generator = None
        self.last: Routed | None = None

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mask, bool (N, E), and gates (N, E)."""
        noisy = logits
        if self.training and self.noise > 0 and self.generator is not None:
            drawn = torch.randn(logits.shape, generator=self.generator())
            noisy = logits + self.noise * drawn.to(logits)
        routings = [self.route(group.detach()) for group in noisy.split(self.group_size)]
        self.last = Routed(logits, noisy, routings)
        return torch.cat([routing.mask for routing in routings]), noisy.softmax(1)

    def take(self) -> Routed:
        """What the last pass did."""
        last, self.last = self.last, None
        return last


class MixtureOfExperts(nn.Module):
    """y_i = Σ_j S_ij Expert_j(x_i) over the experts j that token i goes to; 0 for a token that goes to none.

    S = softmax(W x) over all experts, W without bias. An expert is computed on its own tokens only.

    Args:
        inputs, outputs: numbers of a token.
        experts: E, two layers with ReLU and `hidden` units each.
    """

    def __init__(self, inputs: int, outputs: int, experts: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(inputs, experts, bias=False)
        self.router = Router()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
            for _ in range(experts)
        )
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) → (N, outputs)."""
        mask, gates = self.router(self.gate(x))
        y = x.new_zeros(len(x), self.outputs)
        for j, expert in enumerate(self.experts):
            own = (
                mask[:, j].nonzero().squeeze(1)
            )  # without any, the expert's gradient is 0 and not missing: DDP wants one
            y = y.index_add(0, own, (gates[own, j, None] * expert(x[own])).to(y.dtype))
        return y


class MoEClassifier(nn.Module):
    """Logits of an image: a linear layer on its pixels plus a mixture of experts; the linear layer alone serves images
    that go to no expert."""

    def __init__(self, inputs: int, num_classes: int, experts: int, hidden: int):
        super().__init__()
        self.flatten = nn.Flatten()
        self.moe = MixtureOfExperts(inputs, num_classes, experts, hidden)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.flatten(image)
        return self.fc(x) + self.moe(x)


def moe_classifier(
    in_channels: int, image_size: tuple[int, int], num_classes: int, *, experts: int = 8, hidden: int = 32
) -> Backbone:
    """A mixture of experts on an image's pixels beside a linear layer.

    Args:
        experts: number of experts.
        hidden: units of an expert's hidden layer.
    """
    if experts < 2 or hidden < 1:
        raise UserError(f"moe's experts={experts} must be at least 2 and hidden={hidden} at least 1.")
    network = MoEClassifier(in_channels * image_size[0] * image_size[1], num_classes, experts, hidden)
    return Backbone(network, (), "fc")
