"""Regularised neural differential equations: penalties by hand and in closed form, and what training counts."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench import seeding
from regbench.backbones.differential_equations import Field, NeuralODE, neural_ode, neural_sde, path_sde
from regbench.errors import UserError
from regbench.functional.solver_heuristics import (
    decayed_weight,
    heuristic_penalty,
    taylor_penalty,
    total_derivative,
)
from regbench.regularizers.differential_equations.base import moments
from regbench.regularizers.differential_equations.neural_de_regularization import (
    NeuralDERegularization,
    local_step,
)
from regbench.regularizers.differential_equations.neural_sde_regularization import NeuralSDERegularization
from regbench.solvers import tsit5
from regbench.solvers.solution import Solution
from support import history, read_result

TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
NETWORK = ["accelerator=cpu", "logger=none", "progress=none", "backbone.tolerance=1e-4", "trainer.max_epochs=2",
           "trainer.check_val_every_n_epoch=1"]  # fmt: skip


def method(**options) -> NeuralDERegularization:
    torch.manual_seed(0)
    return NeuralDERegularization(neural_ode(2, 2, tolerance=1e-5), 2, **options)


def points(n: int = 6) -> dict[str, torch.Tensor]:
    return {
        "point": torch.randn(n, 2, generator=torch.Generator().manual_seed(1)),
        "label": torch.arange(n) % 2,
    }


def solved(errors=(0.5, 1.0), stiffness=(7.0, 14.0), times=(0.0, 0.2, 1.0)) -> Solution:
    states = [torch.zeros(1, 2, dtype=torch.float64)] * len(times)
    return Solution(
        list(times),
        states,
        tsit5.STABILITY,
        [torch.tensor(e) for e in errors],
        [torch.tensor(s) for s in stiffness],
    )


# -- the heuristics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "stiffness", "aggregate", "expected"),
    [
        (1.0, 0.0, "mean", 0.45),  # (0.5 · 0.2 + 1 · 0.8) / 2
        (1.0, 0.0, "sum", 0.9),
        (0.0, 1.0, "max", 14 / 3.5068),
        (0.0, 3.5068, "sum", 21.0),  # the paper's R_S
        (1.0, 0.1, "mean", 0.45 + 0.1 * 10.5 / 3.5068),
    ],
)
def test_the_penalty_by_hand(error, stiffness, aggregate, expected):
    options = {"weight_start": 10.0, "weight_end": 10.0, "aggregate": aggregate}
    value = method(error=error, stiffness=stiffness, **options).penalty(solved())
    assert value.item() == pytest.approx(10 * expected, rel=1e-6)


def test_the_weight_decays_from_epoch_to_epoch():
    """λ_0 = 100, λ_1 = 10 over 75 epochs, as the released code does; a constant λ stays one."""
    assert decayed_weight(100, 10, 37, 75) == pytest.approx(32.11, abs=0.005)
    assert decayed_weight(100, 10, 74, 75) == pytest.approx(10.31, abs=0.005)
    assert decayed_weight(0.1, 0.1, 50, 75) == 0.1


def test_the_sum_of_accepted_errors_is_at_most_the_interval():
    solution = neural_ode(2, 2).solve(points()["point"])
    value = heuristic_penalty(
        solution.errors, solution.stiffness, solution.steps, solution.stability,
        error_weight=1.0, stiffness_weight=0.0, aggregate="sum",
    )  # fmt: skip
    assert 0 < value.item() <= 1


def test_without_weights_the_loss_is_the_cross_entropy_of_the_end():
    plain = method(error=0.0)
    batch = points()
    solution = plain.flow.solve(batch["point"])
    expected = F.cross_entropy(plain.flow.head(solution.end), batch["label"])
    assert torch.equal(plain.training_loss(batch), expected)
    assert plain.spent.tolist() == [solution.evaluations, 1]
    assert method(taylor=1.0, steer=0.0).training_loss(batch) > expected


def test_the_penalty_reaches_the_field_and_not_the_head():
    regularised = method(weight_start=1.0, weight_end=1.0)
    regularised.penalty(regularised.flow.solve(points()["point"])).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in regularised.flow.field.parameters())
    assert all(parameter.grad is None for parameter in regularised.flow.head.parameters())


# -- what it is compared with ----------------------------------------------------------------------------------------


def test_steer_draws_end_times_around_the_end_that_differ():
    steered = method(error=0.0, steer=0.5)
    drawn = [steered.end_time() for _ in range(200)]
    assert 0.5 <= min(drawn) < 0.6
    assert 1.4 < max(drawn) <= 1.5
    assert sum(drawn) / 200 == pytest.approx(1.0, abs=0.08)
    assert method(error=0.0, steer=0.5).end_time() == drawn[0]
    assert method().end_time() is None


def test_derivatives_in_time_in_closed_form():
    """z' = t z: z'' = z + t² z, z''' = 3 t z + t³ z."""
    t, z = torch.tensor([[2.0], [0.5]]), torch.tensor([[1.0, 3.0], [2.0, 4.0]])
    for order, factor in ((1, t), (2, 1 + t**2), (3, 3 * t + t**3)):
        torch.testing.assert_close(total_derivative(lambda t, z: t * z, order)(t, z), factor * z)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_penalty_of_decay(order):
    """z' = −z from 1: ∫ exp(−2t) dt = (1 − exp(−2)) / 2 at every order."""
    one = torch.ones(4, 1, dtype=torch.float64)
    solution = tsit5.solve(lambda t, z: -z, one, 0.0, 1.0, tolerance=1e-12)
    value = taylor_penalty(lambda t, z: -z, solution.times, solution.states, order)
    assert value.item() == pytest.approx((1 - math.exp(-2)) / 2, rel=1e-3)


