"""InfoMEC, MIG, DCI and modularity on codes whose values are known."""

import math

import numpy as np
import pytest
import torch
from sklearn.feature_selection import mutual_info_classif

from regbench.errors import UserError
from regbench.metrics.disentanglement import (
    InfoMEC,
    active,
    dci,
    dci_importance,
    discretised,
    entropies,
    infoc,
    infoe,
    infom,
    infomec,
    mig,
    modularity,
    mutual_information,
)

GRID = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), -1).reshape(
    -1, 2
)  # two factors of four values
BITS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])


def nmi(factors: np.ndarray, latents: np.ndarray) -> np.ndarray:
    return mutual_information(factors, latents, discrete=True) / entropies(factors)[:, None]


def test_a_perfect_code():
    np.testing.assert_allclose(nmi(GRID, GRID), np.eye(2), atol=1e-12)
    found = infomec(GRID, GRID, discrete=True)
    assert (found["infom"], found["infoc"]) == (pytest.approx(1), pytest.approx(1))
    assert found["infoe"] > 0.999
    assert found["active"] == 2


def test_a_latent_twice_is_as_modular_and_less_compact():
    """Factor 0's share is 1/2, factor 1's 1: (3/4 − 1/3) / (2/3) = 0.625. A third, constant latent changes nothing."""
    twice = GRID[:, [0, 1, 0]]
    found = infomec(GRID, np.concatenate([twice, np.ones((16, 1), int)], 1), discrete=True)
    assert found["infom"] == pytest.approx(1)
    assert found["infoc"] == pytest.approx(0.625)
    assert found["infoe"] > 0.999
    assert found["active"] == 3


def test_sum_and_difference_are_explicit_without_being_modular():
    """Of the entropy of the sum of two uniform factors, log 4 stays where one of them is known."""
    latents = np.stack([GRID.sum(1), GRID[:, 0] - GRID[:, 1]], 1)
    counts = np.array([1, 2, 3, 4, 3, 2, 1]) / 16
    information = -(counts * np.log(counts)).sum() - math.log(4)
    np.testing.assert_allclose(nmi(GRID, latents), np.full((2, 2), information / math.log(4)))
    assert information / math.log(4) == pytest.approx(0.32782, abs=1e-5)
    found = infomec(GRID, latents, discrete=True)
    assert found["infom"] == pytest.approx(0, abs=1e-9)
    assert found["infoc"] == pytest.approx(0, abs=1e-9)
    assert found["infoe"] > 0.999


def test_exclusive_or_informs_of_nothing_by_itself():
    """Factors a, b and latents a, a XOR b: each tells nothing of b, and a line through the two neither. The second
    latent has no information at all and counts as spread evenly: InfoM is (1 + 1/2) / 2 between 1/2 and 1."""
    latents = np.stack([BITS[:, 0], BITS[:, 0] ^ BITS[:, 1]], 1)
    np.testing.assert_allclose(nmi(BITS, latents), [[1, 0], [0, 0]], atol=1e-12)
    assert infoe(BITS, latents, discrete=True) == pytest.approx(0.5, abs=1e-3)
    assert infom(nmi(BITS, latents)) == pytest.approx(0.5)
    assert infoc(nmi(BITS, latents)) == pytest.approx(0.5)


