"""Losses against numbers worked out by hand and torch's soft-label cross entropy."""

import math

import pytest
import torch
import torch.nn.functional as F

from regbench.functional.losses import mixup_cross_entropy


def test_mixup_cross_entropy_by_hand():
    # z = [2, 1, 0, −1]: log Σ exp = 2.4402; 0.7 (2.4402 − 2) + 0.3 (2.4402 − 1) = 0.7402
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    loss = mixup_cross_entropy(logits, torch.tensor([0]), torch.tensor([1]), 0.7)
    assert loss.item() == pytest.approx(0.7402, abs=5e-5)
    flat = mixup_cross_entropy(
        torch.zeros(5, 4, dtype=torch.float64), torch.arange(5) % 4, torch.zeros(5).long(), 0.2
    )
    assert flat.item() == pytest.approx(math.log(4), abs=1e-12)


def test_mixup_cross_entropy_is_that_of_soft_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 10, generator=generator, dtype=torch.float64)
    a, b = torch.randint(10, (2, 16), generator=generator)
    for lam in (0.0, 0.3, 1.0):
        soft = lam * F.one_hot(a, 10).double() + (1 - lam) * F.one_hot(b, 10).double()
        assert mixup_cross_entropy(logits, a, b, lam).item() == pytest.approx(
            F.cross_entropy(logits, soft).item(), abs=1e-12
        )
