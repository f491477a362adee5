"""Pufferfish: a network that was trained for a while is cut to low rank by SVD, and trained on. A baseline."""

from typing import ClassVar

from torch import nn

from regbench.backbones.backbone import as_backbone
from regbench.backbones.low_rank import factorise, layers_of, replace_modules
from regbench.errors import UserError
from regbench.functional.low_rank import rank_at, smaller_as_pair
from regbench.registry import Paper, register
from regbench.regularizers.compression.base import CompressionMethod


def cut_by_svd(network: nn.Module, share: float, **which) -> None:
    """Makes a network's layers pairs of plain layers of rank ⌈share · min(m, n)⌉, the best of that rank, in place.

    A layer that a pair of this rank would not make smaller stays one layer, and keeps its full rank.

    Args:
        which: which layers, see `regbench.backbones.low_rank.factorise`.

    >>> network = nn.Sequential(nn.Linear(8, 12))
    >>> cut_by_svd(network, 0.25)
    >>> network
    Sequential(
      (0): Sequential(
        (inner): Linear(in_features=8, out_features=2, bias=False)
        (outer): Linear(in_features=2, out_features=12, bias=True)
      )
    )
    """
    factorise(network, **which)
    layers = layers_of(network).values()
    for layer in layers:
        rank = rank_at(layer.full_rank, share)
        layer.cut = rank if smaller_as_pair(rank, *layer.sizes) else None
    replace_modules(network, {layer: layer.plain() for layer in layers})


@register(
    "pufferfish",
    task="classification",
    paper=Paper(
        title="Pufferfish: Communication-efficient Models At No Extra Cost",
        authors="Hongyi Wang, Saurabh Agarwal, Dimitris Papailiopoulos",
        year=2021,
        venue="MLSys",
        arxiv="2103.03936",
        code="https://github.com/hwang595/Pufferfish",
    ),
)
class Pufferfish(CompressionMethod):
    """Some epochs at full rank, then layers cut to a quarter of their rank by SVD and trained on, keep the accuracy of
    training at full rank.

    Args:
        warmup: the network trained at full rank; `artifacts.warmup` says which run makes it.
        share: of its full rank that a layer keeps, above 0 and at most 1.
        skip_first: layers at the start that stay whole.
        skip_last: whether the classifier stays whole.
        pointwise: whether 1 × 1 convolutions, such as a ResNet's shortcuts, are cut too.
    """

    artifacts: ClassVar[tuple[str, ...]] = ("warmup",)
    replaces_layers: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        warmup: nn.Module,
        share: float = 0.25,
        skip_first: int = 1,
        skip_last: bool = True,
        pointwise: bool = False,
        **base,
    ):
        network = as_backbone(backbone)
        network.load_state_dict(as_backbone(warmup).state_dict())
        # Before what is stacked: a stacked method may reparameterise the weights.
        super().__init__(network, num_classes, **base)
        if not 0 < share <= 1:
            raise UserError(f"pufferfish needs a share in (0, 1]; it got share={share}.")
        self.share = share
        which = {"skip_first": skip_first, "skip_last": skip_last, "pointwise": pointwise}
        cut_by_svd(self.backbone.network, share, **which)
