"""What a network costs: parameters, and a forward pass's multiplications as PyTorch's own counter counts them."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Attributes:
    params: number of weights, biases and parameters of norms.
    macs: multiply-accumulates of one sample's forward pass through convolutions, linear layers and attention.
    """

    params: int
    macs: int


def cost_of(network: nn.Module, shape: Sequence[int]) -> Cost:
    """A network's cost on one sample of this shape, without computing anything.

    >>> cost_of(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    Cost(params=65, macs=60)
    """
    params = sum(p.numel() for p in network.parameters())
    return Cost(params, _counter(network, shape).get_total_flops() // 2)


def macs_of_modules(network: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Name of each submodule that multiplies → its multiply-accumulates on one sample of this shape; "" is the network.

    >>> sorted(macs_of_modules(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2)).items())
    [('', 60), ('1', 60)]
    """
    root = type(network).__name__
    counts = _counter(network, shape).get_flop_counts()
    return {
        name.removeprefix(root).removeprefix("."): sum(kinds.values()) // 2
        for name, kinds in counts.items()
        if name == root or name.startswith(f"{root}.")
    }


def _counter(network: nn.Module, shape: Sequence[int]) -> FlopCounterMode:
    """The counter after one sample of this shape went through a copy of the network that holds no numbers."""
    counter = FlopCounterMode(display=False)
    # Outside inference mode, in which the counter would see no linear layers.
    with torch.inference_mode(False), torch.no_grad():
        copied = copy.deepcopy(network).to("meta").eval()
        with counter:
            copied(torch.zeros(1, *shape, device="meta"))
    return counter
