"""Plain cross entropy on the training nodes of a graph: the baseline of the node classification family."""

from regbench.registry import register
from regbench.regularizers.node_classification.base import NodeMethod


@register("node_ce", task="node_classification", paper=None)
class NodeCrossEntropy(NodeMethod):
    """Plain training: cross entropy on the labelled nodes of a graph, no regularization."""
