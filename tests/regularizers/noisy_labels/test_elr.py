"""Early-learning regularization against numbers worked out by hand, and its claim on a linear model."""

import math

import pytest
import torch
import torch.nn.functional as F

from regbench.backbones.small import mlp
from regbench.errors import UserError
from regbench.functional.early_learning import elr_penalty, kl_penalty, sigmoid_ramp, update_targets
from regbench.regularizers.classification.base import Batch, Partner
from regbench.regularizers.noisy_labels.elr import ELR

P, T = (
    torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64),
    torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64),
)
LABEL = torch.tensor([1])


def method(size=4, classes=3, **options):
    torch.manual_seed(0)
    made = ELR(mlp(1, (2, 2), classes, hidden=(5,)), classes, **options)
    made.on_data(size)
    return made


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_penalty_and_gradient_by_hand():
    """⟨p, t⟩ = 0.49; g_c = p_c (⟨p, t⟩ − t_c) / (1 − ⟨p, t⟩) (Lemma 2)."""
    z = P.log().requires_grad_()
    p = z.softmax(1)
    value = elr_penalty(p, T)
    assert value.item() == pytest.approx(-0.673345, abs=1e-6)
    loss = F.cross_entropy(z, LABEL) + 3 * value
    assert loss.item() == pytest.approx(1.609438 - 3 * 0.673345, abs=1e-5)
    (g,) = torch.autograd.grad(value, z, retain_graph=True)
    assert g[0].tolist() == pytest.approx([-0.150980, 0.074510, 0.076471], abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient[0].tolist() == pytest.approx([0.247059, -0.576471, 0.329412], abs=1e-6)


def test_gradient_of_the_alternative_by_hand():
    """p − y + λ (p − t)."""
    z = P.log().requires_grad_()
    loss = F.cross_entropy(z, LABEL) + 3 * kl_penalty(z.log_softmax(1), T)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient[0].tolist() == pytest.approx([1.0, -1.1, 0.1], abs=1e-6)


def test_targets_of_the_first_three_visits():
    """1 − β^k is their sum; the penalty switches itself on."""
    t = torch.zeros(2, 3, dtype=torch.float64)
    found = []
    for _ in range(3):
        update_targets(t, torch.tensor([1]), P, beta=0.7)
        found.append((t[1].sum().item(), elr_penalty(P, t[1:]).item()))
    assert t[0].tolist() == [0, 0, 0]
    assert [sum_ for sum_, _ in found] == pytest.approx([0.3, 0.51, 0.657])
    assert [value for _, value in found] == pytest.approx([-0.176737, -0.322136, -0.438164], abs=1e-6)


@pytest.mark.parametrize(("classes", "bound"), [(10, -6.908655), (100, -4.615022)])
def test_the_clamp_bounds_the_penalty(classes, bound):
    """A network that is sure of a class, and a target that is its prediction."""
    p = torch.zeros(1, classes, dtype=torch.float64)
    p[0, 0] = 1
    p = p.clamp(1e-4, 1 - 1e-4)
    assert elr_penalty(p, p / p.sum()).item() == pytest.approx(bound, abs=1e-6)


def test_clean_samples_keep_a_gradient_where_cross_entropy_has_none():
    for e, expected in ((0.1, -1.76538), (0.01, -0.47187), (0.001, -0.05556)):
        p = torch.full((1, 10), e / 9, dtype=torch.float64)
        p[0, 0] = 1 - e
        t = torch.full((1, 10), 0.05 / 9, dtype=torch.float64)
        t[0, 0] = 0.95
        z = p.log().requires_grad_()
        (g,) = torch.autograd.grad(3 * elr_penalty(z.softmax(1), t), z)
        assert g[0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_ramp_by_hand():
    assert [sigmoid_ramp(step, 100) for step in (0, 50, 100, 200)] == pytest.approx(
        [math.exp(-5), math.exp(-1.25), 1, 1]
    )
    assert sigmoid_ramp(0, 0) == 1


# -- the method ------------------------------------------------------------------------------------------------------


def test_objective_is_the_equations_with_the_update_first():
    made = method(beta=0.7, weight=3.0)
    logits = P.log().float().requires_grad_()
    index = torch.tensor([2])
    loss = made.objective(logits, Batch(torch.zeros(1, 1, 2, 2), LABEL, None, index))
    assert loss.item() == pytest.approx(1.609438 + 3 * -0.176737, abs=1e-5)
    assert made.targets[2].tolist() == pytest.approx([0.21, 0.06, 0.03])
    assert made.targets[[0, 1, 3]].abs().sum() == 0
    assert not made.targets.requires_grad


def test_weight_zero_is_cross_entropy():
    logits, label = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    loss = method(weight=0.0).objective(logits, Batch(torch.zeros(4, 1, 2, 2), label, None, torch.arange(4)))
    assert loss.item() == F.cross_entropy(logits, label).item()


def test_the_order_of_the_batch_does_not_matter():
    torch.manual_seed(1)
    logits, label, image = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.zeros(4, 1, 2, 2)
    order = torch.tensor([2, 0, 3, 1])
    one, other = method(), method()
    first = one.objective(logits, Batch(image, label, None, torch.arange(4)))
    second = other.objective(logits[order], Batch(image, label[order], None, order))
    assert first.item() == pytest.approx(second.item(), abs=1e-6)
    assert one.targets.equal(other.targets)


def test_mixed_batch_by_hand():
    """At β = 0 the targets are the predictions on the images before mixing, and so is their mixture's."""
    made = method(beta=0.0, weight=2.0, clamp=0.0)
    original = torch.randn(4, 1, 2, 2)
    order, lam = torch.tensor([1, 0, 3, 2]), 0.7
    label = torch.tensor([0, 1, 2, 0])
    mixed = lam * original + (1 - lam) * original[order]
    with torch.no_grad():
        logits, q = made.backbone(mixed), made.backbone(original).softmax(1)
    log_p = logits.log_softmax(1)
    ce = -(lam * log_p[range(4), label] + (1 - lam) * log_p[range(4), label[order]]).mean()
    t = lam * q + (1 - lam) * q[order]
    expected = ce + 2 * (1 - (log_p.exp() * t).sum(1)).log().mean()
    partner = Partner(label[order], lam, order)
    loss = made.objective(logits, Batch(mixed, label, partner, torch.arange(4), original))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("host", ["elr", "mixup"])
def test_it_stacks_with_mixup(train, host):
    other = {"elr": "mixup", "mixup": "elr"}[host]
    code, _ = train(f"regularizer={host}", f"stack=[{other}]", "dataset=digits", "backbone=small_cnn", "logger=none",
                    "dataset.noise.kind=symmetric", "dataset.noise.rate=0.4", "trainer.max_epochs=1",
                    "trainer.limit_train_batches=2", "progress=none", "callbacks=[default,memorization]")  # fmt: skip
    assert code == 0


def test_the_unmixed_pass_leaves_the_statistics_alone():
    from regbench.backbones.small import small_cnn

    made = ELR(small_cnn(1, (8, 8), 3, width=8), 3)
    made.on_data(4)
    before = {name: value.clone() for name, value in made.backbone.named_buffers()}
    image, label = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    partner = Partner(label.flip(0), 0.6, torch.arange(4).flip(0))
    made.objective(torch.zeros(4, 3), Batch(image, label, partner, torch.arange(4), image))
    assert made.backbone.training
    assert all(value.equal(before[name]) for name, value in made.backbone.named_buffers())


def test_targets_are_in_the_checkpoint():
    made = method()
    update_targets(made.targets, torch.tensor([2]), P.float(), 0.7)
    again = method()
    again.load_state_dict(made.state_dict())
    assert again.targets.equal(made.targets)
    assert made.targets.abs().sum() > 0


def test_mistakes():
    for options, message in (
        ({"beta": 1.0}, "beta=1.0"),
        ({"weight": -1}, "weight=-1"),
        ({"form": "klx"}, "Did you mean kl"),
        ({"clamp": 0.5}, "clamp=0.5"),
    ):
        with pytest.raises(UserError, match=message):
            method(**options)
    image, label = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match="needs index"):
        method().training_loss((image, label))
    with pytest.raises(UserError, match="on_data"):
        ELR(mlp(1, (2, 2), 3), 3).training_loss((image, label, torch.arange(2)))


# -- the claim, on the paper's linear model (section 3) --------------------------------------------------------------


def linear_model(penalty: str, weight: float, steps: int) -> tuple[float, float, float]:
    """(memorised, accuracy on new data, largest share of wrong samples predicted true) of softmax regression on
    x = s e_1 + 0.25 N(0, I) in 100 dimensions, 150 samples of which 40 % have the other label; gradient descent.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        s = torch.randint(0, 2, (count,), generator=generator)
        x = 0.25 * torch.randn(count, 100, generator=generator)
        x[:, 0] += 2.0 * s - 1
        return x, s

    x, true = draw(150)
    test, test_true = draw(2000)
    wrong = torch.rand(150, generator=generator) < 0.4
    given = torch.where(wrong, 1 - true, true)
    theta = torch.randn(100, 2, generator=generator)
    theta *= 2**0.5 / theta.norm()
    theta.requires_grad_()
    t, best, index = torch.zeros(150, 2), 0.0, torch.arange(150)
    for _ in range(steps):
        log_p = (x @ theta).log_softmax(1)
        loss = F.nll_loss(log_p, given)
        p = log_p.exp().clamp(1e-4, 1 - 1e-4)
        update_targets(t, index, p, 0.7)
        if penalty == "elr":
            loss = loss + weight * elr_penalty(p, t)
        if penalty == "kl":
            loss = loss + weight * kl_penalty(log_p, t)
        (gradient,) = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            theta -= 0.5 * gradient
            best = max(best, (log_p.argmax(1) == true)[wrong].float().mean().item())
    guess = (x @ theta).argmax(1)
    memorised = (guess == given)[wrong].float().mean().item()
    return memorised, ((test @ theta).argmax(1) == test_true).float().mean().item(), best


def test_linear_model_memorises_and_elr_does_not():
    plain = linear_model("none", 0, 6000)
    assert plain[2] > 0.5  # early: most wrong samples are predicted as what they are
    assert plain[0] > 0.9  # late: their labels are known by heart
    assert linear_model("kl", 3, 6000)[0] > 0.9
    elr = linear_model("elr", 3, 6000)
    assert elr[0] < 0.15
    assert elr[1] > plain[1] + 0.1
