"""ELR+ against its equations: whose average teaches whom, mixed targets, rewritten labels, ramps."""

import math

import pytest
import torch

from regbench.backbones.small import mlp, small_cnn
from regbench.errors import UserError
from regbench.functional import mixing
from regbench.regularizers.noisy_labels.elr_plus import ELRPlus, average_decay, rewritten

IMAGE, LABEL, INDEX = (
    torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1)),
    torch.tensor([0, 2]),
    [3, 1],
)


def method(**options):
    torch.manual_seed(0)
    made = ELRPlus(mlp(1, (2, 2), 3, hidden=(5,)), 3, **options)
    made.on_data(4)
    return made


def batch():
    return IMAGE, LABEL, torch.tensor(INDEX)


def by_hand(made, k, lam, other, targets_before, beta, weight, rewrite=False):
    """Loss of network k, and its new targets (2, C): sums over classes written out."""
    with torch.no_grad():
        seen = made.averages[1 - k](IMAGE).softmax(1).tolist()
        mixed = lam * IMAGE + (1 - lam) * IMAGE[other]
        p = made.pair[k](mixed).double().softmax(1).tolist()
    t = [
        [beta * old + (1 - beta) * s for old, s in zip(targets_before[i], seen[i], strict=True)]
        for i in range(2)
    ]
    loss = 0.0
    for i in range(2):
        j = other[i]
        q = [lam * t[i][c] + (1 - lam) * t[j][c] for c in range(3)]
        y = [lam * (LABEL[i] == c).item() + (1 - lam) * (LABEL[j] == c).item() for c in range(3)]
        if rewrite:
            total = sum(a * b for a, b in zip(y, q, strict=True))
            y = [a * b / total for a, b in zip(y, q, strict=True)]
        loss -= sum(y[c] * math.log(p[i][c]) for c in range(3)) / 2
        loss += weight * math.log(1 - sum(p[i][c] * q[c] for c in range(3))) / 2
    return loss, t


@pytest.mark.parametrize("rewrite", [False, True])
def test_loss_and_targets_by_hand(monkeypatch, rewrite):
    monkeypatch.setattr(
        mixing, "beta", lambda alpha, generator: 0.3
    )  # the larger of 0.3 and 0.7 is the image's own
    monkeypatch.setattr(torch, "randperm", lambda n, generator=None: torch.tensor([1, 0]))
    made = method(beta=0.7, weight=3.0, rewrite=rewrite)
    for average in made.averages:  # else they would be the networks themselves
        for parameter in average.parameters():
            parameter.add_(0.3)
    zero = [[0.0] * 3] * 2
    parts = [by_hand(made, k, 0.7, [1, 0], zero, 0.7, 3.0, rewrite) for k in range(2)]
    loss = made.training_loss(batch())
    assert loss.item() == pytest.approx(sum(part for part, _ in parts), abs=1e-5)
    for table, (_, targets) in zip((made.targets, made.second_targets), parts, strict=True):
        for row, expected in zip(INDEX, targets, strict=True):
            assert table[row].tolist() == pytest.approx(expected, abs=1e-6)
        assert table[[0, 2]].abs().sum() == 0


def test_without_mixup_the_images_stay_as_they_are():
    made = method(alpha=0.0, weight=2.0)
    zero = [[0.0] * 3] * 2
    expected = sum(by_hand(made, k, 1.0, [0, 1], zero, 0.7, 2.0)[0] for k in range(2))
    assert made.training_loss(batch()).item() == pytest.approx(expected, abs=1e-5)


def test_rewritten_labels_by_hand():
    y = rewritten(torch.tensor([[0.7, 0.3]]), torch.tensor([[0.2, 0.6]]))
    assert y[0].tolist() == pytest.approx([0.4375, 0.5625])
    one_hot = torch.tensor([[0.0, 1.0, 0.0]])
    assert rewritten(one_hot, torch.tensor([[0.5, 0.2, 0.3]])).equal(one_hot)  # without mixup nothing changes
    assert rewritten(one_hot, torch.tensor([[1.0, 0.0, 0.0]])).equal(one_hot)  # no overlap


def test_average_follows_its_network_and_gets_no_gradient():
    made = method(decay=0.9, decay_ramp_steps=0)
    before = [[p.clone() for p in average.parameters()] for average in made.averages]
    made.training_loss(batch()).backward()
    assert all(p.grad is None for average in made.averages for p in average.parameters())
    assert all(p.grad is not None for network in made.pair for p in network.parameters())
    with torch.no_grad():
        for network in made.pair:
            for parameter in network.parameters():
                parameter.add_(1.0)
        made.after_step()  # the first step: decay 1 − 1/2
        for average, old in zip(made.averages, before, strict=True):
            for parameter, first in zip(average.parameters(), old, strict=True):
                torch.testing.assert_close(parameter, first + 0.5)
        made.after_step()  # the second: 1 − 1/3, of a distance of 1/2
        for average, old in zip(made.averages, before, strict=True):
            for parameter, first in zip(average.parameters(), old, strict=True):
                torch.testing.assert_close(parameter, first + 0.5 + 0.5 / 3)
    assert average_decay(10**6, 0.9, 0) == 0.9


@pytest.mark.parametrize("statistics", ["average", "batch"])
def test_statistics_of_the_averages(statistics):
    torch.manual_seed(0)
    made = ELRPlus(small_cnn(1, (8, 8), 3, width=8), 3, statistics=statistics).train()
    made.on_data(4)
    assert all(average.training == (statistics == "batch") for average in made.averages)
    before = [b.clone() for average in made.averages for b in average.buffers()]
    made.training_loss((torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.arange(4)))
    after = [b for average in made.averages for b in average.buffers()]
    same = all(a.equal(b) for a, b in zip(after, before, strict=True))
    assert same == (statistics == "average")


def test_tested_is_the_mean_of_both_networks():
    made = method().eval()
    first, second = (network(IMAGE) for network in made.pair)
    assert not first.equal(second)
    torch.testing.assert_close(made(IMAGE), (first + second) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.0}, "beta=1.0"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"decay_ramp_steps": -1}, "decay_ramp_steps=-1"),
        ({"statistics": "batches"}, "Did you mean batch"),
        ({"stack": ["mixup"]}, "stack"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        method(**options)


def test_it_needs_indices_and_their_number():
    with pytest.raises(UserError, match="needs index"):
        method().training_loss((IMAGE, LABEL))
    with pytest.raises(UserError, match="on_data"):
        ELRPlus(mlp(1, (2, 2), 3), 3).training_loss(batch())
