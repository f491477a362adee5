"""Networks on graphs: called with the features (N, F) and the edges (2, E) of all nodes, they give a row a node."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError, unknown
from regbench.extras import need_torch_geometric

LAYERS = ("gat", "gcn")
NORMS = ("l1", "l2", "none")


class GraphBackbone(Backbone):
    """Wraps a network that maps features (N, F) and edges (2, E) to one row a node.

    The rows are logits (N, num_classes). A network with an attribute `codes` = p gives representations (N, p) instead,
    which a method classifies itself.
    """

    def __init__(self, network: nn.Module):
        super().__init__(network, stages=())

    @property
    def codes(self) -> int | None:
        """p for a network that gives representations, None for one that gives logits."""
        return getattr(self.network, "codes", None)

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        return self.network(features, edges)


def as_graph_backbone(module: nn.Module) -> GraphBackbone:
    """The module itself if it is a `GraphBackbone`, else the module wrapped."""
    return module if isinstance(module, GraphBackbone) else GraphBackbone(module)


class FeatureDropout(nn.Module):
    """Dropout of the nodes' features (N, F). Random numbers are drawn for the entries that are not zero only: of a bag
    of words that is one in a hundred, and the others stay zero either way.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        # The features of the last call, and the places of their entries, row by row.
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or not self.p:
            return features
        if self._seen is None or self._seen[0] is not features:
            self._seen = features, features.flatten().nonzero().flatten()
        places = self._seen[1]
        kept = F.dropout(features.flatten()[places], self.p)
        return torch.zeros_like(features).flatten().index_copy_(0, places, kept).view_as(features)


class GraphNetwork(nn.Module):
    """Graph convolutions with dropout before each and an activation between them."""

    def __init__(self, layers: list[nn.Module], activation: nn.Module, dropout: float):
        super().__init__()
        self.feature_dropout = FeatureDropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.activation = activation
        self.dropout = dropout

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        first, *others = self.layers
        x = first(self.feature_dropout(features), edges)
        for layer in others:
            x = layer(F.dropout(self.activation(x), self.dropout, self.training), edges)
        return x


class CodeNetwork(nn.Module):
    """Two graph convolutions to codes of non-negative entries; see `erase_encoder`."""

    def __init__(
        self, layers: list[nn.Module], codes: int, dropout: float, slope: float, norms: tuple[str, str]
    ):
        super().__init__()
        self.codes = codes
        self.layers = nn.ModuleList(layers)
        self.feature_dropout = FeatureDropout(dropout)
        self.slope = slope
        self.norms = norms

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        x = self.layers[0](self.feature_dropout(features), edges)
        x = unit_rows(F.leaky_relu(x, self.slope), self.norms[0])
        return unit_rows(self.layers[1](x, edges), self.norms[1]).relu()


def unit_rows(x: Tensor, norm: str) -> Tensor:
    """Each row (N, p) divided by its L1 or L2 norm; rows of zeros stay.

    >>> from torch import tensor
    >>> unit_rows(tensor([[3.0, -1.0, 0.0, 4.0]]), "l1").relu().tolist()
    [[0.375, 0.0, 0.0, 0.5]]
    """
    return x if norm == "none" else F.normalize(x, p=1 if norm == "l1" else 2, dim=1)


def gcn(
    in_channels: int, num_classes: int, *, hidden: int = 64, depth: int = 2, dropout: float = 0.5
) -> GraphBackbone:
    """Graph convolutional network (Kipf & Welling 2017): ReLU between layers with symmetric normalisation."""
    widths = [in_channels, *[_positive("hidden", hidden)] * (depth - 1), num_classes]
    layers = [_conv()[1](a, b) for a, b in pairwise(widths)]
    return GraphBackbone(GraphNetwork(layers, nn.ReLU(), dropout))


def gat(
    in_channels: int,
    num_classes: int,
    *,
    hidden: int = 64,
    heads: int = 8,
    dropout: float = 0.6,
    attention_dropout: float = 0.6,
) -> GraphBackbone:
    """Graph attention network (Veličković et al. 2018): two layers, ELU between them, one head in the last."""
    attention, _ = _conv()
    layers = [
        attention(in_channels, _per_head(hidden, heads), heads, dropout=attention_dropout),
        attention(hidden, num_classes, 1, dropout=attention_dropout),
    ]
    return GraphBackbone(GraphNetwork(layers, nn.ELU(), dropout))


def erase_encoder(
    in_channels: int,
    *,
    layer: str = "gat",
    hidden: int = 256,
    heads: int = 8,
    codes: int = 512,
    dropout: float = 0.5,
    slope: float = 0.01,
    norm: str = "l1",
    last_norm: str = "l1",
) -> GraphBackbone:
    """The encoder of ERASE's released code for small graphs: codes (N, p) with non-negative entries.

    Dropout on the features, a layer, LeakyReLU, each row divided by its L1 norm; a second layer (one head), each row
    divided by its L1 norm, then ReLU. A code's entries so sum to at most 1, and its L2 norm is 1 only for a single
    entry. The code for ogbn-arxiv has slope 0 and ends with L1, L2 norm and ReLU, which is last_norm=l2.
    """
    if layer not in LAYERS:
        raise unknown("backbone.layer", layer, LAYERS)
    for name, value in (("norm", norm), ("last_norm", last_norm)):
        if value not in NORMS:
            raise unknown(f"backbone.{name}", value, NORMS)
    attention, convolution = _conv()
    if layer == "gcn":
        layers = [convolution(in_channels, hidden), convolution(hidden, codes)]
    else:
        layers = [attention(in_channels, _per_head(hidden, heads), heads), attention(hidden, codes, 1)]
    return GraphBackbone(CodeNetwork(layers, codes, dropout, slope, (norm, last_norm)))


def _conv() -> tuple[type[nn.Module], type[nn.Module]]:
    need_torch_geometric()
    from torch_geometric.nn import GATConv, GCNConv

    return GATConv, GCNConv


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise UserError(f"backbone.{name}={value} must be at least 1.")
    return value


def _per_head(hidden: int, heads: int) -> int:
    if heads < 1 or hidden < heads or hidden % heads:
        raise UserError(f"backbone.hidden={hidden} does not divide into backbone.heads={heads} equal parts.")
    return hidden // heads
