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
    LatentGRU,
    NeuralODE,
    TimeLinear,
    latent_ode,
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
    field = Field(1, (), squash=True)
    nn.init.constant_(field.layers[0].weight, 2.0)
    nn.init.zeros_(field.layers[0].bias)
    assert field(0.0, z).item() == pytest.approx(2 * math.tanh(0.5))


def test_sizes_of_the_papers_networks():
    """As the released code builds them: Dense(785, 100), Dense(101, 784), Dense(784, 10), and for the SDEs
    Dense(784, 32), 32-64-32, Dense(32, 32), Dense(32, 10), and 2-50-2 with Dense(2, 2). For
    series LatentGRU(37, 40, 50), 100-50-40, (20-50-20) x 4, Dense(20, 37).
    """
    ode = neural_ode(1, 10, (28, 28), hidden=[100], bounded=True)
    assert size(ode) == (785 * 100 + 100) + (101 * 784 + 784) + (784 * 10 + 10)
    sde = neural_sde(1, 10, (28, 28))
    assert size(sde) == (784 * 32 + 32) + (32 * 64 + 64 + 64 * 32 + 32) + (32 * 32 + 32) + (32 * 10 + 10)
    gru = 2 * (175 * 40 + 40 + 40 * 50 + 50) + (175 * 40 + 40 + 40 * 100 + 100)
    field = 4 * (20 * 50 + 50 + 50 * 20 + 20)
    latent = latent_ode(75, latent=20, hidden=[50, 20] * 3 + [50], width=50, encoder_hidden=40)
    assert size(latent) == gru + (100 * 50 + 50 + 50 * 40 + 40) + field + (20 * 37 + 37)
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


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_gru_reads_backwards_by_hand():
    """One feature, m and s of one number. The nets' hidden unit is tanh(m) in the gates and tanh(r m + value) in the
    new state; u = σ(hidden), r = σ(2 hidden), (m', s') = (3 hidden, 4 hidden).
    """
    gru = LatentGRU(1, width=1, hidden=1)
    for parameter in gru.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():  # inputs are m, s, value, observed, gap
        for net, of_value, outputs in (
            (gru.update, 0.0, [1.0]),
            (gru.reset, 0.0, [2.0]),
            (gru.new, 1.0, [3.0, 4.0]),
        ):
            net[0].weight[0, 0], net[0].weight[0, 2] = 1.0, of_value
            net[2].weight[:, 0] = torch.tensor(outputs)
    first, last = 0.5, -0.8
    series = torch.tensor([[[first, last], [1.0, 1.0], [0.25, 0.0]]])
    hidden = math.tanh(last)  # after the last time, from the state 0: u = r = 1/2
    m, s = 3 * hidden / 2, 4 * hidden / 2
    u, r = sigmoid(math.tanh(m)), sigmoid(2 * math.tanh(m))
    hidden = math.tanh(r * m + first)
    expected = [(1 - u) * 3 * hidden + u * m, (1 - u) * 4 * hidden + u * s]
    assert gru(series)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_times_without_observations_are_passed_over_where_asked_for():
    """The code passes over the last time only: elsewhere the gap to the next one counts as an observation."""
    torch.manual_seed(0)
    series = torch.randn(3, 5, 4)  # two features
    series[:, 2:4], series[:, 4] = 1.0, torch.tensor([0.2, 0.3, 0.5, 0.0])
    series[:, :4, 1::2] = 0.0
    gru, skipping = LatentGRU(2, 3, 4), LatentGRU(2, 3, 4, skip_unobserved=True)
    skipping.load_state_dict(gru.state_dict())
    torch.testing.assert_close(skipping(series), gru(series[:, :, ::2]))
    torch.testing.assert_close(gru(series), gru(series[:, :, :3]))
    assert not torch.allclose(gru(series), skipping(series))


def test_starts_of_a_latent_ode_have_the_posteriors_moments():
    network = latent_ode(5, latent=2)
    _, narrow = network.posterior(torch.zeros(1, 5, 3))
    assert narrow.mean().item() == pytest.approx(2 * math.log(0.05), abs=1.0)
    mean, log_variance = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.0, math.log(0.25)]]).double()
    z = network.draw(mean.expand(20_000, 2), log_variance.expand(20_000, 2), seed=3)
    assert z.mean(0).tolist() == pytest.approx([1.0, -2.0], abs=0.03)
    assert z.std(0).tolist() == pytest.approx([1.0, 0.5], abs=0.02)
    again = network.draw(mean, log_variance, seed=3)
    assert torch.equal(again, network.draw(mean, log_variance, seed=3))
    assert not torch.equal(again, network.draw(mean, log_variance, seed=4))


def test_a_latent_ode_builds_and_keeps_its_states_between_the_steps():
    config = yaml.safe_load((ROOT / "configs/backbone/latent_ode.yaml").read_text())
    network = build(config, shape=(7, 6), num_classes=0)
    series = torch.randn(4, 7, 6)
    assert network(series).shape == (4, 3)
    assert network(series).dtype == torch.float64
    solution = network.network.solve(series, seed=1, trajectories=2)
    assert solution.at(torch.tensor([0.0, 0.3, 1.0])).shape == (3, 8, 8)
    mean, log_variance = network.network.posterior(series)
    start = network.network.draw(mean.repeat(2, 1), log_variance.repeat(2, 1), 1)
    assert torch.equal(solution.states[0], start)


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


def test_a_latent_ode_starts_with_a_spread():
    with pytest.raises(UserError, match=r"backbone\.spread=0"):
        latent_ode(5, spread=0.0)


def test_a_flow_without_a_solver_says_so():
    with pytest.raises(NotImplementedError, match="Flow defines no integrate"):
        Flow(nn.Identity(), nn.Identity(), end=1.0, tolerance=0.1)(torch.zeros(1, 1))
