"""Tree ensembles as smoothers: their weights against scikit-learn's predictions and closed forms, and the measures."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.neighbors import KNeighborsRegressor

from regbench.data.regression import load_mars
from regbench.errors import UserError
from regbench.regularizers.theory.forest_smoothers import (
    Ensemble,
    ForestSmoothers,
    Smoother,
    decompose,
    degrees_of_freedom,
    effective_parameters,
    leaf_means,
)
from support import history, read_result

N = 200
QUICK = ["logger=none", "progress=none", "dataset.n_train=60", "dataset.n_val=40", "dataset.n_test=50"]


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training features and targets, test features."""
    sets = load_mars(
        function="mars_add", n_train=N, n_val=0, n_test=150, features=5, sigma=1.0, offset=None, seed=1
    )
    train = sets.train.fields
    return (
        train["features"].numpy(),
        train["target"][:, 0].double().numpy(),
        sets.test.fields["features"].numpy(),
    )


def grown(samples, count: int, **options) -> tuple[Ensemble, Smoother]:
    options = {
        "kind": "forest",
        "bootstrap": False,
        "max_features": 0.4,
        "max_leaf_nodes": None,
        "rate": 0.1,
    } | options
    ensemble = Ensemble(**options, random_state=5)
    ensemble.grow(samples[0], samples[1], count)
    smoother = Smoother(ensemble, {"train": samples[0], "test": samples[2]})
    smoother.advance(count)
    return ensemble, smoother


def method(**options) -> ForestSmoothers:
    return ForestSmoothers(torch.nn.Identity(), 1, **options)


# -- weights ---------------------------------------------------------------------------------------------------------


def test_a_tree_of_two_leaves_on_four_points():
    """x = 0, 1, 2, 3 and y = 0, 0, 1, 1 are split in the middle: two blocks of 1/2."""
    x, y = np.arange(4, dtype=np.float32)[:, None], np.array([0.0, 0.0, 1.0, 1.0])
    _, smoother = grown((x, y, x + 0.25), 1, max_features=1.0, max_leaf_nodes=2)
    half = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]]).double()
    assert torch.equal(smoother.weights("train"), half)
    assert torch.equal(smoother.weights("test"), half)
    assert effective_parameters(half).item() == 2
    assert half.trace().item() == 2


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ({"bootstrap": False}, RandomForestRegressor(8, bootstrap=False, max_features=0.4, random_state=5)),
        ({"bootstrap": True}, RandomForestRegressor(8, bootstrap=True, max_features=0.4, random_state=5)),
        (
            {"bootstrap": True, "max_leaf_nodes": 20},
            RandomForestRegressor(8, max_features=0.4, max_leaf_nodes=20, random_state=5),
        ),
        (
            {"kind": "boosting", "max_leaf_nodes": 9, "max_features": 1.0},
            GradientBoostingRegressor(
                n_estimators=8,
                init="zero",
                max_depth=None,
                max_leaf_nodes=9,
                random_state=5,
                max_features=1.0,
            ),
        ),
    ],
    ids=["forest", "bootstrap", "small trees", "boosting"],
)
def test_the_weights_times_the_targets_are_scikit_learns_predictions(samples, options, model):
    x, y, test = samples
    model.fit(x, y)
    ensemble, smoother = grown(samples, 8, **options)
    for name, inputs in (("train", x), ("test", test)):
        predicted = torch.from_numpy(model.predict(inputs))
        torch.testing.assert_close(
            smoother.weights(name) @ torch.from_numpy(y), predicted, rtol=0, atol=1e-12
        )
        torch.testing.assert_close(ensemble.predictions(inputs, [8])[0], predicted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_forests_weights_are_shares(samples, bootstrap):
    _, smoother = grown(samples, 6, bootstrap=bootstrap)
    for name in ("train", "test"):
        weights = smoother.weights(name)
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=torch.float64))


def test_boostings_weights_sum_to_one_less_what_is_left_of_zero(samples):
    """Each tree leaves 1 − 0.1 of the distance to the targets' mean: 1 − 0.9^20 = 0.878423."""
    _, smoother = grown(samples, 20, kind="boosting", max_leaf_nodes=5)
    for name in ("train", "test"):
        sums = smoother.weights(name).sum(1)
        torch.testing.assert_close(sums, torch.full_like(sums, 0.878423), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["forest", "boosting"])
def test_trees_added_one_by_one_are_those_that_are_added_at_once(samples, kind):
    once, _ = grown(samples, 6, kind=kind, bootstrap=kind == "forest", max_leaf_nodes=30)
    by_one, smoother = grown(samples, 1, kind=kind, bootstrap=kind == "forest", max_leaf_nodes=30)
    for count in range(2, 7):
        by_one.grow(samples[0], samples[1], count)
        smoother.advance(count)
    _, whole = grown(samples, 6, kind=kind, bootstrap=kind == "forest", max_leaf_nodes=30)
    assert torch.equal(smoother.weights("test"), whole.weights("test"))
    assert torch.equal(by_one.predictions(samples[2], [2, 6]), once.predictions(samples[2], [2, 6]))


