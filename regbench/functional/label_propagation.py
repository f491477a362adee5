"""Labels that flow along the edges of a graph: one sparse product a step."""

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALISATIONS = ("column", "row", "symmetric")


def adjacency(edges: Tensor, nodes: int, normalisation: str) -> Tensor:
    """The normalised adjacency matrix, sparse (nodes, nodes), without self-loops of its own.

    With degrees d: column A D⁻¹ (a node's share goes to its neighbours in equal parts), row D⁻¹ A (a node takes the
    mean of its neighbours), symmetric D^(-1/2) A D^(-1/2). Nodes without neighbours have an empty row and column.

    Args:
        edges: int64 (2, E), each undirected edge in both directions.
        normalisation: one of NORMALISATIONS.

    >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    >>> adjacency(path, 3, "column").to_dense()
    tensor([[0.0000, 0.5000, 0.0000],
            [1.0000, 0.0000, 1.0000],
            [0.0000, 0.5000, 0.0000]])
    """
    source, target = edges
    degree = source.bincount(minlength=nodes).float()
    if normalisation == "column":
        weight = 1 / degree[source]
    elif normalisation == "row":
        weight = 1 / degree[target]
    else:
        weight = (degree[source] * degree[target]).rsqrt()
    return torch.sparse_coo_tensor(
        torch.stack([target, source]), weight, (nodes, nodes), check_invariants=False
    ).coalesce()


def propagate(
    label: Tensor, matrix: Tensor, keep: float, steps: int, *, restart: bool = False, clamp: bool = False
) -> Tensor:
    """Y ← (1 − keep) M Y + keep Y, `steps` times; with `restart` the part that is kept is the first Y.

    Args:
        label: Y, (N, C).
        matrix: M, sparse (N, N).
        keep: share of a node's own labels, in [0, 1].
        clamp: each step ends in [0, 1].
    """
    first = label
    for _ in range(steps):
        label = (1 - keep) * (matrix @ label) + keep * (first if restart else label)
        label = label.clamp(0, 1) if clamp else label
    return label


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """float (N, C) of int64 (N,); a row of zeros where the label is −1: not known."""
    known = (label >= 0).float()
    return F.one_hot(label.clamp(min=0), num_classes) * known[:, None]
