"""Matrices as products of two factors whose components are ordered: their norms, which are kept, which ranks to draw.

A weight W (m, n) is Σ_b u_b v_bᵀ. The components of each factor are its rows here: U as (r, m), V as (r, n).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TINY = 1e-24  # below this square a norm has no gradient: that of a square root at zero is infinite


def svd_factors(weight: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """U (r, m) and V (r, n) with U[b] = √s_b p_b and V[b] = √s_b q_b, from the singular value decomposition P S Qᵀ.

    Args:
        weight: W, (m, n).
        rank: r, how many components are kept; None: all min(m, n), so that Σ_b U[b] V[b]ᵀ is W.

    >>> u, v = svd_factors(torch.diag(torch.tensor([4.0, 9.0])))
    >>> (u.norm(dim=1) * v.norm(dim=1)).tolist()
    [9.0, 4.0]
    """
    p, s, qt = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()[:, None]
    return root * p.T[:rank], root * qt[:rank]


def group_norms(factor: Tensor, hierarchical: bool = True) -> Tensor:
    """(r,): the norm of each component, or, hierarchical, of each together with all that come after it.

    Args:
        factor: (r, ·), one component a row.

    >>> group_norms(torch.diag(torch.tensor([12.0, 4.0, 3.0]))).tolist()
    [13.0, 5.0, 3.0]
    """
    squares = factor.square().sum(dim=1)
    if hierarchical:
        squares = squares.flip(0).cumsum(0).flip(0)
    return squares.clamp_min(TINY).sqrt()


def group_lasso(u: Tensor, v: Tensor, hierarchical: bool = True) -> Tensor:
    """Σ_b ‖U_b‖ + ‖V_b‖ (scalar) over the groups b of `group_norms`.

    Args:
        u: (r, m).
        v: (r, n).

    >>> factor = torch.diag(torch.tensor([12.0, 4.0, 3.0]))
    >>> group_lasso(factor, factor).item()
    42.0
    """
    return (group_norms(u, hierarchical) + group_norms(v, hierarchical)).sum()


def importance(u: Tensor, v: Tensor, hierarchical: bool = True) -> Tensor:
    """(r,): ‖U_b‖ ‖V_b‖ of the groups of `group_norms`; hierarchical, it never increases with b.

    >>> factor = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> [round(x, 4) for x in importance(factor, factor).tolist()]
    [14.0, 5.0, 1.0]
    """
    return group_norms(u, hierarchical) * group_norms(v, hierarchical)


def rank_at(rank: int, share: float) -> int:
    """⌈share · rank⌉, the rank at a share of it.

    >>> rank_at(6, 0.51)
    4
    """
    return math.ceil(round(share * rank, 9))  # 0.07 · 100 is a little more than 7


def smaller_as_pair(rank: int, m: int, n: int) -> bool:
    """Whether factors of this rank have no more entries than the matrix: r (m + n) ≤ m n.

    >>> smaller_as_pair(3, 6, 9), smaller_as_pair(4, 6, 9)
    (True, False)
    """
    return rank * (m + n) <= m * n


def rank_pairs(ranks: Sequence[int], generator: torch.Generator) -> list[tuple[int, int]]:
    """Every pair (layer i, rank b in 1 … ranks[i]) once, in random order: layers come as often as they have ranks.

    >>> sorted(rank_pairs([2, 1], torch.Generator()))
    [(0, 1), (0, 2), (1, 1)]
    """
    pairs = [(layer, b) for layer, rank in enumerate(ranks) for b in range(1, rank + 1)]
    return [pairs[i] for i in torch.randperm(len(pairs), generator=generator).tolist()]


def greedy_ranks(
    ranks: Sequence[int],
    loss: Callable[[Sequence[int]], float],
    cost: Callable[[Sequence[int]], float],
    budget: float,
    slices: int = 10,
) -> list[int]:
    """Ranks that cost no more than the budget, or 1 everywhere where that costs more: again and again the layer whose
    cut raises the loss least is cut.

    A cut takes away 1 / slices of the layer's rank in `ranks`, rounded up; each layer keeps rank 1.

    Args:
        ranks: those to start from, one a layer.
        loss: of the network at given ranks.
        cost: of the network at given ranks, in the unit of `budget`.

    >>> greedy_ranks([4, 4], loss=lambda r: -r[0], cost=sum, budget=5, slices=4)
    [4, 1]
    """
    ranks, steps = list(ranks), [max(1, math.ceil(rank / slices)) for rank in ranks]
    while cost(ranks) > budget:
        cuts = []
        for layer, step in enumerate(steps):
            if ranks[layer] > 1:
                cuts.append([*ranks[:layer], max(1, ranks[layer] - step), *ranks[layer + 1 :]])
        if not cuts:
            break
        ranks = min(cuts, key=loss)  # the first of several
    return ranks