def test_a_share_of_five_features_is_a_number_of_them(samples):
    """int(5 / 3) = int(5 · 0.2) = 1: the same forest; 0.4 is another."""
    third, fifth, two = (grown(samples, 3, max_features=m)[1].weights("test") for m in (1 / 3, 0.2, 0.4))
    assert torch.equal(third, fifth)
    assert not torch.equal(third, two)


# -- effective parameters --------------------------------------------------------------------------------------------


def test_effective_parameters_of_a_mean_and_of_nearest_neighbours(samples):
    x, _, test = samples
    assert effective_parameters(torch.full((7, N), 1 / N)).item() == pytest.approx(1)
    for k in (1, 4):
        neighbours = KNeighborsRegressor(k).fit(x, np.eye(N))
        weights = torch.from_numpy(neighbours.predict(test))
        assert effective_parameters(weights).item() == pytest.approx(N / k)


def test_a_full_tree_uses_n_everywhere_and_a_tree_of_l_leaves_l_on_the_training_inputs(samples):
    _, full = grown(samples, 1)
    for name in ("train", "test"):
        assert effective_parameters(full.weights(name)).item() == N
    assert full.weights("train").trace().item() == N
    _, small = grown(samples, 1, max_leaf_nodes=50)
    assert effective_parameters(small.weights("train")).item() == pytest.approx(50)
    assert small.weights("train").trace().item() == pytest.approx(50)


def test_a_forest_without_bootstrap_interpolates_and_one_with_keeps_the_share_of_its_bags(samples):
    _, plain = grown(samples, 50)
    assert torch.equal(plain.weights("train"), torch.eye(N, dtype=torch.float64))
    # A sample is in a bootstrap sample with probability 1 − 1/e, and then alone in its leaf.
    _, bagged = grown(samples, 50, bootstrap=True)
    assert bagged.weights("train").trace().item() / N == pytest.approx(1 - np.exp(-1), abs=0.02)


# -- the other measures ----------------------------------------------------------------------------------------------


def test_repbias_modvar_and_the_mean_excess():
    predictions = torch.tensor([[0.0, 2.0], [1.0, 1.0], [4.0, 0.0]]).double()
    target = torch.tensor([1.0, 2.0]).double()
    rep_bias, mod_var, mean = decompose(
        predictions, target
    )  # MSE 1/2, 1/2 and 13/2; the first of the best is r*
    assert rep_bias.item() == 0.5
    assert mod_var.item() == pytest.approx((0 + 2 + 20) / 6)
    assert mean.item() == pytest.approx(rep_bias.item() + (0 + 0 + 6) / 3)
    assert decompose(predictions[:1], target)[1] == 0


def test_degrees_of_freedom_of_a_linear_smoother_are_its_trace():
    generator = torch.Generator().manual_seed(0)
    smoother = torch.rand(20, 20, generator=generator).double()
    y = 3 + 2 * torch.randn(40_000, 20, generator=generator).double()
    found = degrees_of_freedom(y, y @ smoother.T, torch.full((20,), 2.0).double())
    assert found.item() == pytest.approx(smoother.trace().item(), rel=0.02)
    # numpy's covariance, input by input
    small, fitted = y[:5], y[:5] @ smoother.T
    by_hand = sum(np.cov(small[:, i], fitted[:, i])[0, 1] / 4 for i in range(20))
    assert degrees_of_freedom(small, fitted, torch.full((20,), 2.0).double()).item() == pytest.approx(by_hand)


def test_leaf_means_of_values_other_than_the_identity():
    values = torch.tensor([[2.0, 0.0], [6.0, 1.0], [5.0, 5.0]])
    found = leaf_means(values, torch.tensor([4, 4, 1]), torch.tensor([1, 4, 4]))
    assert found.tolist() == [[5.0, 5.0], [4.0, 0.5], [4.0, 0.5]]


# -- the method ------------------------------------------------------------------------------------------------------


def test_a_run_measures_what_its_trees_give(train):
    code, folder = train(
        "regularizer=forest_smoothers", *QUICK, "trainer.max_epochs=4", "regularizer.sizes=[1,3,9]"
    )
    assert code == 0
    metrics, rows = read_result(folder)["metrics"], history(folder)
    assert metrics["test/ep_1"] == metrics["test/ep_train"] == metrics["test/trace"] == pytest.approx(60)
    assert metrics["test/mse_train"] == 0
    assert metrics["test/ep"] < metrics["test/ep_3"] < metrics["test/ep_1"]
    assert metrics["test/ep_gap"] == pytest.approx(60 - metrics["test/ep"])
    assert not any(name.endswith("_9") for name in metrics)
    curve = [float(row["val/ep"]) for row in rows if row["val/ep"]]
    assert curve[0] == pytest.approx(60)
    assert len(curve) == 4
    assert curve == sorted(curve, reverse=True)
    _, twos = train("regularizer=forest_smoothers", *QUICK, "trainer.max_epochs=2", "regularizer.sizes=[1,3,9]",
                    "regularizer.trees=2", run_dir="twos")  # fmt: skip
    assert read_result(twos)["metrics"] == metrics


