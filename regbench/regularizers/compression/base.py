"""What methods that compress a classifier share: what the compressed network costs, beside the one it was made of."""

import copy

import torch
from torch import nn

from regbench.functional.cost import Cost, cost_of
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1


class CompressionMethod(ClassificationMethod):
    """A classification method whose `plain_backbone()` is smaller than the network that it was given.

    Logged at the test: `test/params_m` and `test/macs_m`, millions of parameters and of multiply-accumulates for one
    image of the compressed network, and `test/params_ratio` and `test/macs_ratio`, these over the given network's. What
    a method saves in another way (zeros, bits), it says by overriding `cost`.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, **base):
        super().__init__(backbone, num_classes, **base)
        # The given network's layers without its numbers. In a tuple, so that it is no submodule.
        self._given = (copy.deepcopy(self.backbone).to("meta"),)
        self._shape: tuple[int, ...] | None = None  # (C, H, W) of the images

    def cost(self, network: nn.Module) -> Cost:
        """What a network costs on one image; called at the test with `plain_backbone()` and with the given network."""
        return cost_of(network, self._shape)

    def test_step(self, batch, batch_idx: int) -> None:
        self._shape = tuple(batch_fields(batch, ("image",))[0].shape[1:])
        super().test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        with torch.inference_mode(False):
            ours, given = self.cost(self.plain_backbone()), self.cost(self._given[0])
        self.log_dict(
            {
                "test/params_m": ours.params / 1e6,
                "test/macs_m": ours.macs / 1e6,
                "test/params_ratio": ours.params / given.params,
                "test/macs_ratio": ours.macs / given.macs,
            }
        )
