"""Decoupled mixup on FixMatch: who has the larger share, which rows and terms count, and the whole loss by hand."""

import math

import pytest
import torch
from torch import nn

from regbench.errors import UserError
from regbench.functional import mixing
from regbench.functional.decoupled import decoupled_mixup_cross_entropy, decoupled_term
from regbench.registry import load
from regbench.regularizers.semi_supervised.decoupled_mixup_ssl import mix_with_unlabelled, rise

Z = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
DecoupledMixupSSL = load("decoupled_mixup_ssl")


def draws(policy: str, count: int = 40):
    image = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    for seed in range(count):
        yield mixing.bind(policy, {})(image, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("policy", ["mixup", "cutmix", "resizemix", "fmix", "saliencymix"])
def test_the_labelled_image_has_the_larger_share_and_its_own_partner(policy):
    labelled = torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, 8, 8)
    unlabelled = torch.tensor([2.0, 5.0])[:, None, None, None].expand(2, 1, 8, 8)
    sides = set()
    for draw in draws(policy):
        mixed, share = mix_with_unlabelled(labelled, unlabelled, draw)
        sides.add(draw.lam < 0.5)
        assert 0.5 <= share <= 1
        # every policy is linear in constant images: the mean is share · a + (1 − share) · b of the same row
        expected = share * torch.tensor([1.0, 3.0]) + (1 - share) * torch.tensor([2.0, 5.0])
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected)
    assert sides == {False, True}


def test_rows_that_are_not_kept_count_as_zero():
    # the numbers of test_decoupled_mixup.py: MCE 0.7402, −log h 0.1698 and 0.4076; η = 1, λ = 0.7
    whole = 0.7402 + 0.7 * 0.1698 + 0.3 * 0.4076
    a, b = torch.tensor([0, 0]), torch.tensor([1, 1])
    for keep, expected in (([True, True], whole), ([True, False], whole / 2), ([False, False], 0.0)):
        loss = decoupled_mixup_cross_entropy(Z.repeat(2, 1), a, b, 0.7, eta=1.0, keep=torch.tensor(keep))
        assert loss.item() == pytest.approx(expected, abs=1e-4)
    same = decoupled_mixup_cross_entropy(Z, a[:1], a[:1], 0.7, eta=1.0, keep=torch.tensor([True]))
    assert same.item() == pytest.approx(0.4402, abs=5e-5)  # plain cross entropy
    assert decoupled_term(Z, a[:1], b[:1], torch.tensor([False])).item() == 0.0


def test_only_the_labelled_term():
    # share 0.7 of class 0: MCE + 0.7 · 0.1698
    loss = decoupled_mixup_cross_entropy(Z, torch.tensor([0]), torch.tensor([1]), 0.7, eta=1.0, mode="more")
    assert loss.item() == pytest.approx(0.7402 + 0.7 * 0.1698, abs=1e-4)
    half = decoupled_mixup_cross_entropy(Z, torch.tensor([0]), torch.tensor([1]), 0.5, eta=1.0, mode="more")
    mce = (0.4402 + 1.4402) / 2
    assert half.item() == pytest.approx(mce + 0.5 * 0.1698, abs=1e-4)  # a tie is the labelled image's


def test_rise():
    assert [rise(p) for p in (0.0, 1 / 3, 0.5, 1.0)] == pytest.approx([0.0, 0.25, 0.5, 1.0])


class Pixels(nn.Module):
    """Four pixels are features and logits alike."""

    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.fc.weight)

    def forward(self, image):
        return self.fc(self.flatten(image))


def method(progress: float = 1.0, monkeypatch=None, **options):
    made = DecoupledMixupSSL(Pixels(), 4, **options).double()
    with torch.no_grad():
        made.mix_head.weight.copy_(torch.eye(4))
        made.mix_head.bias.zero_()
    if monkeypatch is not None:
        monkeypatch.setattr(type(made), "progress", property(lambda self: progress))
    return made


def batch(confidence: float = 0.97):
    """One labelled image z of class 0; two unlabelled ones, of which the first meets it; its pseudo label is 1."""
    sure = math.log(3 * confidence / (1 - confidence))
    weak = torch.tensor([[0.0, sure, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    return {
        "image": Z[:, None, None, :],
        "label": torch.tensor([0]),
        "unlabelled_weak": weak[:, None, None, :],
        "unlabelled_strong": torch.zeros(2, 1, 1, 4, dtype=torch.float64),
    }


def test_the_whole_loss_by_hand(monkeypatch):
    """A single labelled image is its own partner: plain cross entropy 0.4402. Logits of the other mix: share · z."""
    options = {"eta": 0.5, "weight_labelled": 2.0, "weight_unlabelled": 3.0}
    made = method(0.5, monkeypatch, **options)
    draw = made.draw(torch.zeros(2, 1, 1, 4), made.generator("mix with unlabelled"))
    made._generators.clear()
    share = max(draw.lam, 1 - draw.lam)
    z = share * Z
    log_sum = z.exp().sum().log().item()
    mce = share * (log_sum - z[0, 0].item()) + (1 - share) * (log_sum - z[0, 1].item())
    without = [z[0, [k for k in range(4) if k != j]].exp().sum().log().item() for j in (1, 0)]
    terms = share * (without[0] - z[0, 0].item()) + (1 - share) * (without[1] - z[0, 1].item())
    fixmatch = 0.44019 + math.log(4) / 2  # one of two unlabelled images counts, its logits are 0
    expected = fixmatch + 2.0 * 0.44019 + 3.0 * 0.5 * (mce + 0.5 * terms)
    assert made.training_loss(batch()).item() == pytest.approx(expected, abs=2e-5)
    unsure = method(0.5, monkeypatch, **options).training_loss(batch(0.9)).item()
    assert unsure == pytest.approx(0.44019 + 2.0 * 0.44019, abs=2e-5)  # neither counts


def test_a_lower_threshold_for_small_shares(monkeypatch):
    lower = method(1.0, monkeypatch, mix_threshold=0.6).training_loss(batch(0.9)).item()
    plain = method(1.0, monkeypatch).training_loss(batch(0.9)).item()
    assert lower > plain + 0.1  # 0.9 ≥ max(0.6, 1 − share)


def test_at_first_the_mix_with_unlabelled_images_weighs_nothing(monkeypatch):
    one = method(0.0, monkeypatch).training_loss(batch()).item()
    other = method(0.0, monkeypatch, weight_unlabelled=50.0).training_loss(batch()).item()
    assert one == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "manifold_mixup"}, "mixes layers"),
        ({"policy": "mixxup"}, "Did you mean mixup"),
        ({"weight": 0.0}, "above 0"),
        ({"eta": -1.0}, "eta=-1.0"),
        ({"weight_labelled": -1.0}, "weight_labelled=-1.0"),
        ({"mix_threshold": 0.99}, "mix_threshold=0.99"),
        ({"view": "week"}, "Did you mean weak"),
        ({"alpha": 0.0}, "alpha=0.0"),
    ],
)
def test_mistakes_stop_at_construction(options, message):
    with pytest.raises(UserError, match=message):
        DecoupledMixupSSL(Pixels(), 4, **options)