def test_a_resumed_run_gives_the_same_numbers(train, tmp_path):
    arguments = [
        "regularizer=forest_smoothers",
        *QUICK,
        "regularizer.kind=boosting",
        "regularizer.max_leaf_nodes=8",
    ]
    _, whole = train(*arguments, "trainer.max_epochs=6", run_dir="whole")
    _, part = train(*arguments, "trainer.max_epochs=3", run_dir="part")
    last = part / "checkpoints" / "last.ckpt"
    code, rest = train(*arguments, "trainer.max_epochs=6", f"ckpt_path={last}", run_dir="rest")
    assert code == 0
    assert read_result(rest)["metrics"] == read_result(whole)["metrics"]
    assert history(rest)[-2]["val/mse"] == history(whole)[-2]["val/mse"]


def test_the_number_of_trees_can_be_chosen_by_validation(train):
    _, folder = train("regularizer=forest_smoothers", *QUICK, "trainer.max_epochs=8", "checkpoint.select=best_val",
                      "regularizer.sizes=[1,2,3,4,5,6,7,8]")  # fmt: skip
    curve = [float(row["val/mse"]) for row in history(folder) if row["val/mse"]]
    chosen, metrics = int(np.argmin(curve)) + 1, read_result(folder)["metrics"]
    assert metrics["test/ep"] == metrics[f"test/ep_{chosen}"]
    assert metrics["test/mse"] == pytest.approx(metrics[f"test/mse_{chosen}"], rel=1e-6)
    assert chosen == 8 or f"test/ep_{chosen + 1}" not in metrics


def test_refits_and_resamplings_are_measured(train):
    _, folder = train("regularizer=forest_smoothers", *QUICK, "trainer.max_epochs=3", "regularizer.refits=4",
                      "regularizer.resamplings=40", "regularizer.max_features=0.4")  # fmt: skip
    metrics = read_result(folder)["metrics"]
    for suffix in ("", "_1"):
        assert metrics[f"test/rep_bias{suffix}"] <= metrics[f"test/mse{suffix}"] * (
            1 + 1e-6
        )  # the run is among them
        assert metrics[f"test/mean_mse{suffix}"] > metrics[f"test/rep_bias{suffix}"]
        assert metrics[f"test/mod_var{suffix}"] > 0
        assert metrics[f"test/variance{suffix}"] > 0
        assert metrics[f"test/dof{suffix}"] == pytest.approx(60, rel=0.1)  # y is interpolated: Cov(y, y) = σ²
    assert metrics["test/mod_var"] < metrics["test/mod_var_1"]


def test_it_works_in_a_loop_of_ones_own(samples):
    x, y, test = samples
    batch = {"features": torch.from_numpy(x), "target": torch.from_numpy(y)[:, None].float()}
    forest = method(max_features=1.0, bootstrap=True, trees=3)
    with pytest.raises(UserError, match="no trees yet"):
        forest(torch.from_numpy(test))
    for _ in range(2):
        loss = forest.training_loss(batch)
    weights = forest.weights(torch.from_numpy(test))
    assert weights.shape == (150, N)
    assert int(forest.grown) == 6
    predicted = weights @ batch["target"].double()
    torch.testing.assert_close(forest(torch.from_numpy(test)).double(), predicted, rtol=1e-6, atol=1e-6)
    fitted = forest(batch["features"])
    assert loss.item() == pytest.approx((fitted - batch["target"]).square().mean().item(), rel=1e-5)
    with pytest.raises(UserError, match="batch_size=null"):
        forest.training_loss({name: values[:10] for name, values in batch.items()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bagging"}, "boosting"),
        ({"kind": "boosting", "bootstrap": True}, "bootstrap=false"),
        ({"max_features": 0.0}, "max_features=0.0 is a share"),
        ({"learning_rate": 1.5}, "learning_rate=1.5 is a share"),
        ({"max_leaf_nodes": 1}, "2 or more, or null"),
        ({"sizes": [0]}, "1 or more"),
        ({"trees": 0}, "1 or more"),
        ({"refits": 1}, "2 fits or more"),
        ({"resamplings": -1}, "2 fits or more"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        method(**options)


def test_more_outputs_than_one_are_refused():
    with pytest.raises(UserError, match="3 outputs"):
        ForestSmoothers(torch.nn.Identity(), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["regularizer.resamplings=2", "dataset.sigma=0"], "data with noise"),
        (["dataset.batch_size=20"], "dataset.batch_size=null"),
    ],
)
def test_data_that_do_not_fit_are_refused(train, capfd, arguments, message):
    code, _ = train("regularizer=forest_smoothers", *QUICK, "trainer.max_epochs=1", *arguments)
    assert code == 2
    assert message in capfd.readouterr().err.replace("\n", " ")
