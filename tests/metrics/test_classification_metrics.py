"""The classification metrics on numbers worked out by hand."""

import pytest
import torch

from regbench.metrics.classification import (
    area_under_risk_coverage,
    calibration_error,
    classification_metrics,
)


def test_accuracy_nll_and_calibration_by_hand():
    # Two classes, logits ±a: the probability of class 0 is sigmoid(2a). With 2a = ln 3 it is 3/4.
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]) * torch.log(torch.tensor(3.0))
    label = torch.tensor([0, 0, 1, 1])
    metrics = classification_metrics(2, "test/")
    metrics.update(logits[:1], label[:1])  # in two batches of different sizes
    metrics.update(logits[1:], label[1:])
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["test/accuracy"] == pytest.approx(0.75)
    assert values["test/nll"] == pytest.approx((3 * 0.2876821 + 1.3862944) / 4)  # -ln 3/4 and -ln 1/4
    assert values["test/ece"] == pytest.approx(0.0, abs=1e-6)  # confidence 3/4, right 3 times of 4
    assert "test/accuracy_top5" not in values


def test_logits_that_look_like_probabilities_are_still_logits():
    metrics = classification_metrics(2, "")
    metrics.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]))
    # softmax: 1 / (1 + e^-0.8) = 0.68997 and 1 / (1 + e^-0.6) = 0.64566; both right
    assert metrics.compute()["ece"].item() == pytest.approx(1 - (0.68997 + 0.64566) / 2, abs=1e-4)


def test_top5():
    logits = -torch.arange(7.0).repeat(7, 1)  # classes ranked 0, 1, 2, …
    metrics = classification_metrics(7, "")
    metrics.update(logits, torch.arange(7))
    values = metrics.compute()
    assert values["accuracy"].item() == pytest.approx(1 / 7)
    assert values["accuracy_top5"].item() == pytest.approx(5 / 7)


def test_calibration_and_ranking_by_hand():
    """Five predictions of two classes: right, wrong, right, right, wrong."""
    # A little below 0.9, 0.8 …: softmax rounds.
    confidence, correct = torch.tensor([0.8999, 0.7999, 0.6999, 0.5999, 0.55]), torch.tensor([1, 0, 1, 1, 0])
    logits = torch.stack([confidence.log(), (1 - confidence).log()], dim=1)
    metrics = classification_metrics(2, "test/", ranking=True)
    for rows in (slice(0, 2), slice(2, 5)):
        metrics.update(logits[rows], 1 - correct[rows])  # class 0 is predicted
    values = metrics.compute()
    # the last two share a bin: (0.1001 + 0.7999 + 0.3001 + |1 − 1.1499|) / 5
    assert values["test/ece10"].item() == pytest.approx(0.27, abs=1e-6)
    assert values["test/aurc"].item() == pytest.approx(0.296667, abs=1e-6)
    assert values["test/eaurc"].item() == pytest.approx(0.166667, abs=1e-6)


@pytest.mark.parametrize(("right", "aurc"), [(True, 0.0), (False, 1.0)])
def test_ranking_of_all_right_and_all_wrong(right, aurc):
    found, excess = area_under_risk_coverage(torch.rand(7), torch.full((7,), right))
    assert found.item() == pytest.approx(aurc)
    assert excess.item() == pytest.approx(0.0)


def test_ranking_does_not_depend_on_the_order_of_the_rows():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.55])
    correct = torch.tensor([True, False, True, True, False])
    for order in ([3, 0, 4, 1, 2], [4, 3, 2, 1, 0]):
        found, excess = area_under_risk_coverage(confidence[order], correct[order])
        assert (found.item(), excess.item()) == pytest.approx((0.2966667, 0.1666667), abs=1e-6)


def test_equal_confidences_count_in_the_mean_over_their_orders():
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.2])
    correct = torch.tensor([True, False, True, True, True])
    # the error at position 2, 3 or 4, and then in every larger set
    areas = [sum(1 / j for j in range(first, 6)) / 5 for first in (2, 3, 4)]
    for order in ([0, 1, 2, 3, 4], [2, 1, 3, 0, 4], [4, 3, 2, 1, 0]):
        found, _ = area_under_risk_coverage(confidence[order], correct[order])
        assert found.item() == pytest.approx(sum(areas) / 3)


def test_bins_hold_their_upper_edge():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.55], dtype=torch.float64)
    correct = torch.tensor([True, False, True, True, False])
    # 0.6 and 0.55 share the bin (0.5, 0.6]: |1 − 1.15| = 0.15; the others 0.1, 0.8, 0.3; over 5
    assert calibration_error(confidence, correct, 10).item() == pytest.approx(0.27)
    certain = torch.tensor([1.0, 0.95])  # one bin: |1 − 1.95| / 2; torchmetrics has two: (1 + 0.05) / 2
    assert calibration_error(certain, torch.tensor([False, True]), 10).item() == pytest.approx(0.475)


def test_ranking_is_measured_where_it_is_asked_for():
    logits, label = torch.randn(8, 10), torch.arange(8)
    for ranking in (True, False):
        metrics = classification_metrics(10, "test/", ranking=ranking)
        metrics.update(logits, label)
        assert ({"test/aurc", "test/eaurc", "test/ece10"} <= set(metrics.compute())) == ranking
