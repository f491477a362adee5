"""Regularised latent ODEs: likelihood and divergence against torch's distributions, the loss and the times by hand."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from regbench.backbones.differential_equations import latent_ode, neural_ode
from regbench.data.series import load_irregular
from regbench.errors import UserError
from regbench.regularizers.differential_equations.base import (
    divergence_weight,
    log_likelihood,
    masked_mse,
    mean_divergence,
)
from regbench.regularizers.differential_equations.latent_ode_regularization import (
    LatentODERegularization,
    moved_times,
)


def method(**options) -> LatentODERegularization:
    torch.manual_seed(0)
    return LatentODERegularization(latent_ode(5, latent=3, tolerance=1e-6), 0, **options)


def series(count: int = 6) -> dict[str, torch.Tensor]:
    sets = load_irregular(train=count, val=1, test=1, times=5, features=2, seed=1)
    return sets.train.fields


class Fixed(nn.Module):
    """An encoder that gives the same mean and log variance for every series."""

    def __init__(self, *values: float):
        super().__init__()
        self.values = nn.Parameter(torch.tensor([values], dtype=torch.float64))

    def forward(self, series):
        return self.values.expand(len(series), -1)


class Decay(nn.Module):
    """z' = −z."""

    def forward(self, t, z):
        return -z


def decaying(**options) -> LatentODERegularization:
    """One feature that is twice the state, which starts at 1, but for a deviation of exp(−30), and decays."""
    network = latent_ode(3, latent=1, tolerance=1e-10)
    network.encode, network.field = Fixed(1.0, -60.0), Decay()
    nn.init.constant_(network.head.weight, 2.0)
    nn.init.zeros_(network.head.bias)
    return LatentODERegularization(network, 0, **({"error": 0.0, "deviation": 0.5} | options))


TWO = {  # the first is seen at 0 and 1, where the process is 2 and 2/e; the second at ln 2 only, where it is 1
    "time": torch.tensor([[0.0, math.log(2), 1.0]] * 2, dtype=torch.float64),
    "values": torch.tensor([[[2.5], [9.0], [2 / math.e]], [[9.0], [3.0], [9.0]]], dtype=torch.float64),
    "observed": torch.tensor([[[True], [False], [True]], [[False], [True], [False]]]),
}


# -- likelihood and divergence ----------------------------------------------------------------------------------------


def test_likelihood_and_divergence_are_those_of_torchs_distributions():
    g = torch.Generator().manual_seed(0)
    prediction, values = torch.randn(2, 3, 4, 5, generator=g)
    observed = torch.rand(3, 4, 5, generator=g) < 0.5
    each = Normal(prediction, 0.3).log_prob(values)
    expected = [each[i][observed[i]].mean() for i in range(3)]
    torch.testing.assert_close(log_likelihood(prediction, values, observed, 0.3), torch.stack(expected))
    mean, log_variance = torch.randn(2, 3, 6, generator=g)
    kl = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean(1)
    torch.testing.assert_close(mean_divergence(mean, log_variance), kl)


def test_each_series_counts_alike_however_often_it_was_observed():
    """Errors 0.5 and 0 of the first, 2 of the second: (0.25 / 2 + 4) / 2."""
    fit = decaying()
    time = TWO["time"][0]
    prediction, _, _, _ = fit.fit(time, TWO["values"], TWO["observed"], seed=0)
    assert prediction[0, :, 0].tolist() == pytest.approx([2.0, 1.0, 2 / math.e], rel=1e-8)
    assert masked_mse(prediction, TWO["values"], TWO["observed"]).tolist() == pytest.approx([0.125, 4.0])
    fit._keep(TWO)
    assert fit._measure(fit.test_metrics)["test/mse"].item() == pytest.approx(2.0625)


def test_the_loss_by_hand(monkeypatch):
    """σ = 1/2: −log-likelihood is 2 mse + log(1/2) + log(2π)/2; the KL of N(1, exp(−60)) is (1 − 1 + 60) / 2. Its
    weight in epoch 12, counted from 0, is 1 − 0.99².
    """
    likelihood = 2 * 2.0625 + math.log(0.5) + math.log(2 * math.pi) / 2
    assert decaying().training_loss(TWO).item() == pytest.approx(likelihood)
    monkeypatch.setattr(LatentODERegularization, "current_epoch", 12)
    assert decaying().training_loss(TWO).item() == pytest.approx(likelihood + (1 - 0.99**2) * 30)
    assert decaying(kl_start=12).training_loss(TWO).item() == pytest.approx(likelihood)


