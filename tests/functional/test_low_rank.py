"""Ordered components by hand, and linear networks whose answer is a singular value decomposition."""

import math

import pytest
import torch
from torch import nn

from regbench.backbones.low_rank import LowRank, cut_to, low_rank
from regbench.functional.low_rank import (
    greedy_ranks,
    group_lasso,
    group_norms,
    importance,
    rank_at,
    rank_pairs,
    smaller_as_pair,
    svd_factors,
)

FACTOR = torch.diag(torch.tensor([3.0, 2.0, 1.0]))


def test_norms_and_importance_by_hand():
    """Tails of diag(3, 2, 1) have norms √14, √5 and 1."""
    assert group_norms(FACTOR).tolist() == pytest.approx([math.sqrt(14), math.sqrt(5), 1])
    assert group_norms(FACTOR, hierarchical=False).tolist() == pytest.approx([3, 2, 1])
    assert group_lasso(FACTOR, FACTOR).item() == pytest.approx(13.9555, abs=1e-4)  # 2 (3.7417 + 2.2361 + 1)
    assert group_lasso(FACTOR, FACTOR, hierarchical=False).item() == pytest.approx(12)
    assert importance(FACTOR, FACTOR).tolist() == pytest.approx([14, 5, 1])
    assert importance(FACTOR, FACTOR, hierarchical=False).tolist() == pytest.approx([9, 4, 1])


def test_the_two_factors_are_told_apart():
    u, v = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[2.0], [1.0]])
    assert group_lasso(u, v, hierarchical=False).item() == pytest.approx(5 + 1 + 2 + 1)
    assert importance(u, v, hierarchical=False).tolist() == pytest.approx([10, 1])
    assert importance(u, v).tolist() == pytest.approx([math.sqrt(26 * 5), 1])


def test_the_gradient_of_the_lasso_is_finite_where_components_are_zero():
    """d(‖(u₁, u₂)‖ + ‖u₂‖)/du at (2, 0) is (1, 0)."""
    factor = torch.tensor([[2.0], [0.0]], requires_grad=True)
    group_norms(factor).sum().backward()
    assert factor.grad.flatten().tolist() == [1, 0]


def test_svd_factors_share_out_the_singular_values():
    torch.manual_seed(0)
    weight = torch.randn(6, 9, dtype=torch.float64)
    s = torch.linalg.svdvals(weight)
    u, v = svd_factors(weight)
    torch.testing.assert_close(u.T @ v, weight)
    torch.testing.assert_close(importance(u, v, hierarchical=False), s)
    tails = s.flip(0).cumsum(0).flip(0)  # of both factors Σ_{j ≥ b} s_j is the square of the norm
    torch.testing.assert_close(group_norms(u) + group_norms(v), 2 * tails.sqrt())
    u, v = svd_factors(weight, 2)
    assert (u.T @ v - weight).square().sum().item() == pytest.approx(
        s[2:].square().sum().item()
    )  # Eckart, Young


@pytest.mark.parametrize(
    ("rank", "share", "expected"), [(6, 1 / 6, 1), (6, 0.5, 3), (6, 0.51, 4), (100, 0.07, 7), (10, 0.05, 1)]
)
def test_rank_at_rounds_up(rank, share, expected):
    assert rank_at(rank, share) == expected


@pytest.mark.parametrize(("m", "n", "largest"), [(6, 9, 3), (120, 256, 81), (64, 576, 57), (512, 4608, 460)])
def test_break_even_ranks(m, n, largest):
    """m n / (m + n) is 3.6, 81.7, 57.6 and 460.8."""
    assert smaller_as_pair(largest, m, n)
    assert not smaller_as_pair(largest + 1, m, n)


def test_each_pair_comes_once_in_an_order_that_the_generator_gives():
    pairs = [rank_pairs([2, 3], torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(sorted(found) == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)] for found in pairs)
    assert len({tuple(found) for found in pairs}) > 10
    assert pairs[0] == rank_pairs([2, 3], torch.Generator().manual_seed(0))
    assert rank_pairs([0, 0], torch.Generator()) == []


def test_greedy_search_by_hand():
    """The loss counts what is cut, ten times as much in layer 0: layer 1 is cut to 1 first, in slices of 2 of its 5."""
    asked = []

    def loss(ranks):
        asked.append(tuple(ranks))
        return 10 * (4 - ranks[0]) + (5 - ranks[1])

    assert greedy_ranks([4, 5], loss, sum, budget=4, slices=4) == [3, 1]
    assert asked == [(3, 5), (4, 3), (3, 3), (4, 1), (3, 1)]
    assert greedy_ranks([4, 5], loss, sum, budget=9, slices=4) == [4, 5]  # fits already
    assert greedy_ranks([2, 2], loss, sum, budget=0, slices=1) == [1, 1]  # no layer is cut to nothing


# Linear networks, trained with one rank a step. The figures are those of the authors' notebook.


def train(layer: LowRank, x, target, *, lr: float, steps: int, lasso: float = 0.0, full: bool = False):
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    generator, pairs = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        pairs = pairs or rank_pairs([layer.rank], generator)
        with cut_to([layer], [pairs.pop()[1]]):
            loss = (layer(x) - target).square().mean()
        if full:
            loss = loss + (layer(x) - target).square().mean()
        if lasso:
            loss = loss + lasso * group_lasso(*layer.components(), hierarchical=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return importance(*layer.components(), hierarchical=False)


@pytest.fixture
def matrix():
    torch.manual_seed(123)
    return torch.randn(9, 3) @ torch.randn(3, 6)  # singular values 9.5465, 6.9242, 3.6651 and zeros


def test_on_white_data_sampling_ranks_recovers_the_svd(matrix):
    assert torch.linalg.svdvals(matrix)[:3].tolist() == pytest.approx([9.5465, 6.9242, 3.6651], abs=1e-3)
    layer = low_rank(nn.Linear(9, 6, bias=False), init="random")
    found = train(layer, torch.eye(9), matrix, lr=0.5, steps=2000)
    assert found[:3].tolist() == pytest.approx([9.5465, 6.9242, 3.6651], abs=0.1)
    assert found[3:].max() < 0.2
    p, s, qt = torch.linalg.svd(matrix.T, full_matrices=False)
    for rank in range(1, 7):
        best = p[:, :rank] * s[:rank] @ qt[:rank]
        u, v = (factor[:rank] for factor in layer.components())
        assert (u.T @ v - best).square().sum() < 0.02


def test_components_are_ordered_by_the_data_and_not_by_the_weights(matrix):
    """Data that weighs the left singular vectors by i / s_i: the order of the singular values is reversed."""
    p, s, _ = torch.linalg.svd(matrix)
    x = p.T
    x[:3] *= torch.tensor([[1.0], [2.0], [3.0]]) / s[:3, None]
    layer = low_rank(nn.Linear(9, 6, bias=False), init="random")
    found = train(layer, x, x @ matrix, lr=10.0, steps=3000)
    assert found[:3].tolist() == pytest.approx([3.6651, 6.9242, 9.5465], abs=0.05)
    assert found[3:].max() < 0.2


def test_with_the_lasso_an_autoencoder_keeps_as_many_components_as_its_data_span():
    torch.manual_seed(0)
    x = torch.randn(3, 10)
    layer = low_rank(nn.Linear(10, 10, bias=False), init="random")
    found = train(layer, x, x, lr=0.1, steps=2500, lasso=1e-2, full=True)
    found = found.sort(descending=True).values
    assert found[:3].tolist() == pytest.approx([1, 1, 1], abs=0.1)
    assert found[3:].max() < 1e-5
