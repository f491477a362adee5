"""Layers in factors against the layers that they are made of, and what is cut against slices of the matrices."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.backbones.low_rank import (
    LowRank,
    LowRankConv2d,
    LowRankLinear,
    cut_to,
    factorise,
    layers_of,
    low_rank,
    macs_by_rank,
    plain,
)
from regbench.errors import UserError
from regbench.functional.cost import cost_of

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 1), "stride": 2, "padding": (1, 0), "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "circular"},
    {"kernel_size": 1},
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolution_in_factors_of_full_rank_is_the_convolution(options):
    layer, x = nn.Conv2d(4, 6, **options), torch.randn(2, 4, 9, 9)
    factors = low_rank(layer)
    assert isinstance(factors, LowRankConv2d)
    assert factors.full_rank == factors.rank == min(6, layer.weight[0].numel())
    torch.testing.assert_close(factors(x), layer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(factors.weight, layer.weight, rtol=1e-4, atol=1e-5)


def test_a_linear_layer_at_a_rank_is_the_svd_cut_there():
    layer, x = nn.Linear(9, 6), torch.randn(2, 5, 9)
    factors = low_rank(layer)
    assert isinstance(factors, LowRankLinear)
    torch.testing.assert_close(factors(x), layer(x), rtol=1e-4, atol=1e-5)
    p, s, qt = torch.linalg.svd(layer.weight, full_matrices=False)
    for rank in range(1, 7):
        with cut_to([factors], [rank]):
            cut = factors(x)
        weight = p[:, :rank] * s[:rank] @ qt[:rank]
        torch.testing.assert_close(cut, F.linear(x, weight, layer.bias), rtol=1e-4, atol=1e-5)
    assert factors.cut is None


@pytest.mark.parametrize("options", [None, *CONVOLUTIONS])
def test_at_rank_zero_the_output_is_the_bias(options):
    layer = nn.Linear(4, 6) if options is None else nn.Conv2d(4, 6, **options)
    x = torch.randn(2, 4) if options is None else torch.randn(2, 4, 9, 9)
    factors = low_rank(layer)
    factors.keep(torch.zeros(factors.full_rank, dtype=torch.bool))
    expected = torch.zeros_like(layer(x))
    if layer.bias is not None:
        expected += layer.bias.view(1, -1, *[1] * (x.ndim - 2))
    assert torch.equal(factors(x), expected)
    assert torch.equal(factors.plain()(x), expected)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("options", [None, *CONVOLUTIONS[:3]])
def test_plain_layers_do_what_the_cut_layer_did(options, rank):
    layer = nn.Linear(9, 6) if options is None else nn.Conv2d(4, 6, **options)
    x = torch.randn(2, 9) if options is None else torch.randn(2, 4, 9, 9)
    factors = low_rank(layer)
    kept = torch.zeros(6, dtype=torch.bool)
    kept[torch.randperm(6)[:rank]] = True  # in general no prefix
    factors.keep(kept)
    made = factors.plain()
    torch.testing.assert_close(made(x), factors(x), rtol=1e-4, atol=1e-5)
    # (6, 9) breaks even at 3.6, (6, 36) and (6, 12) at 5.1 and 4
    assert isinstance(made, nn.Sequential) == (rank <= 3)
    if rank <= 3:
        assert made.inner.weight.shape[0] == made.outer.weight.shape[1] == rank
    else:
        assert type(made) is type(layer)
        assert made.weight.shape == layer.weight.shape


def test_a_cut_takes_the_first_of_the_components_that_are_left():
    layer, x = low_rank(nn.Linear(5, 4, bias=False)), torch.randn(3, 5)
    layer.keep(torch.tensor([False, True, False, True]))
    assert layer.rank == 2
    u, v = layer.components()
    torch.testing.assert_close(layer(x), x @ v[[1, 3]].T @ u[[1, 3]])
    with cut_to([layer], [1]):
        torch.testing.assert_close(layer(x), x @ v[1:2].T @ u[1:2])
    with cut_to([layer], [3]):  # more than are left
        torch.testing.assert_close(layer(x), x @ v[[1, 3]].T @ u[[1, 3]])


def test_what_is_cut_gets_no_gradient():
    layer = low_rank(nn.Linear(5, 4))
    with cut_to([layer], [2]):
        layer(torch.randn(3, 5)).sum().backward()
    assert layer.inner.weight.grad[2:].abs().max() == 0
    assert layer.outer.weight.grad[:, 2:].abs().max() == 0
    assert layer.inner.weight.grad[:2].abs().min() > 0


def test_the_kept_components_are_part_of_the_state():
    network = nn.Sequential(nn.Linear(5, 4))
    factorise(network)
    other = copy.deepcopy(network)
    network[0].keep(torch.tensor([True, False, True, False]))
    other.load_state_dict(network.state_dict())
    x = torch.randn(3, 5)
    assert other[0].rank == 2
    assert torch.equal(other(x), network(x))
    assert torch.equal(copy.deepcopy(other)(x), network(x))
    assert other.to("meta")[0]._index.device.type == "meta"


def test_a_network_in_factors_computes_what_it_did():
    net, x = network().eval(), torch.randn(2, 3, 6, 6)
    expected = net(x)
    factorise(net)
    # The grouped convolution stays.
    assert list(layers_of(net)) == ["0", "4", "7", "9"]
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain(net)(x), expected, rtol=1e-4, atol=1e-5)
    assert not layers_of(plain(net))
    assert len(layers_of(net)) == 4


def test_layers_that_are_skipped():
    names = {}
    for key, options in {
        "first": {"skip_first": 1},
        "last": {"skip_last": True},
        "1x1": {"pointwise": False},
    }.items():
        net = network()
        factorise(net, **options)
        names[key] = list(layers_of(net))
    assert names == {"first": ["4", "7", "9"], "last": ["0", "4", "7"], "1x1": ["0", "7", "9"]}


def test_a_layer_that_stands_in_two_places_still_does():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    factorise(net)
    assert net[0] is net[2]
    assert isinstance(net[0], LowRank)


@pytest.mark.parametrize("options", [None, *CONVOLUTIONS])
def test_whole_is_the_layer_itself_and_decomposing_it_cuts_its_svd(options):
    layer = nn.Linear(9, 6) if options is None else nn.Conv2d(4, 6, **options)
    x = torch.randn(2, 9) if options is None else torch.randn(2, 4, 9, 9)
    factors = low_rank(layer, "whole")
    assert torch.equal(factors.weight, layer.weight)
    torch.testing.assert_close(factors(x), layer(x), rtol=1e-4, atol=1e-6)
    square = factors.outer if layer.weight[0].numel() >= 6 else factors.inner
    assert torch.equal(square.weight.flatten(1), torch.eye(factors.full_rank))
    factors.decompose(2)
    assert factors.rank == 2
    p, s, qt = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
    torch.testing.assert_close(factors.weight.flatten(1), p[:, :2] * s[:2] @ qt[:2], rtol=1e-4, atol=1e-5)


def test_a_random_start_keeps_the_bias_and_differs():
    layer = nn.Linear(6, 5)
    one, other = low_rank(layer, "random"), low_rank(layer, "random")
    assert torch.equal(one.bias, layer.bias)
    assert not torch.equal(one.weight, other.weight)
    bound = 5**-0.5  # PyTorch's for the outer factor, whose input is the rank
    assert 0.5 * bound < one.outer.weight.abs().max() <= bound


def test_factors_draw_no_random_numbers():
    net = network()
    state = torch.get_rng_state()
    factorise(net)
    plain(net)
    assert torch.equal(torch.get_rng_state(), state)


def test_multiply_accumulates_by_rank():
    """On 6 × 6 pixels: conv 36 · rank · (8 + 27), grouped 16 · 72, 1 × 1 16 · rank · (6 + 8), linear rank · (10 + 24)
    and rank · (4 + 10)."""
    net = network()
    dense = cost_of(net, (3, 6, 6)).macs
    assert dense == 36 * 8 * 27 + 16 * 72 + 16 * 48 + 240 + 40
    factorise(net)
    net[7].keep(torch.arange(10) < 5)  # which the count of a given rank must not depend on
    macs = macs_by_rank(net, (3, 6, 6))
    assert macs([2, 3, 4, 1]) == 36 * 2 * 35 + 16 * 72 + 16 * 3 * 14 + 4 * 34 + 14
    assert macs([0, 0, 0, 0]) == 16 * 72
    deployed = macs_by_rank(net, (3, 6, 6), deployed=True)
    assert deployed([8, 6, 10, 4]) == dense  # no pair of full rank is smaller
    assert deployed([2, 3, 4, 1]) == macs([2, 3, 4, 1])
    assert deployed([0, 1, 1, 1]) == macs([1, 1, 1, 1])  # a layer of rank 0 keeps one component, of zeros
    for ranks in ([8, 6, 10, 4], [2, 3, 4, 1], [6, 4, 8, 3]):
        with cut_to(layers_of(net).values(), ranks):
            net[7].keep(torch.ones(10, dtype=torch.bool))
            assert cost_of(plain(net), (3, 6, 6)).macs == deployed(ranks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "svdd"}, "no init 'svdd'. Did you mean svd"),
        ({"skip_first": -1}, "0 or more"),
        ({"skip_first": 5}, "None of the network's 5 linear layers"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(UserError, match=words):
        factorise(network(), **options)
