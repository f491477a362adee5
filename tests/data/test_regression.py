"""Samples of a regression: the generating functions by hand, noise, offsets, and draws from files."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes as sklearn_diabetes

from regbench.data.regression import load_csv, load_diabetes, load_mars, mars_add, mars_mult
from regbench.errors import UserError

MARS = {"function": "mars_add", "n_train": 400, "n_val": 0, "n_test": 300, "features": 6, "sigma": 0.5,
        "offset": None}  # fmt: skip


def test_the_functions_at_points_worked_out_by_hand():
    x = torch.tensor([[0.25, 1.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 0.0, 0.0]]).double()
    # 0.1 e + 4 / (1 + e^-10) + 1 + 1 and 0.1 e² + 4 / (1 + e^10) + 3
    torch.testing.assert_close(mars_add(x), torch.tensor([6.271647, 3.739087]).double(), atol=1e-6, rtol=0)
    # 10 sin(π/4) + 20 · 0.05² + 5 + 5 and 0 + 20 · 0.95²
    torch.testing.assert_close(mars_mult(x), torch.tensor([17.121068, 18.05]).double(), atol=1e-6, rtol=0)


def test_targets_are_the_function_and_noise_of_the_given_size():
    sets = load_mars(**MARS, seed=3)
    x, y = (sets.train.fields[name] for name in ("features", "target"))
    assert x.shape == (400, 6)
    assert y.shape == (400, 1)
    assert 0 <= x.min() < 0.01
    assert 0.99 < x.max() <= 1
    truth, again = sets.train.hidden["truth"], sets.train.hidden["resampled"]
    torch.testing.assert_close(truth[:, 0], mars_add(x.double()))
    noise, other = y - truth, again - truth
    assert noise.std().item() == pytest.approx(0.5, rel=0.1)
    assert abs(np.corrcoef(noise[:, 0], other[:, 0])[0, 1]) < 0.15
    assert set(sets.train.hidden["noise_sd"].flatten().tolist()) == {0.5}
    assert sets.test.fields["target"].var() > 1
    exact = load_mars(**MARS | {"sigma": 0.0}, seed=3)
    torch.testing.assert_close(exact.train.fields["target"].double(), truth, atol=1e-5, rtol=0)


def test_splits_follow_the_seed_and_not_each_others_sizes():
    first, again, other = (load_mars(**MARS, seed=seed) for seed in (1, 1, 2))
    more = load_mars(**MARS | {"n_val": 50, "n_train": 10}, seed=1)
    for name in ("features", "target"):
        assert torch.equal(first.test.fields[name], again.test.fields[name])
        assert torch.equal(first.test.fields[name], more.test.fields[name])
        assert not torch.equal(first.test.fields[name], other.test.fields[name])
    assert not torch.equal(first.train.fields["features"][:300], first.test.fields["features"])
    assert first.fingerprint == other.fingerprint != more.fingerprint
    assert first.val is None
    assert len(more.val) == 50


def test_an_offset_moves_the_training_features_by_no_more():
    moved = load_mars(**MARS | {"offset": 0.2, "n_val": 100}, seed=1)
    train = moved.train.fields["features"]
    for split, rows in ((moved.test, 300), (moved.val, 100)):
        step = split.fields["features"] - train[:rows]
        assert 0.19 < step.abs().max() <= 0.2 + 1e-6
        assert abs(step.mean()) < 0.02
    same = load_mars(**MARS | {"offset": 0.0}, seed=1)
    assert torch.equal(same.test.fields["features"], same.train.fields["features"][:300])
    assert not torch.equal(same.test.fields["target"], same.train.fields["target"][:300])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function": "mars"}, "mars_add"),
        ({"features": 4}, "at least 5"),
        ({"n_test": 1}, "at least 2"),
        ({"sigma": -1.0}, "not be negative"),
        ({"offset": 0.1, "n_test": 500}, "those of the 400 training samples"),
    ],
)
def test_what_is_refused_of_generated_samples(options, message):
    with pytest.raises(UserError, match=message):
        load_mars(**MARS | options, seed=0)


def test_diabetes_draws_different_patients_into_each_split():
    sets = load_diabetes(n_train=200, n_val=42, n_test=200, seed=5)
    features, target = sklearn_diabetes(return_X_y=True)
    x = torch.cat([split.fields["features"] for split in (sets.train, sets.val, sets.test)])
    y = torch.cat([split.fields["target"] for split in (sets.train, sets.val, sets.test)])
    mine, theirs = (np.sort(values.ravel()) for values in (y.numpy() * 100, target))
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)  # all 442, each once
    row = int(np.flatnonzero(np.isclose(features, x[0].numpy(), atol=1e-6).all(1))[0])
    assert y[0].item() == pytest.approx(target[row] / 100)
    other = load_diabetes(n_train=200, n_val=42, n_test=200, seed=6)
    assert not torch.equal(sets.train.fields["target"], other.train.fields["target"])
    with pytest.raises(UserError, match="442"):
        load_diabetes(n_train=400, n_val=0, n_test=100, seed=0)


def test_a_file_of_numbers(tmp_path):
    table = tmp_path / "houses.csv"
    table.write_text("area,price,rooms\n" + "\n".join(f"{i},{10 * i},{i / 2}" for i in range(8)))
    sets = load_csv(str(tmp_path), file="houses.csv", target="price", n_train=5, n_val=0, n_test=3, seed=0)
    assert sets.shape == (2,)
    rows = torch.cat([sets.train.fields["features"], sets.test.fields["features"]])
    prices = torch.cat([sets.train.fields["target"], sets.test.fields["target"]])
    assert sorted(rows[:, 0].tolist()) == list(range(8))
    assert torch.equal(prices[:, 0], 10 * rows[:, 0])
    assert torch.equal(rows[:, 1], rows[:, 0] / 2)


def test_what_is_refused_of_a_file(tmp_path):
    sizes = {"n_train": 2, "n_val": 0, "n_test": 2}
    with pytest.raises(UserError, match=r"needs dataset\.file"):
        load_csv(file=None, target=None, **sizes)
    with pytest.raises(UserError, match=r"none\.csv is no file"):
        load_csv(str(tmp_path), file="none.csv", target="a", **sizes)
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n3,x\n")
    with pytest.raises(UserError, match=r"no column .* 'c'"):
        load_csv(file=str(table), target="c", **sizes)
    with pytest.raises(UserError, match="numbers only"):
        load_csv(file=str(table), target="a", **sizes)