def test_taylor_penalty_adds_the_squares_of_the_coordinates():
    z = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)  # a rotation keeps squares of 25 and 1
    solution = tsit5.solve(lambda t, z: z @ TURN.T, z, 0.0, 1.0, tolerance=1e-8)
    value = taylor_penalty(lambda t, z: z @ TURN.T, solution.times, solution.states, 3)
    assert value.item() == pytest.approx(13.0, rel=1e-6)


@pytest.mark.parametrize("variant", ["unbiased", "biased"])
def test_a_local_step_starts_on_the_solution_which_is_a_constant(variant):
    """z' = a z: S = |a|, and E is that of a step of the size that it gives, from z(t) = exp(a t)."""
    rate = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    start = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)

    def field(t, z):
        return rate * z

    solution = tsit5.solve(field, start, 0.0, 1.0, tolerance=1e-6)
    local = local_step(field, solution, 1e-6, variant, torch.Generator().manual_seed(0))
    (error,), (stiffness,), (h,) = local.errors, local.stiffness, local.steps
    assert stiffness.item() == pytest.approx(1.0, abs=1e-9)
    one = torch.ones(1, 1, dtype=torch.float64)
    share = tsit5.step(lambda t, z: -z, 0.0, one, -one, h).error.item()  # of the state
    low, high = (abs(share) * z / (1e-6 + 1e-6 * z) for z in (math.exp(-1), 1.0))
    assert low <= error.item() <= high
    of_start, of_rate = torch.autograd.grad(error, (start, rate), allow_unused=True)
    assert of_start is None
    assert of_rate.item() != 0


def test_local_uses_one_step():
    options = {"weight_start": 1.0, "weight_end": 1.0}
    local = method(local="unbiased", **options)
    solution = local.flow.solve(points()["point"])
    ours = local.penalty(solution)
    step = local_step(local.flow.field, solution, 1e-5, "unbiased", method().generator("local"))
    assert ours.item() == pytest.approx((step.errors[0] * step.steps[0]).item(), rel=1e-9)


# -- neural SDEs -----------------------------------------------------------------------------------------------------


