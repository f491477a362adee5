"""AdaMixUp's maths against numbers worked out by hand, who gets a gradient from what, and clusters on a line."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.backbones.backbone import Backbone
from regbench.backbones.mnist_cnn import mnist_cnn
from regbench.backbones.small import mlp, small_cnn, small_vit
from regbench.errors import UserError
from regbench.functional import mixing
from regbench.regularizers.classification.adamixup import (
    AdaMixUp,
    PolicyNetwork,
    interval,
    mix_pairs,
    pair_cross_entropy,
    random_average,
    share,
)
from support import QUICK, history

LN2 = math.log(2)


def double(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("logits", "low", "high"),
    [
        ((0, 0, 0), 1 / 3, 2 / 3),
        ((0, LN2, 0), 0.25, 0.75),
        ((1, 2, 0), 0.2447285, 0.2447285 + 0.6652410),
        ((-20, 20, -20), 0.0, 1.0),  # the whole interval: mixup with Beta(1, 1)
        ((0, -20, 0), 0.5, 0.5),  # a constant
    ],
)
def test_interval_by_hand(logits, low, high):
    a, d = interval(double(logits))
    assert share(a, d, double(0.0)).item() == pytest.approx(low, abs=1e-7)
    assert share(a, d, double(1.0)).item() == pytest.approx(high, abs=1e-7)


def test_the_interval_lies_inside_0_and_1():
    logits = 5 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, d = interval(logits)
    assert (a > 0).all()
    assert (a + d < 1).all()


@pytest.mark.parametrize(
    ("eps", "gradient"),
    [(0.0, (2 / 9, -1 / 9, -1 / 9)), (0.5, (1 / 6, 0, -1 / 6)), (1.0, (1 / 9, 1 / 9, -2 / 9))],
)
def test_gradient_of_the_share(eps, gradient):
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    share(*interval(logits), double(eps)).sum().backward()
    assert logits.grad[0].tolist() == pytest.approx(gradient, abs=1e-12)


@pytest.mark.parametrize(("detach", "gradient"), [(True, 0.3880786), (False, -0.2119214)])
def test_loss_and_gradient_by_hand(detach, gradient):
    """Through the pixels only, the gradient has the other sign than through pixels and label."""
    gamma = torch.tensor([0.6], dtype=torch.float64, requires_grad=True)
    mixed = mix_pairs(double((2.0, 0.0)), double((-2.0, 1.0)), gamma)
    assert mixed[0].tolist() == pytest.approx([0.4, 0.4])
    logits = mixed @ double((1.0, 0.0), (-1.0, 0.5)).T
    weight = gamma.detach() if detach else gamma
    loss = pair_cross_entropy(logits, torch.tensor([0]), torch.tensor([1]), weight)
    soft = F.cross_entropy(logits, double((0.6, 0.4)))  # torch's, with the soft label
    assert loss.item() == pytest.approx(0.6774880, abs=1e-7)
    assert soft.item() == pytest.approx(loss.item(), abs=1e-12)
    loss.sum().backward()
    assert gamma.grad.item() == pytest.approx(gradient, abs=1e-7)


def test_each_pair_has_its_own_share():
    image, partner = torch.ones(3, 2, 4, 4), torch.zeros(3, 2, 4, 4)
    mixed = mix_pairs(image, partner, torch.tensor([0.2, 0.5, 1.0]))
    assert mixed.mean((1, 2, 3)).tolist() == pytest.approx([0.2, 0.5, 1.0])


def test_random_average_is_half_the_sum():
    x1, x2, m1, m2 = double((1.0, 2.0), (3.0, 4.0), (1.0, -1.0), (2.0, 0.5))
    assert random_average(x1, x2, m1, m2).tolist() == [3.5, 0.0]


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 1.0, 4.0])
def test_beta_has_its_moments(alpha):
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)); small alphas neither under- nor overflow."""
    draws = mixing.betas(alpha, 20_000, torch.Generator().manual_seed(0))
    assert draws.mean().item() == pytest.approx(0.5, abs=0.015)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.006)


# -- the policy network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("make", [small_cnn, mnist_cnn, small_vit])
def test_the_policy_has_the_architecture_and_weights_of_its_own(make, inputs):
    backbone = make(1, (16, 16), 5)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    policy = PolicyNetwork(backbone, inputs, hidden=7)
    assert policy(*torch.randn(inputs, 4, 1, 16, 16)).shape == (4, 3)
    assert [tuple(layer.weight.shape) for layer in policy.head] == [
        (7, inputs * backbone.num_features),
        (3, 7),
    ]
    assert all(value.equal(before[name]) for name, value in backbone.state_dict().items())
    own = dict(policy.trunk.named_parameters())
    weights = [name for name, value in backbone.named_parameters() if value.ndim > 1 and name in own]
    assert len(weights) > 2
    different = [name for name in weights if not own[name].equal(before[name])]
    assert set(weights) - set(different) <= {"network.position"}  # no layer of its own: kept, as said
    assert not any(name.startswith(f"network.{'fc'}") for name in own)


