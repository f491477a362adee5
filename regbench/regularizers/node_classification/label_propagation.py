"""Label propagation (Zhou et al. 2003): no network, no training."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.extras import need_torch_geometric
from regbench.functional.label_propagation import one_hot
from regbench.registry import Paper, register
from regbench.regularizers.node_classification.base import Graph, NodeMethod

FLOOR = 1e-6  # added to the scores, so that a node that no label reaches has a uniform distribution


@register(
    "label_propagation",
    task="node_classification",
    paper=Paper(
        title="Learning with Local and Global Consistency",
        authors="Dengyong Zhou, Olivier Bousquet, Thomas Navin Lal, Jason Weston, Bernhard Schölkopf",
        year=2003,
        venue="NeurIPS",
    ),
)
class LabelPropagation(NodeMethod):
    """The given labels flow along the edges: a node's class is the one of which most arrives. Nothing is trained.

    Y ← clamp(α D^(-1/2) A D^(-1/2) Y + (1 − α) Y₀, 0, 1), `steps` times, by PyTorch Geometric. The scores of a node,
    divided by their sum, are its probabilities. Features and network are not used; one epoch is enough.

    Args:
        alpha: the neighbours' part α, in [0, 1].
        steps: number of steps.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, alpha: float = 0.9, steps: int = 50, **base):
        super().__init__(backbone, num_classes, **base)
        if not 0 <= alpha <= 1 or steps < 1:
            raise UserError(
                f"regularizer.alpha={alpha} lies in [0, 1], and regularizer.steps={steps} is at least 1."
            )
        need_torch_geometric()
        from torch_geometric.nn import LabelPropagation as Propagation

        self.automatic_optimization = False  # the optimiser is never stepped: there is nothing to optimise
        self.propagation = Propagation(num_layers=steps, alpha=alpha)

    def training_step(self, batch, batch_idx: int) -> None:
        self.track(self.training_loss(batch), batch_idx)

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The cross entropy of the training nodes; it has no gradient."""
        graph = Graph.of(batch)
        return self.objective(self.predict(graph), graph)

    def predict(self, graph: Graph) -> Tensor:
        scores = self.propagation(one_hot(graph.label, self.num_classes), graph.edges) + FLOOR
        return torch.log(scores / scores.sum(1, keepdim=True))
