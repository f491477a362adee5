"""Training and evaluation of a classifier of a graph's nodes. A method overrides `objective`, or `training_loss` and
`predict`.

A batch is a whole graph, see `regbench.data.graphs`: an epoch is one step.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from regbench.backbones.graph import as_graph_backbone
from regbench.errors import UserError
from regbench.metrics.classification import classification_metrics
from regbench.registry import TASKS
from regbench.regularizers.base import Method, batch_fields

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1


class Graph(NamedTuple):
    """What a method sees of a graph of N nodes.

    Attributes:
        features: (N, F).
        edges: int64 (2, E), each undirected edge in both directions.
        label: int64 (N,), the training nodes' labels as they are given, −1 elsewhere.
        train_mask: bool (N,).
    """

    features: Tensor
    edges: Tensor
    label: Tensor
    train_mask: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> "Graph":
        """Raises UserError where the batch lacks a field."""
        return cls(*batch_fields(batch, TASKS["node_classification"]))


class NodeMethod(Method):
    """Cross entropy on the training nodes; top-1 and top-5, negative log-likelihood and calibration as images have.

    Args:
        backbone: maps features (N, F) and edges (2, E) to logits (N, num_classes), or to codes (N, p) for a method that
            `takes_codes`.

    Attributes:
        takes_codes: whether the backbone gives codes, which the method classifies itself.
    """

    takes_codes = False

    def __init__(self, backbone: nn.Module, num_classes: int, **base):
        backbone = as_graph_backbone(backbone)
        if (backbone.codes is not None) != self.takes_codes:
            wanted = "codes, e.g. backbone=erase_gat" if self.takes_codes else "logits, e.g. backbone=gcn"
            raise UserError(f"{type(self).__name__} needs a network that gives {wanted}.")
        super().__init__(backbone, num_classes, **base)
        self.val_metrics = classification_metrics(num_classes, "val/")
        self.test_metrics = classification_metrics(num_classes, "test/", ranking=True)
        self.test_confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        """The backbone's rows (N, …), as at test time."""
        return self.backbone(features, edges)

    # -- what a method overrides -----------------------------------------------------------------------------------

    def objective(self, logits: Tensor, graph: Graph) -> Tensor:
        """The loss (scalar) of the logits (N, C) of all nodes."""
        return F.cross_entropy(logits[graph.train_mask], graph.label[graph.train_mask])

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        graph = Graph.of(batch)
        return self.objective(self.backbone(graph.features, graph.edges), graph)

    def predict(self, graph: Graph) -> Tensor:
        """Logits (N, C) of all nodes, as at test time. It may look at the training nodes' given labels."""
        return self(graph.features, graph.edges)

    # -- evaluation ------------------------------------------------------------------------------------------------

    def validation_step(self, batch, batch_idx: int) -> None:
        self.val_metrics.update(self.predict(Graph.of(batch))[batch["node"]], batch["target"])

    def on_validation_epoch_end(self) -> None:
        for name, value in self.val_metrics.compute().items():
            self.log(name, value, prog_bar=name == "val/accuracy")
        self.val_metrics.reset()

    def test_step(self, batch, batch_idx: int) -> None:
        logits = self.predict(Graph.of(batch))[batch["node"]]
        self.test_metrics.update(logits, batch["target"])
        self.test_confusion.update(logits, batch["target"])

    def on_test_epoch_start(self) -> None:
        self.test_confusion.reset()

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute())
        self.test_metrics.reset()
        self.confusion = self.test_confusion.compute()
