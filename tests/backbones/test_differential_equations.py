"""Networks that solve differential equations: their fields, their sizes, and what they compute in."""

import math

import pytest
import torch
import yaml
from torch import nn

from regbench.backbones import build
from regbench.backbones.differential_equations import (
    Field,
    Flow,
    NeuralODE,
    TimeLinear,
    neural_ode,
    neural_sde,
    path_sde,
)
from regbench.errors import UserError
from support import ROOT


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_time_is_one_more_input():
    torch.manual_seed(0)
    layer = TimeLinear(3, 2)
    z = torch.randn(4, 3)
    times = torch.tensor([[0.5], [0.5], [0.5], [0.5]])
    expected = nn.functional.linear(torch.cat([z, times], 1), layer.weight, layer.bias)
    torch.testing.assert_close(layer(0.5, z), expected)
    torch.testing.assert_close(layer(times, z), expected)


def test_fields_by_hand():
    """One layer of weight 2 on z³, then tanh; with a hidden layer tanh(2 z) · 2."""
    z = torch.tensor([[0.5]])
    for hidden, bounded, cube, expected in (
        ((), True, True, math.tanh(2 * 0.125)),
        ((1,), False, False, 2 * math.tanh(1.0)),
    ):
        field = Field(1, hidden, bounded=bounded, cube=cube)
        for layer in field.layers:
            nn.init.constant_(layer.weight, 2.0)
            nn.init.zeros_(layer.bias)
        assert field(0.0, z).item() == pytest.approx(expected)


def test_sizes_of_the_papers_networks():
    """As the released code builds them: Dense(785, 100), Dense(101, 784), Dense(784, 10), and for the SDEs
    Dense(784, 32), 32-64-32, Dense(32, 32), Dense(32, 10), and 2-50-2 with Dense(2, 2).
    """
    ode = neural_ode(1, 10, (28, 28), hidden=[100], bounded=True)
    assert size(ode) == (785 * 100 + 100) + (101 * 784 + 784) + (784 * 10 + 10)
    sde = neural_sde(1, 10, (28, 28))
    assert size(sde) == (784 * 32 + 32) + (32 * 64 + 64 + 64 * 32 + 32) + (32 * 32 + 32) + (32 * 10 + 10)
    assert size(path_sde(2)) == (2 * 50 + 50) + (50 * 2 + 2) + (2 * 2 + 2)


@pytest.mark.parametrize(
    ("name", "shape", "outputs"), [("neural_ode", (5,), 3), ("neural_sde", (5,), 3), ("path_sde", (5,), 5)]
)
def test_configs_build_and_give_double_precision(name, shape, outputs):
    config = yaml.safe_load((ROOT / "configs" / "backbone" / f"{name}.yaml").read_text())
    network = build(config, shape=shape, num_classes=0 if name == "path_sde" else outputs)
    out = network(torch.randn(4, *shape))
    assert out.shape == (4, outputs)
    assert out.dtype == torch.float64
    torch.testing.assert_close(network(torch.zeros(4, *shape)), network(torch.zeros(4, *shape)))


def test_a_linear_ode_against_its_matrix_exponential():
    torch.manual_seed(0)
    network = NeuralODE(nn.Identity(), Field(3, ()), nn.Identity(), end=0.7, tolerance=1e-10, dtype="float64")
    nn.init.zeros_(network.field.layers[0].bias)
    z = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(
        network(z), z @ torch.linalg.matrix_exp(0.7 * network.field.layers[0].weight).T
    )


def test_trajectories_are_averaged_point_by_point():
    """Two trajectories of a still process whose noise is dW: the mean of what the head sees."""
    torch.manual_seed(0)
    network = neural_sde(2, 3, width=2, trajectories=2)
    points = torch.randn(4, 2)
    solution = network.solve(points, seed=5, trajectories=2)
    assert solution.end.shape == (8, 2)
    logits = network.head(solution.end)
    torch.testing.assert_close(network.read(solution, 2), (logits[:4] + logits[4:]) / 2)


def test_no_time_leaves_the_head():
    network = neural_ode(2, 2, end=0.0)
    points = torch.randn(3, 2, dtype=torch.float64)
    assert torch.equal(network(points), network.head(points))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": -1.0}, "at least 0"),
        ({"tolerance": 0.0}, "above 0"),
        ({"dtype": "float16"}, r"backbone\.dtype"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        neural_ode(2, 2, **options)


def test_a_flow_without_a_solver_says_so():
    with pytest.raises(NotImplementedError, match="Flow defines no integrate"):
        Flow(nn.Identity(), nn.Identity(), end=1.0, tolerance=0.1)(torch.zeros(1, 1))
