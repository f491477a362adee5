"""Pseudo labels and the masked loss on numbers worked out by hand."""

import math

import pytest
import torch

from regbench.functional.pseudo_labels import masked_cross_entropy, pseudo_labels


def test_the_label_is_the_largest_probability_and_carries_no_gradient():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(19.0), 0.0]], requires_grad=True)
    label, confidence = pseudo_labels(logits)
    assert label.tolist() == [1, 0]
    assert confidence.tolist() == pytest.approx([0.75, 0.95])
    assert not confidence.requires_grad


def test_masked_cross_entropy_divides_by_all_rows():
    # −log softmax: row 0 ln(4/3), row 1 ln 2, row 2 ln 4; kept 0 and 1 of 3
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [math.log(3.0), 0.0]], dtype=torch.float64)
    logits.requires_grad_()
    keep = torch.tensor([True, True, False])
    loss = masked_cross_entropy(logits, torch.tensor([0, 1, 1]), keep)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 3, abs=1e-12)
    loss.backward()
    assert logits.grad[2].tolist() == [0.0, 0.0]
    assert logits.grad[0].tolist() == pytest.approx([(0.75 - 1) / 3, 0.25 / 3])


def test_nothing_kept_is_zero_and_not_nan():
    loss = masked_cross_entropy(torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.bool))
    assert loss.item() == 0.0