def test_the_policys_statistics_start_anew():
    backbone = small_cnn(1, (8, 8), 3, width=4)
    backbone(torch.randn(8, 1, 8, 8) + 5)
    norms = [m for m in PolicyNetwork(backbone, 1, 4).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert all(norm.running_mean.eq(0).all() and norm.num_batches_tracked == 0 for norm in norms)


# -- the method ------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """A linear classifier that notes the batches it sees, with a zero head so that the first loss is known."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.body = nn.Linear(16, 12)
        self.fc = nn.Linear(12, classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.seen: list[torch.Tensor] = []

    def forward(self, image):
        self.seen.append(image.detach())
        return self.fc(self.body(image.flatten(1)).tanh())


def batch(size: int = 128, classes: int = 10):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 4, 4, generator=generator), torch.randint(
        classes, (size,), generator=generator
    )


def method(**options) -> AdaMixUp:
    torch.manual_seed(0)
    return AdaMixUp(Recorder(), 10, **options)


def test_batches_and_first_loss():
    """64 mixed + 64 real images are classified, 64 + 128 told apart; ln 10 + ln 2 with heads near zero."""
    image, label = batch()
    model = method()
    loss = model.training_loss((image, label))
    classified, told_apart = model.backbone.network.seen
    assert (len(classified), len(told_apart)) == (128, 192)
    assert classified[64:].equal(image[:64])
    assert told_apart.equal(torch.cat([classified, image[64:]]))
    assert loss.item() == pytest.approx(math.log(10) + LN2, abs=1e-3)
    # Each mixed image is γ x1 + (1 − γ) x2 for one image x2 of the whole batch and one γ of the untrained interval.
    order = torch.randperm(128, generator=method().generator("mix"))[:64]
    x1, x2 = image[:64].flatten(1), image[order].flatten(1)
    moved = order != torch.arange(64)
    gamma = (((classified[:64].flatten(1) - x2) * (x1 - x2)).sum(1) / (x1 - x2).square().sum(1))[moved]
    assert ((gamma > 0.33) & (gamma < 0.67)).all()
    assert gamma.std() > 0.05
    assert torch.allclose(
        classified[:64].flatten(1)[moved],
        gamma[:, None] * x1[moved] + (1 - gamma)[:, None] * x2[moved],
        atol=1e-5,
    )


def test_weights_of_the_two_losses():
    both, first, second = (
        method(w_cls=c, w_intr=i).training_loss(batch()).item()
        for c, i in ((2.0, 3.0), (1.0, 0.0), (1.0, 1.0))
    )
    assert both == pytest.approx(2 * first + 3 * (second - first), abs=1e-5)


def gradients(model: AdaMixUp, image, label) -> dict[str, bool]:
    model.zero_grad(set_to_none=True)
    model.training_loss((image, label)).backward()
    return {
        name: parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        for name, parameter in model.named_parameters()
    }


def test_who_gets_a_gradient_from_what():
    def with_heads(**options):
        model = method(**options)
        for head in (model.backbone.network.fc, *model.policy_network.head):
            nn.init.normal_(head.weight)  # zero and tiny heads would hide what reaches the layers below
        return model

    image, label = batch()
    classes = gradients(with_heads(w_intr=0), image, label)
    assert all(classes.values())  # the classifier, and the policy from the classification loss alone
    told = gradients(with_heads(w_cls=1e-30), image, label)  # in effect the discriminator's loss alone
    assert all(used for name, used in told.items() if name.startswith(("policy_network", "discriminator")))
    assert told["backbone.network.body.weight"]
    model = with_heads()
    seen = model.discriminator(model.backbone.outputs(image).features)
    seen.sum().backward()
    assert (
        model.backbone.network.fc.weight.grad is None
    )  # the discriminator does not look through the class head
    assert all(gradients(with_heads(), image, label).values())  # nothing is left without one


def test_the_label_gradient_is_a_switch():
    image, label = batch()
    grads = []
    for detach in (True, False):
        model = method(w_intr=0, detach_label_weight=detach)
        nn.init.normal_(model.backbone.network.fc.weight)
        model.training_loss((image, label)).backward()
        grads.append(model.policy_network.head[1].bias.grad)
    assert not torch.allclose(*grads)


def test_an_epoch_logs_the_interval_and_the_discriminator(train):
    code, folder = train("regularizer=adamixup", *QUICK, "trainer.limit_train_batches=2")
    assert code == 0
    row = {name: float(value) for name, value in history(folder)[0].items() if value}
    assert row["train/alpha"] == pytest.approx(1 / 3, abs=0.01)  # two steps from the untrained interval
    assert row["train/delta"] == pytest.approx(1 / 3, abs=0.01)
    assert row["train/gamma"] == pytest.approx(1 / 2, abs=0.04)
    assert row["train/loss_intrusion"] == pytest.approx(LN2, abs=0.1)
    assert 0.3 < row["train/discriminator_accuracy"] < 0.7


@pytest.mark.parametrize("size", [2, 5, 9])
def test_an_odd_image_stays_unmixed(size):
    model = method()
    assert model.training_loss(batch(size)).isfinite()
    classified, told_apart = model.backbone.network.seen
    assert (len(classified), len(told_apart)) == (2 * (size // 2), size + size // 2)


def test_the_policy_is_no_part_of_the_prediction():
    model = method().eval()
    image, _ = batch(4)
    before = model(image)
    for parameter in [*model.policy_network.parameters(), *model.discriminator.parameters()]:
        parameter.data.fill_(7.0)
    assert model(image).equal(before)


def test_batch_norm_takes_the_statistics_of_both_passes():
    torch.manual_seed(0)
    model = AdaMixUp(small_cnn(1, (8, 8), 3, width=4), 3)
    model.training_loss((torch.randn(8, 1, 8, 8), torch.randint(3, (8,))))
    counts = [m.num_batches_tracked.item() for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [2, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "learnt"}, "Did you mean learned"),
        ({"policy_input": "mean"}, "policy_input"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"interval": (0.7, 0.3)}, "interval"),
        ({"interval": (0.5,)}, "interval"),
        ({"interval": (0.5, 1.1)}, "interval"),
        ({"hidden": 0}, "hidden=0"),
        ({"w_cls": 0}, "w_cls=0"),
        ({"w_intr": -1}, "w_intr=-1"),
    ],
)
def test_mistakes_stop_at_construction(options, message):
    with pytest.raises(UserError, match=message):
        method(**options)


