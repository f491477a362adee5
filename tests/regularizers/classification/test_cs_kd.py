"""CS-KD: who is paired with whom, and the loss by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.errors import UserError
from regbench.functional.distillation import tempered_kl
from regbench.regularizers.classification.base import Batch
from regbench.regularizers.classification.cs_kd import CSKD, same_class_partner


def test_divergence_by_hand():
    """T = 2, logits 2 ln 3 and 0 against 0 and 0: 4 KL((3/4, 1/4) || (1/2, 1/2)), and its gradient T (p - q)."""
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
    found = tempered_kl(student, teacher, 2.0)
    assert found.item() == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    found.sum().backward()
    assert student.grad[0].tolist() == pytest.approx([2 * (0.5 - 0.75), 2 * (0.5 - 0.25)])
    assert teacher.grad is None


def test_partners_are_others_of_the_same_class():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(7, (64,), generator=generator)
    label[5] = 9  # alone in its class
    partner = same_class_partner(label, torch.rand(64, generator=generator))
    assert label[partner].equal(label)
    assert partner.sort().values.equal(torch.arange(64))  # each is a partner once
    alone = partner == torch.arange(64)
    assert alone.nonzero().flatten().tolist() == [5]


def test_each_other_image_is_as_likely():
    generator = torch.Generator().manual_seed(0)
    label = torch.tensor([1, 0, 1, 1, 1])
    counts = torch.zeros(5)
    for _ in range(900):
        counts[same_class_partner(label, torch.rand(5, generator=generator))[0]] += 1
    assert counts[[0, 1]].sum() == 0
    assert (counts[2:] / 900 - 1 / 3).abs().max() < 0.06


def method(**options) -> CSKD:
    torch.manual_seed(0)
    return CSKD(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3, **options)


def test_loss_by_hand():
    """Two of a class follow each other; the third is alone and counts in the mean only."""
    z = torch.tensor(
        [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.0]], dtype=torch.float64, requires_grad=True
    )
    label = torch.tensor([0, 0, 2])
    found = method(weight=0.5, temperature=4.0).objective(z, Batch(torch.zeros(3, 1, 2, 2), label))
    q = [(row / 4).softmax(0).tolist() for row in z.detach()]
    kl = [sum(b * math.log(b / a) for a, b in zip(q[i], q[1 - i], strict=True)) for i in (0, 1)]
    expected = F.cross_entropy(z, label).item() + 0.5 * 16 * sum(kl) / 3
    assert found.item() == pytest.approx(expected, abs=1e-6)
    found.backward()
    plain = z.detach().clone().requires_grad_()
    F.cross_entropy(plain, label).backward()
    torch.testing.assert_close(z.grad[2], plain.grad[2], atol=1e-6, rtol=0)  # alone: cross entropy's alone
    # T² KL / B with the other detached: T (p - q) / B times the weight
    expected = plain.grad[0] + 0.5 * 4 / 3 * (torch.tensor(q[0]) - torch.tensor(q[1]))
    torch.testing.assert_close(z.grad[0], expected.double(), atol=1e-6, rtol=0)


def test_classes_that_are_all_alone_give_cross_entropy():
    z, label = torch.randn(3, 3), torch.tensor([0, 1, 2])
    found = method().objective(z, Batch(torch.zeros(3, 1, 2, 2), label))
    assert found.item() == pytest.approx(F.cross_entropy(z, label).item(), abs=1e-6)


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"temperature": 0.0}])
def test_mistakes_stop_at_construction(options):
    with pytest.raises(UserError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        method(**options)