def test_the_divergence_comes_in_after_its_start():
    assert [divergence_weight(epoch, 10, 0.99) for epoch in (0, 9, 10)] == [0, 0, 0]
    assert divergence_weight(299, 10, 0.99) == pytest.approx(1 - math.exp(289 * math.log(0.99)))


# -- the penalty and STEER --------------------------------------------------------------------------------------------


def test_the_penalty_is_added_with_its_weight():
    batch, plain = series(), method(error=0.0)
    time = plain.common(batch["time"])
    seed = method().training_seed()
    solution = plain.fit(time, batch["values"], batch["observed"], seed)[-1]
    pairs = list(zip(solution.errors, solution.steps, strict=True))
    expected = 1000 * sum(e.item() * h for e, h in pairs) / len(pairs)
    loss, own = plain.training_loss(batch).item(), method().training_loss(batch)
    assert own.item() - loss == pytest.approx(expected, rel=1e-6)
    own.backward()
    stiff = method(error=0.0, stiffness=1.0, aggregate="max", weight_start=10.0, weight_end=10.0)
    largest = max(s.item() for s in solution.stiffness) / 3.5068
    assert stiff.training_loss(batch).item() - loss == pytest.approx(10 * largest, rel=1e-6)
    assert method(error=0.0, taylor=1.0).training_loss(batch).item() > loss


def test_every_part_of_the_network_is_trained():
    fit = method()
    fit.training_loss(series()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in fit.flow.parameters())


def test_steer_moves_observations_within_half_the_time_before_them():
    time = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    steered = method(steer=0.5)
    drawn = torch.stack([steered.training_time(time) for _ in range(300)])
    assert (drawn[:, 0] == 0).all()
    moves = drawn[:, 1:-1] - time[1:-1]
    assert -0.125 <= moves.min() < -0.12
    assert 0.12 < moves.max() <= 0.125
    assert (drawn[:, -1] <= 1).all()
    assert (drawn[:, -1] == 1).double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (drawn.diff(dim=1) >= 0).all()
    assert torch.equal(method(steer=0.5).training_time(time), drawn[0])
    assert method().training_time(time) is time
    uneven = moved_times(torch.tensor([0.0, 0.8, 0.9]), 0.5, torch.tensor([1.0, 0.0]), 2.0)
    assert uneven.tolist() == pytest.approx([0.0, 1.2, 1.2])  # the last would be at 0.85


# -- evaluation and mistakes ------------------------------------------------------------------------------------------


def test_evaluations_do_not_depend_on_the_loaders_batches(monkeypatch):
    monkeypatch.setattr(LatentODERegularization, "SOLVED_TOGETHER", 4)
    fit, batch = method(), series()
    measured = []
    for sizes in ((6,), (1, 2, 3)):
        for part in zip(*(field.split(sizes) for field in batch.values()), strict=True):
            fit._keep(dict(zip(batch, part, strict=True)))
        measured.append(fit._measure(fit.val_metrics))
    assert measured[0] == measured[1]
    assert measured[0]["val/mse"] > 0
    assert (measured[0]["val/nfe"] - 2) % 6 == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": -1.0}, "at least 0"),
        ({"aggregate": "median"}, r"regularizer\.aggregate"),
        ({"steer": 0.6}, "from 0 to 0.5"),
        ({"taylor_order": 0}, "taylor_order=0"),
        ({"deviation": 0.0}, "above 0"),
        ({"kl_rate": 1.5}, "at most 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        method(**options)


def test_networks_and_times_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="backbone=latent_ode"):
        LatentODERegularization(nn.Linear(2, 2), 0)
    with pytest.raises(UserError, match="backbone=latent_ode"):
        LatentODERegularization(neural_ode(2, 2), 0)
    with pytest.raises(UserError, match=r"backbone\.end=0"):
        LatentODERegularization(latent_ode(5, end=0.0), 0, steer=0.5)
    batch = series(2)
    for time, message in (([[0.0, 0.1, 0.2, 0.3, 1.5]] * 2, "at most"), ([[0.0, 0.1, 0.2, 0.2, 1.0]] * 2, "ascend"),
                          ([[0.0, 0.1, 0.2, 0.3, 1.0], [0.0, 0.1, 0.2, 0.4, 1.0]], "common times")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            method().training_loss(batch | {"time": torch.tensor(time)})
