"""TF-KD with a virtual teacher: its distribution and the loss by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.errors import UserError
from regbench.regularizers.classification.base import Batch, Partner
from regbench.regularizers.classification.tf_kd import TFKD, virtual_teacher, virtual_teacher_loss

Z = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([0, 2])


def test_teacher_is_the_softmax_of_probabilities():
    u = torch.tensor([[0.99, 0.005, 0.005], [0.005, 0.005, 0.99]])
    torch.testing.assert_close(virtual_teacher(Y, 3, 0.99, 20.0), (u / 20).softmax(1))
    torch.testing.assert_close(virtual_teacher(Y, 3, 0.99, 0.5), (u / 0.5).softmax(1))
    assert virtual_teacher(Y, 100, 0.99, 20.0).sum(1).tolist() == pytest.approx([1, 1])
    assert virtual_teacher(Y, 100, 0.99, 20.0)[0, 0].item() == pytest.approx(
        0.0105, abs=1e-4
    )  # nearly uniform


def test_loss_by_hand():
    """Second row: the student is uniform, so CE = ln 3 and KL = ln 3 - entropy of the teacher."""
    ratio = math.exp((0.99 - 0.005) / 2)
    q = [1 / (2 + ratio), 1 / (2 + ratio), ratio / (2 + ratio)]
    divergence = math.log(3) + sum(p * math.log(p) for p in q)
    found = virtual_teacher_loss(Z[1:], Y[1:], alpha=0.3, correct=0.99, temperature=2.0, multiplier=5.0)
    assert found.item() == pytest.approx(0.7 * math.log(3) + 0.3 * 5 * divergence, abs=1e-6)


def test_a_nearly_uniform_teacher_is_label_smoothing():
    """With T → ∞ and multiplier 1 the gradient is that of label smoothing with ε = alpha."""
    ours, theirs = Z.clone().requires_grad_(), Z.clone().requires_grad_()
    virtual_teacher_loss(ours, Y, alpha=0.1, correct=0.99, temperature=1e9, multiplier=1.0).backward()
    F.cross_entropy(theirs, Y, label_smoothing=0.1).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=0)


def method(**options) -> TFKD:
    return TFKD(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3, **options)


def test_alpha_zero_is_cross_entropy_and_mixed_batches_mix_the_loss():
    image = torch.zeros(2, 1, 2, 2)
    assert method(alpha=0.0).objective(Z, Batch(image, Y)).item() == pytest.approx(
        F.cross_entropy(Z, Y).item()
    )
    made = method()
    mixed = made.objective(Z, Batch(image, Y, Partner(Y.flip(0), 0.7)))
    parts = [made.objective(Z, Batch(image, label)).item() for label in (Y, Y.flip(0))]
    assert mixed.item() == pytest.approx(0.7 * parts[0] + 0.3 * parts[1])


@pytest.mark.parametrize(
    "options", [{"alpha": 1.5}, {"temperature": 0.0}, {"correct": 0.0}, {"multiplier": -1.0}]
)
def test_mistakes_stop_at_construction(options):
    with pytest.raises(UserError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        method(**options)
