"""TF-KD by self-training: the loss by hand, and a teacher that stays as it is."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.errors import UserError
from regbench.regularizers.classification.tf_kd_self import TFKDSelf


class Constant(nn.Module):
    """Logits 2 ln 3, 0 for every image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2 * math.log(3), 0.0]))
        self.norm = nn.BatchNorm2d(1)

    def forward(self, image):
        self.norm(image)
        return self.weight.expand(len(image), 2)


def method(**options) -> TFKDSelf:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    return TFKDSelf(network, 2, teacher=Constant(), **options)


def test_loss_by_hand():
    """T = 2: the teacher is (3/4, 1/4), the student uniform; CE = ln 2."""
    made = method(alpha=0.9, temperature=2.0, multiplier=0.5)
    found = made.training_loss((torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 0])))
    divergence = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.item() == pytest.approx(0.1 * math.log(2) + 0.9 * 0.5 * divergence, abs=1e-6)


def test_the_teacher_is_left_alone():
    made = method().train()  # as Lightning does
    before = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    made.training_loss((5 + torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 0]))).backward()
    assert all(value.equal(before[name]) for name, value in made.teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in made.teacher.parameters())


def test_alpha_zero_is_cross_entropy():
    image, label = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 0])
    made = method(alpha=0.0)
    assert made.training_loss((image, label)).item() == pytest.approx(
        F.cross_entropy(made(image), label).item()
    )


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"temperature": 0.0}, {"multiplier": -1.0}])
def test_mistakes_stop_at_construction(options):
    with pytest.raises(UserError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        method(**options)