def test_one_image_can_not_be_mixed():
    with pytest.raises(UserError, match=r"dataset\.batch_size"):
        method().training_loss(batch(1))


def test_nothing_stacks_on_it():
    with pytest.raises(UserError, match="loop of its own"):
        method(stack=["mixup"])


def test_the_mnist_network():
    backbone = mnist_cnn(1, (28, 28), 10)
    assert isinstance(backbone, Backbone)
    convolutions = (9 * 1 + 1) * 32 + 3 * (9 * 32 + 1) * 32
    assert sum(p.numel() for p in backbone.parameters()) == convolutions + (32 * 49 + 1) * 512 + 513 * 10
    with pytest.raises(UserError, match="4x4"):
        mnist_cnn(1, (3, 3), 10)


# -- three clusters on a line at −2, 0 and 2: a mix of the outer two may fall on the one between --------------


def clusters(size: int, generator: torch.Generator):
    label = torch.randint(3, (size,), generator=generator)
    return (2.0 * label - 2 + 0.2 * torch.randn(size, generator=generator)).view(-1, 1, 1, 1), label


def intrusion(seed: int, steps: int, **options) -> float:
    """Share of mixed points that lie within 0.4 of the middle and come from the outer clusters, after training."""
    torch.manual_seed(seed)
    model = AdaMixUp(mlp(1, (1, 1), 3, hidden=(64, 64)), 3, seed=seed, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_loss(clusters(128, generator)).backward()
        optimizer.step()
    (x1, y1), (x2, y2) = clusters(20_000, generator), clusters(20_000, generator)
    with torch.no_grad():
        mixed = mix_pairs(x1, x2, model.draw(x1, x2, len(x1))).flatten()
    return ((mixed.abs() < 0.4) & ((y1 - y2).abs() == 2)).float().mean().item()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"policy": "beta"}, 0.0446),  # uniform
        ({"policy": "fixed", "interval": (0.0, 1.0)}, 0.0446),
        ({"policy": "fixed", "interval": (1 / 3, 2 / 3)}, 0.134),  # as the untrained policy
        ({"policy": "learned", "policy_input": "pair"}, 0.134),
        ({"policy": "fixed", "interval": (0.75, 1.0)}, 0.0),
    ],
)
def test_intrusion_without_learning(options, expected):
    assert intrusion(0, 0, **options) == pytest.approx(expected, abs=0.005)


def test_learning_takes_the_mixed_points_off_the_middle_cluster():
    """Each policy leaves the 13.4 % that it starts from; some reach 0, others stop at the uniform's 4.5 %."""
    rates = [intrusion(seed, 400, policy_input="pair") for seed in range(4)]
    assert max(rates) < 0.06
    assert min(rates) < 0.01
