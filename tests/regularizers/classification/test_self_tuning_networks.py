"""Self-tuning networks against numbers worked out by hand, a ridge regression with a known best response, and the
traps; the searches that they are compared with."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as oracle
from torch import nn

from regbench import backbones
from regbench.backbones.alexnet import stn_alexnet
from regbench.backbones.backbone import Backbone
from regbench.errors import UserError
from regbench.functional import per_example
from regbench.functional.hyperparameters import (
    RANGES,
    Space,
    constrain,
    dropout_sites,
    softplus_inverse,
    unconstrain,
)
from regbench.regularizers.classification.hyperparameter_search import (
    HyperparameterSearch,
    grid_values,
    sampled_values,
)
from regbench.regularizers.classification.self_tuning_networks import (
    Hyperparameters,
    ResponseLayer,
    SelfTuningNetworks,
    gaussian_entropy,
    perturbed,
    respond,
)
from support import check_resume, history, read_result, weights

# -- the response layer ----------------------------------------------------------------------------------------


def layer_by_hand(value: float) -> ResponseLayer:
    hyper = Hyperparameters(torch.tensor([value]), 0.5)
    plain = nn.Linear(2, 2)
    plain.weight.data, plain.bias.data = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0])
    layer = ResponseLayer(plain, hyper)
    layer.response.weight.data, layer.response_bias.data = (
        torch.tensor([[1.0, 0], [2, 1]]),
        torch.tensor([1.0, -1]),
    )
    layer.weight_gate.weight.data = torch.tensor([[0.1], [-0.2]])
    layer.bias_gate.weight.data = torch.tensor([[0.3], [0.5]])
    return layer


def test_layer_by_hand():
    """λ = 2: gates .2, −.4, .6, 1. Row 1: −1 + .5 + .2 + .6 = .3; row 2: 1 − .4 − 1 = −.4."""
    x = torch.tensor([[1.0, -1.0]])
    assert layer_by_hand(2.0)(x)[0].tolist() == pytest.approx([0.3, -0.4], abs=1e-6)
    assert layer_by_hand(0.0)(x)[0].tolist() == pytest.approx([-0.5, 1.0], abs=1e-6)
    folded = layer_by_hand(2.0).folded()
    assert torch.allclose(folded.weight, torch.tensor([[1.2, 2.0], [-0.8, -1.4]]))
    assert torch.allclose(folded.bias, torch.tensor([1.1, -1.0]))


@pytest.mark.parametrize(
    ("plain", "shape"),
    [
        (nn.Linear(3, 4), (2, 3)),
        (nn.Linear(3, 4, bias=False), (2, 5, 3)),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular"), (2, 3, 6, 6)),
        (nn.Conv2d(4, 4, 3, groups=2, bias=False), (2, 4, 5, 5)),
    ],
)
def test_rows_with_their_own_hyperparameters_are_separate_passes(plain, shape):
    torch.manual_seed(0)
    hyper = Hyperparameters(torch.zeros(3), 0.5)
    layer = ResponseLayer(plain, hyper)
    layer.scale.data.fill_(1.3)
    nn.init.normal_(layer.weight_gate.weight)
    x, gates = torch.randn(shape), torch.randn(2, 3)
    hyper.gate = gates
    together = layer(x)
    for i in range(2):
        hyper.gate, hyper.value.data = None, gates[i]
        assert torch.allclose(together[i : i + 1], layer(x[i : i + 1]), atol=1e-5)
        assert torch.allclose(together[i : i + 1], layer.folded()(x[i : i + 1]), atol=1e-5)
    nn.init.zeros_(layer.weight_gate.weight)
    if layer.bias_gate is not None:
        nn.init.zeros_(layer.bias_gate.weight)
    layer.scale.data.fill_(1.0)
    assert torch.allclose(layer(x), plain(x), atol=1e-6)


def test_parameters_of_the_papers_network():
    """Plain 23,272,266; 2 × that, 2 gates × 15 × 9,354 units, and a scalar for each of 8 layers: 46,825,160."""
    with torch.device("meta"):
        plain = stn_alexnet(3, (32, 32), 10)
    assert sum(p.numel() for p in plain.parameters()) == 23_272_266
    method = SelfTuningNetworks(stn_alexnet(3, (32, 32), 10, width=1.0), 10, tune=tuple(RANGES))
    assert len(method.space) == 15
    tuned = sum(p.numel() for p in method.hyperparameters.parameters())
    assert sum(p.numel() for p in method.parameters()) - tuned == 46_825_160


def test_alexnet_has_its_dropout_where_the_paper_has_it():
    sites = dropout_sites(stn_alexnet(3, (32, 32), 10, width=0.1, hidden=8))
    assert [channels for _, channels in sites] == [True] * 5 + [False] * 2
    with pytest.raises(UserError, match="16x16"):
        stn_alexnet(3, (8, 8), 10)


# -- hyperparameters, perturbations ----------------------------------------------------------------------------


def test_start_values_by_hand():
    assert unconstrain(0.05, 0.0, 0.9) == pytest.approx(-2.833213, abs=1e-6)
    assert unconstrain(0.05, 0.0, 0.5) == pytest.approx(-2.197225, abs=1e-6)
    assert (softplus_inverse(0.5), softplus_inverse(1.0)) == pytest.approx((-0.432752, 0.541325), abs=1e-6)
    factors = per_example.scale(torch.ones(2, 1, 1, 1), torch.full((2,), 0.05), torch.tensor([0.0, 1.0]))
    assert factors.flatten().tolist() == pytest.approx([0.952381, 1.05], abs=1e-6)
    space = Space(tuple(RANGES), {}, 2)
    assert space.real(space.start()).tolist() == pytest.approx([0.05] * 8 + [4.0, 1.0], abs=1e-6)


def test_whole_numbers_are_rounded_down():
    """The released code starts a length of 4 at 4 / 25 and reads it as a share of 24: 3.84, so 3."""
    started = torch.tensor(unconstrain(4.0, 0.0, 25.0))
    assert constrain(started, 0.0, 24.0).item() == pytest.approx(3.84, abs=1e-5)
    space = Space(["cutout_length", "cutout_holes"], {}, 0)
    assert space.real(torch.stack([started, torch.tensor(0.0)])).tolist() == [3.0, 2.0]


def test_entropy_by_hand():
    assert gaussian_entropy(torch.tensor([0.5])).item() == pytest.approx(0.725791, abs=1e-6)
    assert gaussian_entropy(torch.full((15,), 0.5)).item() == pytest.approx(10.886870, abs=1e-5)
    sigma = torch.tensor([0.1], requires_grad=True)
    # curvature h = 0.1 of the validation loss and τ = 0.001: h σ² / 2 − τ ln σ is stationary at sqrt(τ / h) = 0.1
    (0.1 * sigma.square().sum() / 2 - 1e-3 * gaussian_entropy(sigma)).backward()
    assert sigma.grad.item() == pytest.approx(0, abs=1e-9)


# -- a ridge regression whose best response is known: u_j = sigmoid(ln(d_j² / N) − λ) u0_j -----------------------

X, T = torch.tensor([[3.0, 0.0], [0, 1], [0, 0], [0, 0]]), torch.tensor([3.0, 2.0, 1.0, 0.0])
XV, TV = torch.tensor([[1.0, 1.0], [2, 0], [0, 1]]), torch.tensor([2.0, 1.5, 1.0])


def best_response(value: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid((torch.tensor([9.0, 1.0]) / 4).log() - value) * torch.tensor([1.0, 2.0])


def validation_loss(u: torch.Tensor) -> torch.Tensor:
    return (u @ XV.T - TV).square().mean()


@pytest.mark.parametrize(
    ("value", "expected"), [(-2, (0.943264, 1.297571)), (0, (0.692308, 0.4)), (2, (0.233425, 0.065453))]
)
def test_best_response_of_the_ridge_regression_is_a_gate(value, expected):
    solved = torch.linalg.solve(X.T @ X / 4 + math.exp(value) * torch.eye(2), X.T @ T / 4)
    assert solved.tolist() == pytest.approx(expected, abs=1e-6)
    assert best_response(torch.tensor(float(value))).tolist() == pytest.approx(expected, abs=1e-6)


def test_hypergradient_by_hand():
    value = torch.tensor(0.0, requires_grad=True)
    loss = validation_loss(best_response(value))
    loss.backward()
    assert (loss.item(), value.grad.item()) == pytest.approx((0.399073, 0.483316), abs=1e-6)
    slope = torch.autograd.functional.jacobian(best_response, torch.tensor(0.0))
    assert (best_response(torch.tensor(0.0)) + 0.5 * slope).tolist() == pytest.approx(
        (0.585799, 0.24), abs=1e-6
    )
    assert best_response(torch.tensor(0.5)).tolist() == pytest.approx((0.577112, 0.263335), abs=1e-6)


def tuned_ridge(start: float, noise: float = 1.0, cycles: int = 600) -> float:
    """λ, averaged over the last quarter, of alternating training and tuning steps with this file's functions."""
    generator = torch.Generator().manual_seed(0)
    elementary = torch.zeros(2, requires_grad=True)
    response = (0.5 * torch.randn(2, generator=generator)).requires_grad_()
    gate = (0.01 * torch.randn(2, generator=generator)).requires_grad_()
    value, rho = torch.tensor([start], requires_grad=True), torch.tensor([softplus_inverse(0.5)])
    optimizer = torch.optim.SGD([elementary, response, gate], lr=0.02)
    tuner = torch.optim.Adam([value], lr=0.02)
    draws = iter(noise * torch.randn(300 + 3 * cycles, 32, 1, generator=generator))
    seen = []
    for step in range(300 + 2 * cycles):
        perturbed_value = perturbed(value.detach(), rho, next(draws))
        u = respond(elementary, response, perturbed_value * gate)
        loss = (u @ X.T - T).square().mean() + (
            perturbed_value.exp() * u.square().sum(1, keepdim=True)
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 300 and step % 2:
            u = respond(elementary, response, perturbed(value, rho, next(draws)) * gate)
            (value.grad,) = torch.autograd.grad(validation_loss(u), value)
            tuner.step()
            seen.append(value.item())
    return sum(seen[-cycles // 4 :]) / (cycles // 4)


def test_best_penalty_of_the_ridge_regression():
    values = torch.linspace(-4, 2, 6001, dtype=torch.float64)[:, None]
    losses = (best_response(values) @ XV.T.double() - TV).square().mean(1)
    assert values[losses.argmin()].item() == pytest.approx(-1.3945, abs=1e-3)
    assert losses.min().item() == pytest.approx(0.03332, abs=1e-5)


@pytest.mark.parametrize("start", [0.0, -4.0, 1.0])
def test_tuning_finds_the_best_penalty_of_the_ridge_regression(start):
    assert tuned_ridge(start) == pytest.approx(-1.3945, abs=0.05)


def test_without_perturbation_there_is_no_response_to_follow():
    assert abs(tuned_ridge(1.0, noise=0.0, cycles=300) + 1.3945) > 0.5


# -- regularisation of each example ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [False, True])
def test_dropout_of_each_example(channels):
    torch.manual_seed(0)
    x = torch.ones(2, 20_000, 2, 2)
    dropped = per_example.dropout(x, torch.tensor([0.0, 0.9]), channels)
    assert dropped[0].equal(x[0])
    assert dropped[1].unique().tolist() == pytest.approx([0.0, 10.0], rel=1e-5)
    assert (dropped[1] > 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert dropped[1].mean().item() == pytest.approx(1.0, abs=0.1)
    whole = (dropped[1].flatten(1) > 0).float().mean(1)
    assert bool(((whole == 0) | (whole == 1)).all()) == channels


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_torchvisions(channels):
    torch.manual_seed(0)
    pixels = torch.rand(4, channels, 5, 6)
    pixels[0] = 0.5  # grey: no hue
    pixels[1, :, 0, 0] = 0.0
    factors = torch.tensor([0.3, 0.9, 1.0, 1.8])
    names = ["brightness", "contrast"] + (["saturation"] if channels == 3 else [])
    for name in names:
        got = getattr(per_example, name)(pixels, factors)
        for image, factor, mine in zip(pixels, factors.tolist(), got, strict=True):
            assert torch.allclose(mine, getattr(oracle, f"adjust_{name}")(image, factor), atol=1e-5), name
    if channels == 3:
        shifts = torch.tensor([0.2, -0.4, 0.0, 0.5])
        for image, shift, mine in zip(pixels, shifts.tolist(), per_example.hue(pixels, shifts), strict=True):
            assert torch.allclose(mine, oracle.adjust_hue(image, shift), atol=1e-4)


def test_cutout_of_each_example():
    torch.manual_seed(0)
    image = torch.ones(300, 2, 12, 12)
    length = torch.tensor([4.0, 3.0, 0.0]).repeat(100)
    out = per_example.cutout(image, length, torch.tensor([1.0, 1.0, 3.0]).repeat(100), 3)
    assert out[:, 0].equal(out[:, 1])
    removed = (out[:, 0] == 0).sum((1, 2))
    # whole squares, or cut at a border: side 4 keeps at least 2 of 4 rows; side 3, from y − 1.5 to y + 1.5, 3 rows
    assert set(removed[0::3].tolist()) <= {a * b for a in (2, 3, 4) for b in (2, 3, 4)}
    assert removed[0::3].max() == 16
    assert removed[1::3].max() == 9
    assert removed[2::3].max() == 0  # of length 0
    assert per_example.cutout(image, torch.full((300,), 4.0), torch.zeros(300), 3).equal(image)


# -- the method ------------------------------------------------------------------------------------------------


def network() -> Backbone:
    torch.manual_seed(0)
    return backbones.build(
        {"_target_": "regbench.backbones.small.mlp", "hidden": [16, 16]}, shape=(1, 8, 8), num_classes=5
    )


def batch(size: int = 12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.randint(5, (size,), generator=generator)


def test_a_training_step_leaves_the_hyperparameters_and_a_tuning_step_the_weights():
    method = SelfTuningNetworks(network(), 5)
    loss = method.training_loss(batch())
    loss.backward()
    hyper = method.hyperparameters
    assert hyper.value.grad is None
    assert hyper.rho.grad is None
    own = {id(hyper.value), id(hyper.rho)}
    learnt = [p for p in method.parameters() if id(p) not in own]
    assert all(p.grad is not None for p in learnt)
    for parameter in learnt:
        parameter.grad = None
    before = {name: value.clone() for name, value in method.state_dict().items()}
    of_value, of_rho = method.tuning_gradients(*batch())
    assert of_value.abs().min() > 0
    assert of_rho.abs().min() > 0
    assert all(p.grad is None for p in learnt)
    assert all(value.equal(before[name]) for name, value in method.state_dict().items())
    assert method.backbone.training


def test_a_tuning_step_regularises_nothing_and_differentiates_through_the_gates_only():
    # σ is not tuned: no perturbation, so that the gradient is that of the plain validation loss in λ
    method = SelfTuningNetworks(network(), 5, tune_sigma=False)
    image, label = batch()
    of_value, of_rho = method.tuning_gradients(image, label)
    assert not of_rho.any()
    method.eval()
    hyper, step = method.hyperparameters, 1e-2
    hyper.value.data[0] += step
    above = F.cross_entropy(method(image), label).item()
    hyper.value.data[0] -= 2 * step
    below = F.cross_entropy(method(image), label).item()
    assert (above - below) / (2 * step) == pytest.approx(of_value[0].item(), rel=0.02, abs=1e-6)


def test_each_example_has_its_own_perturbation():
    method = SelfTuningNetworks(network(), 5)
    seen = []
    first = next(m for m in method.modules() if isinstance(m, ResponseLayer))
    first.weight_gate.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    method.training_loss(batch())
    assert seen[0].shape == (12, len(method.space))
    assert len(seen[0].unique(dim=0)) == 12


def test_dropout_is_off_without_a_training_step():
    method = SelfTuningNetworks(network(), 5, ranges={"dropout": [0.0, 0.9, 0.8]})
    image, _ = batch()
    assert method(image).equal(method(image))  # in training mode too: nothing sets rates
    method.eval()
    assert torch.allclose(method(image), method.plain_backbone().eval()(image), atol=1e-5)


def test_the_plain_network_has_nothing_of_the_methods_in_it():
    method = SelfTuningNetworks(network(), 5)
    method.hyperparameters.value.data.normal_()
    plain = method.plain_backbone()
    assert set(plain.state_dict()) == set(network().state_dict())
    assert any(isinstance(m, ResponseLayer) for m in method.modules())
    method.training_loss(batch()).backward()  # a copy was folded, and the last step left no graph behind


def test_gates_have_no_weight_decay():
    method = SelfTuningNetworks(
        network(), 5, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1.0)
    )
    weights_optimizer, of_value, of_rho = (entry["optimizer"] for entry in method.configure_optimizers())
    assert [group["weight_decay"] for group in weights_optimizer.param_groups] == [1.0, 0.0]
    assert len(weights_optimizer.param_groups[1]["params"]) == 6
    assert of_value.param_groups[0]["params"][0] is method.hyperparameters.value
    assert of_rho.param_groups[0]["params"][0] is method.hyperparameters.rho


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": ["dropuot"]}, "Did you mean dropout"),
        ({"tune": []}, "one or more"),
        ({"tune": ["hue", "hue"]}, "each once"),
        ({"tune": ["cutout_length"]}, "both or none"),
        ({"ranges": {"dropout": [0.1, 0.05, 0.2]}}, "low < start < high"),
        ({"ranges": {"dropout": [0.0, 1.5, 0.2]}}, "end at 1"),
        ({"ranges": {"hue": [0.0, 0.9, 0.2]}}, "end at 0.5"),
        ({"sigma": 0.0}, "sigma > 0"),
        ({"tau": -1.0}, "tau >= 0"),
        ({"train_steps": 0}, "train_steps >= 1"),
        ({"valid_batch_size": 0}, "at least 1"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        SelfTuningNetworks(network(), 5, **options)


def test_mistakes_of_network_and_data():
    with pytest.raises(UserError, match=r"backbone\.dropout=0"):
        SelfTuningNetworks(Backbone(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 5))), 5)
    with pytest.raises(UserError, match="leave it out"):
        SelfTuningNetworks(Backbone(nn.Sequential(nn.Flatten(), nn.Linear(64, 5))), 5)
    with pytest.raises(UserError, match="MultiheadAttention"):
        SelfTuningNetworks(
            Backbone(nn.Sequential(nn.TransformerEncoderLayer(8, 2, dropout=0.0), nn.Linear(8, 5))), 5
        )
    with pytest.raises(UserError, match="3 channels"):
        SelfTuningNetworks(network(), 5, tune=["hue"]).training_loss(batch())


# -- whole runs ------------------------------------------------------------------------------------------------

DIGITS = ["dataset=digits", "dataset.train_size=300", "dataset.batch_size=50", "backbone=mlp",
          "backbone.hidden=[16,16]", "logger=none", "progress=none"]  # fmt: skip
LENGTH = {
    "self_tuning_networks": ["regularizer.warmup_epochs=1", "regularizer.valid_batch_size=40"],
    "hyperparameter_search": ["regularizer.trials=2", "checkpoint.monitor=val/nll", "checkpoint.mode=min"],
}


@pytest.mark.parametrize("slug", list(LENGTH))
def test_resuming_continues_bit_for_bit(train, slug):
    options = [f"regularizer={slug}", *LENGTH[slug], *DIGITS, "trainer.max_epochs=4"]
    check_resume(train, *options, after=3)  # within a trial, and after tuning began


def test_hyperparameters_move_after_the_warm_up_only(train):
    _, folder = train("regularizer=self_tuning_networks", *DIGITS, "trainer.max_epochs=3", "regularizer.lr=0.1",
                      "regularizer.warmup_epochs=2")  # fmt: skip
    rows = [row for row in history(folder) if row.get("train/dropout_1")]
    rates = [float(row["train/dropout_1"]) for row in rows]
    assert rates[0] == rates[1] == pytest.approx(0.05)
    assert rates[2] != rates[1]
    assert read_result(folder)["steps"] == 18  # 6 batches an epoch: tuning steps don't count
    _, without = train("regularizer=self_tuning_networks", *DIGITS, "trainer.max_epochs=1", "dataset.val_fraction=0",
                       "checkpoint.select=last", run_dir="without")  # fmt: skip
    assert not (without / "result.json").exists()


def test_a_search_trains_fresh_networks_and_keeps_their_losses(train):
    _, folder = train("regularizer=hyperparameter_search", "regularizer.sampler=grid", "regularizer.trials=3", *DIGITS,
                      "trainer.max_epochs=5", "optimizer.lr=0.3", "checkpoint.monitor=val/nll",
                      "checkpoint.mode=min")  # fmt: skip
    rows = [row for row in history(folder) if row.get("train/trial")]
    trials = [float(row["train/trial"]) for row in rows]
    assert trials == [0, 0, 1, 1, 2]
    losses = [float(row["val/nll"]) for row in rows]
    state = weights(folder)
    expected = [min(losses[:2]), min(losses[2:4]), losses[4]]
    assert state["trial_losses"].tolist() == pytest.approx(expected)
    assert state["trial_values"][:, 0].tolist() == pytest.approx([0.0, 0.3, 0.6])
    assert losses[2] > losses[1]  # a new network knows nothing


# -- search ----------------------------------------------------------------------------------------------------


def test_grid_by_hand():
    space = Space(["dropout", "input_scale"], {}, 2)
    assert grid_values(space, 0, 3).tolist() == [0.0, 0.0, 0.0]
    assert grid_values(space, 2, 3).tolist() == pytest.approx([0.6, 0.6, 0.2])


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_samplers_are_functions_of_their_arguments(sampler):
    pytest.importorskip("optuna")
    space = Space(["dropout", "input_scale"], {}, 1)
    values = [[0.1 * i, 0.02 * i] for i in range(9)] * 2
    losses = [abs(v[0] - 0.2) for v in values]
    one = sampled_values(space, sampler, values, losses, seed=2**40)
    assert one.equal(sampled_values(space, sampler, values, losses, seed=2**40))
    assert not one.equal(sampled_values(space, sampler, values, losses, seed=2**40 + 1))
    draws = torch.stack([sampled_values(space, sampler, values, losses, seed=i) for i in range(20)])
    assert (draws >= 0).all()
    assert (draws < torch.tensor([0.9, 0.3])).all()
    near = (draws[:, 0] - 0.2).abs().mean().item()
    assert (near < 0.15) == (sampler == "tpe")  # Parzen's estimator goes where the loss was low


def test_fixed_values_reach_the_network():
    method = HyperparameterSearch(network(), 5, sampler="fixed", values={"dropout": 0.5, "dropout_2": 0.8})
    assert method.trial_values[0].tolist() == pytest.approx([0.5, 0.8, 0.05, 0.05])
    plain = HyperparameterSearch(network(), 5, sampler="fixed", tune=["dropout"], values={"dropout": 0.0})
    image, label = batch()
    assert plain.training_loss((image, label)).item() == pytest.approx(
        F.cross_entropy(network()(image), label).item(), abs=1e-6
    )
    seen = []
    torch.manual_seed(0)
    method.backbone.network.fc.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method.training_loss(batch(400))
    method.current.real = None
    method.backbone(batch(400)[0])
    active = seen[1] > 0
    assert (seen[0][active] == 0).float().mean().item() > 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "tpee"}, "Did you mean tpe"),
        ({"trials": 0}, "at least 1"),
        ({"values": {"dropout": 0.5}}, "sampler=fixed"),
        ({"sampler": "fixed", "values": {"dropuot": 0.5}}, "Did you mean dropout"),
        ({"sampler": "fixed", "values": {"dropout": 0.95}}, "must lie in"),
    ],
)
def test_mistakes_of_a_search(options, message):
    with pytest.raises(UserError, match=message):
        HyperparameterSearch(network(), 5, **options)


def test_optuna_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match="regbench\\[optuna\\]"):
        sampled_values(Space(["input_scale"], {}, 0), "random", [], [], 0)
