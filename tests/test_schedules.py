"""Learning-rate schedules against torch's own, and against values worked out by hand."""

import pytest
import torch

from regbench.errors import UserError
from regbench.schedules import lr_factor


def _by_torch(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs():
    factor = lr_factor({"name": "cosine", "min_factor": 0.1}, total=20, per_epoch=5)
    expected = _by_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.1), 20)
    assert [factor(s) for s in range(20)] == pytest.approx(expected)


def test_multistep_is_torchs():
    factor = lr_factor({"name": "multistep", "milestones": [2, 3], "gamma": 0.2}, total=20, per_epoch=5)
    expected = _by_torch(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 15], gamma=0.2), 20)
    assert [factor(s) for s in range(20)] == pytest.approx(expected)


def test_restarts_are_torchs():
    factor = lr_factor(
        {"name": "cosine_restarts", "period_epochs": 2, "min_factor": 0.05}, total=30, per_epoch=5
    )
    expected = _by_torch(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=0.05), 30
    )
    assert [factor(s) for s in range(30)] == pytest.approx(expected)


def test_warmup_rises_to_the_full_rate_then_the_schedule_begins():
    factor = lr_factor({"name": "cosine", "warmup_epochs": 1}, total=8, per_epoch=4)
    assert [factor(s) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factor(8) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cosin"}, "Did you mean cosine"),
        ({"name": "cosine", "gamma": 2}, "gamma"),
        ({"name": "cosine", "warmup_epochs": 5}, "shorten"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(UserError, match=message):
        lr_factor(config, total=10, per_epoch=5)
