"""What methods that compress a classifier share: what the compressed network costs, beside the one it was made of."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone
from regbench.backbones.low_rank import factorise, layers_of, macs_by_rank, plain
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
        """What the compressed network, `plain_backbone()`, costs on one image; called at the test."""
        return cost_of(network, self._shape)

    def test_step(self, batch, batch_idx: int) -> None:
        self._shape = tuple(batch_fields(batch, ("image",))[0].shape[1:])
        super().test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        with torch.inference_mode(False):
            ours, given = self.cost(self.plain_backbone()), cost_of(self._given[0], self._shape)
        self.log_dict(
            {
                "test/params_m": ours.params / 1e6,
                "test/macs_m": ours.macs / 1e6,
                "test/params_ratio": ours.params / given.params,
                "test/macs_ratio": ours.macs / given.macs,
            }
        )


class LowRankMethod(CompressionMethod):
    """A compression method that trains layers in factors and chooses how many of their components are left.

    Logged after each epoch: `train/rank`, the components that are left over all that there were. Logged at the test:
    `test/rank` and, of each layer, `test/rank_<layer>`; `test/train_macs_ratio`, the multiply-accumulates of training's
    forward passes over those of the given network's, as far as the method counts them (`spend`).
    """

    def put_into_factors(self, **which) -> None:
        """Puts the network's layers into factors; for the constructor. Options: `low_rank.factorise`."""
        factorise(self.backbone.network, **which)
        self.layers = layers_of(self.backbone.network)
        # Forward passes of the given network that training's would pay for, and the number of steps.
        self.register_buffer("spent", torch.zeros(2))
        self._spent = [0.0, 0]  # of the epoch under way
        self._macs = None

    def passes(self, image: Tensor, *ranks: Sequence[int]) -> float:
        """What forward passes of images (B, C, H, W) cost, one at each of the layers' ranks, in passes of the given
        network.
        """
        if self._macs is None:
            shape = tuple(image.shape[1:])
            whole = macs_by_rank(self.backbone.network, shape, deployed=True)
            self._macs = (
                macs_by_rank(self.backbone.network, shape),
                whole([layer.full_rank for layer in self.layers.values()]),
            )
        macs, given = self._macs
        return sum(map(macs, ranks)) / given

    def spend(self, passes: float) -> None:
        """Adds what a step's forward passes cost, in passes of the given network."""
        self._spent[0] += passes
        self._spent[1] += 1

    def end_epoch(self) -> None:
        """For a loop of one's own; RegBench's calls it at each epoch's end, before validation."""
        self.spent += torch.tensor(self._spent, device=self.spent.device)
        self._spent = [0.0, 0]

    def rank_share(self) -> float:
        """The components that are left over all that there were."""
        layers = self.layers.values()
        return sum(layer.rank for layer in layers) / sum(layer.full_rank for layer in layers)

    def plain_backbone(self) -> Backbone:
        return plain(super().plain_backbone())

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        if batch_idx + 1 == self.trainer.num_training_batches:  # validation comes before `on_train_epoch_end`
            self.end_epoch()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.log("train/rank", self.rank_share())

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.log("test/rank", self.rank_share())
        for name, layer in self.layers.items():
            self.log(f"test/rank_{name.replace('.', '_')}", float(layer.rank))
        passes, steps = self.spent.tolist()
        self.log("test/train_macs_ratio", passes / max(steps, 1))
