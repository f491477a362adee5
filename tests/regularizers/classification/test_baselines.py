"""The baselines: which loss each computes on which images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench import registry
from regbench.errors import UserError
from regbench.functional import mixing
from regbench.regularizers.classification.base import Batch, Partner

MIXING = ("mixup", "cutmix", "manifold_mixup", "resizemix", "fmix", "saliencymix")


class Conv(nn.Module):
    """Two stages and a classifier."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def create(slug, **hyperparameters):
    from regbench.backbones.backbone import Backbone

    torch.manual_seed(0)
    return registry.load(slug)(Backbone(Conv(), stages=("layer1", "layer2")), 5, **hyperparameters)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 1, 8, 8, generator=generator), torch.randint(5, (12,), generator=generator)


def test_none_is_cross_entropy(batch):
    method = create("none")
    expected = F.cross_entropy(method(batch[0]), batch[1])
    assert method.training_loss(batch).equal(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_a_mean_over_targets(batch, smoothing):
    # (1 − ε)(−log p_y) + ε · mean over classes of −log p_c
    image, label = batch
    method = create("label_smoothing", smoothing=smoothing)
    log_p = method(image).log_softmax(1)
    expected = (1 - smoothing) * -log_p[torch.arange(12), label] - smoothing * log_p.mean(1)
    assert method.training_loss(batch).item() == pytest.approx(expected.mean().item(), abs=1e-6)


def test_label_smoothing_of_a_mixed_batch_smooths_both_labels(batch):
    image, label = batch
    method = create("label_smoothing", smoothing=0.2)
    draw = mixing.mixup(image, torch.Generator().manual_seed(0))
    logits = method(draw.mix(image))
    one_hot = F.one_hot(label, 5).float()
    target = 0.8 * (draw.lam * one_hot + (1 - draw.lam) * one_hot[draw.partner]) + 0.2 / 5
    mixed = Batch(draw.mix(image), label, Partner(label[draw.partner], draw.lam))
    assert method.objective(logits, mixed).item() == pytest.approx(
        F.cross_entropy(logits, target).item(), abs=1e-6
    )


@pytest.mark.parametrize("slug", MIXING)
def test_mixing_methods_compute_soft_cross_entropy_of_the_mixed_batch(batch, slug):
    image, label = batch
    for seed in range(4):
        method = create(slug, seed=seed)
        draw = create(slug, seed=seed).mix(image, label)  # the same seed: the same draw
        network = method.backbone.network
        x = draw.mix(image) if draw.layer == 0 else image
        x = draw.mix(network.layer1(x)) if draw.layer == 1 else network.layer1(x)
        x = draw.mix(network.layer2(x)) if draw.layer == 2 else network.layer2(x)
        one_hot = F.one_hot(label, 5).float()
        target = draw.lam * one_hot + (1 - draw.lam) * one_hot[draw.partner]
        expected = F.cross_entropy(network.fc(x.mean((2, 3))), target)
        assert method.training_loss(batch).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("slug", MIXING)
def test_each_batch_is_mixed_anew_and_the_seed_fixes_it(batch, slug):
    first, again, other = create(slug), create(slug), create(slug, seed=1)
    losses = [[method.training_loss(batch).item() for _ in range(3)] for method in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]
    assert len(set(losses[0])) > 1


@pytest.mark.parametrize(
    ("slug", "hyperparameters"),
    [
        ("label_smoothing", {"smoothing": 1.5}),
        ("mixup", {"alpha": 0}),
        ("cutmix", {"alpha": -1.0}),
        ("manifold_mixup", {"layers": (0, 3)}),
        ("resizemix", {"scope": (0.0, 0.8)}),
        ("fmix", {"decay": -3}),
        ("saliencymix", {"saliency": "gradient"}),
    ],
)
def test_mistakes_stop_at_construction(slug, hyperparameters):
    with pytest.raises(UserError):
        create(slug, **hyperparameters)


@pytest.mark.parametrize("slug", ["none", "label_smoothing", "decoupled_mixup", *MIXING])
def test_listed_with_a_claim_and_a_source(slug):
    entry = registry.find(slug)
    assert len(entry.claim) > 40
    assert (entry.paper is None) == (slug == "none")
    if entry.paper:
        assert entry.paper.arxiv
        assert entry.paper.authors.count(",") >= 3
