"""How a network's weights are spread, and what pruning the smallest costs (callback `weights`)."""

import copy

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torchmetrics.classification import MulticlassAccuracy

from regbench.errors import UserError
from regbench.regularizers.base import batch_fields

NEAR = 0.1  # a weight below this many standard deviations counts as near zero


def participation_ratio(w: Tensor) -> Tensor:
    """(Σ w²)² / (n Σ w⁴): 1 where all |w| are alike, 5/9 for a uniform distribution around zero, 1/3 for a Gaussian,
    1/n where one weight stands alone.

    >>> round(participation_ratio(torch.tensor([1.0, -1.0, 2.0])).item(), 4)
    0.6667
    """
    square = w.square()
    return square.sum().square() / (square.square().sum() * w.numel())


def spread(w: Tensor) -> Tensor:
    """(3,): participation ratio, max|w| / σ, and the share of weights with |w| < 0.1 σ; σ is their standard deviation.

    >>> [round(x, 4) for x in spread(torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0])).tolist()]
    [0.5882, 1.4142, 0.2]
    """
    sigma, size = w.std(correction=0), w.abs()
    near = (size < NEAR * sigma).to(w.dtype).mean()
    return torch.stack([participation_ratio(w), size.max() / sigma, near])


NAMES = ("participation_ratio", "max_over_sigma", "near_zero")


def layers_of(network: nn.Module) -> list[nn.Module]:
    """Convolutions and linear layers; their `weight` is what they use, i.e. with any reparameterisation."""
    return [module for module in network.modules() if isinstance(module, nn.Linear | _ConvNd)]


class Mask(nn.Module):
    """Sets the smallest |w|, a share of the weights, to zero: a parametrisation."""

    def __init__(self, w: Tensor, share: float):
        super().__init__()
        self.register_buffer("mask", torch.ones_like(w))
        smallest = w.abs().flatten().topk(round(share * w.numel()), largest=False).indices
        self.mask.view(-1)[smallest] = 0.0

    def forward(self, w: Tensor) -> Tensor:
        return w * self.mask


def pruned(network: nn.Module, share: float) -> nn.Module:
    """A copy of a network in which the smallest |w| of each layer, a share of its weights, are zero."""
    network = copy.deepcopy(network)
    for layer in layers_of(network):
        # On top of what reparameterises the weight already: exact, and it needs no inverse of that.
        parametrize.register_parametrization(layer, "weight", Mask(layer.weight.detach().contiguous(), share))
    return network


class Weights(pl.Callback):
    """Logs the mean over the layers of `spread`: `test/participation_ratio`, `test/max_over_sigma`, `test/near_zero`;
    the same under `train/` after each epoch; and `test/pruning_drop`, the accuracy that pruning costs.

    Args:
        share: of each layer's weights that are pruned, the smallest; 0 does not prune, and measures no drop.
    """

    def __init__(self, share: float = 0.3):
        if not 0 <= share < 1:
            raise UserError(f"callbacks.weights.share={share} must be at least 0 and below 1.")
        self.share = share
        self.networks: list[nn.Module] = []
        self.accuracies: list[MulticlassAccuracy] = []

    def _log(self, module: pl.LightningModule, stage: str) -> None:
        rows = torch.stack([spread(layer.weight.detach().float()) for layer in layers_of(module.backbone)])
        for name, value in zip(NAMES, rows.mean(dim=0), strict=True):
            module.log(f"{stage}/{name}", value)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._log(module, "train")

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.share:
            self.networks = [module.backbone, pruned(module.backbone, self.share)]
            self.accuracies = [
                MulticlassAccuracy(module.num_classes, average="micro").to(module.device) for _ in range(2)
            ]

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx: int, dataloader_idx: int = 0):
        if self.share:
            image, label = batch_fields(batch, ("image", "label"))
            with trainer.precision_plugin.forward_context():
                for network, accuracy in zip(self.networks, self.accuracies, strict=True):
                    accuracy.update(network(image), label)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._log(module, "test")
        if self.share:
            whole, cut = (accuracy.compute() for accuracy in self.accuracies)
            module.log("test/pruning_drop", whole - cut)
            self.networks, self.accuracies = [], []