class Still(nn.Module):
    """A field of zeros with something to train."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, t, z):
        return self.weight * z


def still_process() -> nn.Module:
    network = path_sde(2)
    network.drift, network.diffusion = Still().double(), Still().double()
    return network


def test_the_loss_of_a_process_that_stays_where_it_is():
    """Paths from 1 to 1 and from 1 to 3: means (1, 2), variances (0, 2); the process has means 1, variances 0."""
    path = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [3.0, 3.0]]])
    fit = NeuralSDERegularization(still_process(), 0, trajectories=4, error=0.0)
    batch = {"time": torch.tensor([[0.0, 1.0], [0.0, 1.0]]), "path": path}
    of_mean, of_variance, _ = fit.compare(**batch, trajectories=4, seed=0)
    assert of_mean.item() == pytest.approx(0.5)  # (0 + 1) / 2
    assert of_variance.item() == pytest.approx(2.0)  # (0 + 4) / 2
    assert fit.training_loss(batch).item() == pytest.approx(2.5)
    mean, variance = moments(path)
    assert mean[:, 0].tolist() == [1.0, 2.0]
    assert variance[:, 0].tolist() == [0.0, 2.0]


def test_paths_are_compared_at_once_however_the_loader_splits_them(monkeypatch):
    """As above: a path alone has no variance, and those of parts would not be that of the whole."""
    fit = NeuralSDERegularization(still_process(), 0, test_trajectories=4)
    path = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [3.0, 3.0]]])
    for row in path:
        fit.test_step({"time": torch.tensor([[0.0, 1.0]]), "path": row[None]}, 0)
    logged = {}
    monkeypatch.setattr(fit, "log", lambda name, value, **_: logged.update({name: value.item()}))
    fit.on_test_epoch_end()
    assert logged == {
        "test/mse": 2.5,
        "test/mse_mean": 0.5,
        "test/mse_variance": 2.0,
        "test/nfe": logged["test/nfe"],
    }


def test_the_noise_differs_between_processes(monkeypatch):
    fit, other = NeuralSDERegularization(path_sde(2), 0), NeuralSDERegularization(path_sde(2), 0)
    monkeypatch.setattr(NeuralSDERegularization, "global_rank", 0)
    first = fit.training_seed()
    assert first == int(torch.randint(2**62, (), generator=seeding.generator(0, "noise", 0)))
    monkeypatch.setattr(NeuralSDERegularization, "global_rank", 1)
    assert other.training_seed() != first


def test_the_noise_of_a_training_step_differs_and_that_of_evaluations_does_not():
    fit = NeuralSDERegularization(path_sde(2), 0)
    assert fit.training_seed() != fit.training_seed()
    assert fit.evaluation_seed() == fit.evaluation_seed() != fit.evaluation_seed(1)


def test_a_neural_sde_classifies_with_a_regularizer():
    torch.manual_seed(0)
    sde = NeuralDERegularization(neural_sde(2, 2, width=4), 2, stiffness=0.1)
    sde.training_loss(points()).backward()
    assert all(parameter.grad is not None for parameter in sde.flow.parameters())


# -- runs ------------------------------------------------------------------------------------------------------------


def test_evaluations_are_counted_and_do_not_depend_on_the_batches_of_the_evaluation(train):
    options = ["regularizer=neural_de_regularization", "dataset=annuli", "dataset.load.train=256", *NETWORK]
    _, folder = train(*options)
    metrics = read_result(folder)["metrics"]
    per_epoch = [float(row["train/nfe"]) for row in history(folder) if row.get("train/nfe")]
    assert len(per_epoch) == 2
    assert metrics["test/training_nfe"] == pytest.approx(sum(per_epoch) / 2)
    assert (metrics["test/nfe"] - 2) % 6 == 0
    _, other = train(*options, "dataset.eval_batch_size=300", run_dir="other")
    assert read_result(other)["metrics"] == metrics


def test_a_resumed_run_is_the_uninterrupted_one(train):
    """Noise, end times and counts go on."""
    options = ["regularizer=neural_de_regularization", "regularizer.steer=0.3", "backbone=neural_sde",
               "backbone.tolerance=0.05", "dataset=annuli", "dataset.load.train=256", *NETWORK[:3]]  # fmt: skip
    _, whole = train(*options, "trainer.max_epochs=2", "regularizer.weight_end=100")
    _, first = train(*options, "trainer.max_epochs=1", "regularizer.weight_end=100", run_dir="first")
    checkpoint = first / "checkpoints" / "last.ckpt"
    _, second = train(
        *options,
        "trainer.max_epochs=2",
        "regularizer.weight_end=100",
        f"ckpt_path={checkpoint}",
        run_dir="second",
    )
    assert read_result(second)["metrics"] == read_result(whole)["metrics"]


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": -1.0}, "at least 0"),
        ({"weight_end": 0.0}, "above 0"),
        ({"aggregate": "median"}, r"regularizer\.aggregate"),
        ({"steer": 1.5}, r"from 0 to backbone\.end=1\.0"),
        ({"taylor_order": 0}, "taylor_order=0"),
        ({"local": "random"}, r"regularizer\.local"),
        ({"local": "unbiased", "error": 0.0}, "there is no R"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        method(**options)


def test_what_only_odes_have_is_refused_for_sdes():
    for options in ({"taylor": 0.1}, {"local": "biased"}):
        with pytest.raises(UserError, match="are for ODEs"):
            NeuralDERegularization(neural_sde(2, 2, width=4), 2, **options)


def test_networks_and_paths_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="backbone=neural_ode"):
        NeuralDERegularization(nn.Linear(2, 2), 2)
    with pytest.raises(UserError, match="backbone=path_sde"):
        NeuralSDERegularization(nn.Linear(2, 2), 0)
    with pytest.raises(UserError, match="at least 2"):
        NeuralSDERegularization(path_sde(2), 0, trajectories=1)
    with pytest.raises(UserError, match=r"regularizer\.aggregate"):
        NeuralSDERegularization(path_sde(2), 0, aggregate="median")
    with pytest.raises(UserError, match="above 0"):
        NeuralSDERegularization(path_sde(2), 0, weight_start=0.0)
    for time, end, message in (([[0.0, 1.0], [0.0, 0.9]], 1.0, "common times"), ([[0.0, 1.0]] * 2, 0.5, "at most"),
                               ([[0.0, 1.0]], 1.0, "single path")):  # fmt: skip
        batch = {"time": torch.tensor(time), "path": torch.ones(len(time), 2, 2)}
        with pytest.raises(UserError, match=message):
            NeuralSDERegularization(path_sde(2, end=end), 0).training_loss(batch)


def test_what_is_computed_in_is_the_networks_to_say():
    def setup(precision: str, dtype: str, device: str = "cpu") -> None:
        fit = NeuralDERegularization(neural_ode(2, 2, dtype=dtype), 2)
        strategy = SimpleNamespace(root_device=torch.device(device))
        fit._trainer = SimpleNamespace(precision=precision, strategy=strategy)
        fit.setup("fit")

    for precision, dtype in (("32-true", "float32"), ("32-true", "float64"), ("64-true", "float64")):
        setup(precision, dtype)
    for precision, dtype in (("64-true", "float32"), ("bf16-true", "float64"), ("bf16-mixed", "float32")):
        with pytest.raises(UserError, match=r"backbone\.dtype decides"):
            setup(precision, dtype)
    with pytest.raises(UserError, match="accelerator=cpu"):
        setup("32-true", "float64", "mps")


@pytest.mark.parametrize(
    ("precision", "dtype", "code"),
    [("bf16-true", "float64", 2), ("64-true", "float32", 2), ("64-true", "float64", 0)],
)
def test_other_precisions_are_refused_before_training(train, capsys, precision, dtype, code):
    found, _ = train(
        "regularizer=neural_de_regularization", "dataset=annuli", "dataset.load.train=64", "dataset.batch_size=32",
        f"accelerator.precision={precision}", f"backbone.dtype={dtype}", *NETWORK,
    )  # fmt: skip
    assert found == code
    assert ("backbone.dtype decides" in capsys.readouterr().err) == (code == 2)


def test_a_method_takes_any_network_with_a_field():
    torch.manual_seed(0)
    network = NeuralODE(
        nn.Linear(2, 3), Field(3, [4]), nn.Linear(3, 2), end=1.0, tolerance=1e-4, dtype="float64"
    )
    assert math.isfinite(NeuralDERegularization(network, 2).training_loss(points()).item())