def test_a_latent_of_half_the_values_has_half_the_information():
    assert nmi(GRID, GRID[:, :1] // 2)[0, 0] == pytest.approx(0.5)


def test_numbers_in_place_of_symbols():
    """Three distant clusters of 40 points: the estimator's value is that of the counts, log 3."""
    factor = np.repeat(range(3), 40)[:, None]
    noise = np.random.default_rng(0).standard_normal((120, 2))
    latents = np.stack([100 * factor[:, 0] + noise[:, 0], noise[:, 1]], 1)
    information = mutual_information(factor, latents, discrete=False)
    assert information[0, 0] == pytest.approx(math.log(3), abs=0.02)
    assert information[0, 1] < 0.1
    assert active(latents, discrete=False).tolist() == [True, False]  # 5 of 200 is below a twentieth
    assert active(latents, discrete=True).tolist() == [True, True]


def test_numbers_vary_where_their_range_is_above_a_twentieth_of_the_largest():
    spread = np.linspace(0, 1, 50)[:, None] * np.array([1.0, 1 / 15, 1 / 19, 1 / 21, 1 / 25])
    assert active(spread, discrete=False).tolist() == [True, True, True, False, False]


def test_information_is_scikit_learns_of_ten_neighbours():
    """Of 3 neighbours, its default, it is another."""
    generator = np.random.default_rng(0)
    factor = generator.integers(0, 3, 150)
    z = factor + generator.standard_normal(150)
    expected, of_three = (
        mutual_info_classif((z[:, None] - z.mean()) / z.std(), factor, n_neighbors=k, random_state=0)[0]
        for k in (10, 3)
    )
    found = mutual_information(factor[:, None], z[:, None], discrete=False)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert abs(of_three - expected) > 0.01


def test_explicitness_of_numbers():
    """A corner for each pair of values: lines part them, on whatever scales. Of noise they read close to nothing."""
    factors, generator = np.tile(BITS, (100, 1)), np.random.default_rng(0)
    corners = factors @ np.array([[2.0, 1.0], [-1.0, 1.0]]) + generator.uniform(-0.2, 0.2, (400, 2))
    assert infoe(factors, corners * [1.0, 1000.0], discrete=False) > 0.99
    noise = generator.standard_normal((400, 2))
    assert infoe(factors, noise, discrete=False) == pytest.approx(0, abs=0.02)
    of_one = np.stack([factors[:, 0] + 0.1 * noise[:, 0], noise[:, 1]], 1)  # the other factor is in none
    assert infoe(factors, of_one, discrete=False) == pytest.approx(0.5, abs=0.02)


def test_explicitness_of_balanced_classes_against_nothing_is_relative_to_log_values():
    """One latent that says nothing: the regression stays at equal probabilities, whatever the classes' sizes."""
    factor = np.array([0, 0, 0, 1, 1, 2])[:, None]
    assert infoe(factor, np.zeros((6, 1), int), discrete=True) == pytest.approx(0, abs=1e-6)


def test_without_active_latents_all_is_zero_and_with_one_compactness_is():
    constant = np.zeros((16, 3), int)
    assert infomec(GRID, constant, True) == {"infom": 0.0, "infoe": 0.0, "infoc": 0.0, "active": 0.0}
    assert infomec(GRID, constant.astype(float), False)["active"] == 0
    assert infoc(np.array([[1.0], [0.0]])) == 0


def test_the_metric_gathers_batches():
    metric = InfoMEC(discrete=True)
    for rows in (GRID[:5], GRID[5:]):
        metric.update(torch.from_numpy(rows), torch.from_numpy(rows[:, [0, 1, 0]]))
    assert metric.compute()["infoc"] == pytest.approx(0.625)
    metric.reset()
    metric.update(torch.from_numpy(GRID), torch.from_numpy(GRID))
    assert metric.compute()["infoc"] == pytest.approx(1)


# -- older measures ----------------------------------------------------------------------------------------------------


def test_mutual_information_gap_and_modularity():
    assert mig(mutual_information(GRID, GRID, True), entropies(GRID)) == pytest.approx(1)
    assert mig(mutual_information(GRID, GRID[:, [0, 1, 0]], True), entropies(GRID)) == pytest.approx(0.5)
    assert modularity(mutual_information(GRID, GRID[:, [0, 1, 0]], True)) == pytest.approx(1)
    sums = np.stack([GRID.sum(1), GRID[:, 0] - GRID[:, 1]], 1)
    assert modularity(mutual_information(GRID, sums, True)) == pytest.approx(0)
    assert modularity(np.zeros((2, 1))) == 0


def test_intervals_of_equal_width():
    assert discretised(np.array([[0.0], [0.24], [0.26], [0.99], [1.0]]), bins=4)[:, 0].tolist() == [
        0,
        0,
        1,
        3,
        3,
    ]


def test_disentanglement_and_completeness():
    """Eastwood & Williams: 1 where each latent serves one factor, 0 where all serve all alike."""
    assert dci(np.eye(3)) == (pytest.approx(1), pytest.approx(1))
    assert dci(np.ones((3, 3))) == (pytest.approx(0), pytest.approx(0))
    # latent 0 serves factor 0 (2), latent 1 both alike (1 each): 2/4 · 1 + 2/4 · (1 − 1) = 1/2;
    # factor 0 has 2/3 and 1/3, factor 1 latent 1 only: 3/4 (1 − H(2/3)) + 1/4
    d, c = dci(np.array([[2.0, 1.0], [0.0, 1.0]]))
    entropy = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert d == pytest.approx(0.5)
    assert c == pytest.approx(0.75 * (1 - entropy) + 0.25)
    assert dci(np.zeros((2, 2))) == (0, 0)


@pytest.mark.parametrize("regressor", ["boosting", "forest", "lasso"])
def test_importances_find_the_latent_of_each_factor(regressor):
    factors = np.tile(GRID, (12, 1))
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, factors.shape)
    importance, informativeness = dci_importance(factors, (factors + noise)[:, ::-1], regressor)
    assert importance.shape == (2, 2)
    d, c = dci(importance)
    assert min(d, c) > 0.9
    assert importance.argmax(1).tolist() == [1, 0]
    assert informativeness > 0.95
    with pytest.raises(UserError, match="no regressor 'tree'"):
        dci_importance(factors, factors, "tree")
