"""Decoupled mixup's losses against numbers worked out by hand (z = [2, 1, 0, −1], λ = 0.7), in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from regbench.errors import UserError
from regbench.functional.decoupled import (
    decoupled_log_softmax,
    decoupled_mixup_cross_entropy,
    decoupled_term,
    rescale,
)
from regbench.functional.losses import mixup_cross_entropy
from regbench.regularizers.classification.decoupled_mixup import (
    DecoupledMixup,
    decoupled_mixup_binary_cross_entropy,
)

Z = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
A, B = torch.tensor([0]), torch.tensor([1])


def problem(size: int = 32, classes: int = 7, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, *torch.randint(classes, (2, size), generator=generator)


def test_decoupled_terms_by_hand():
    # −log h_{a\b} = log(e² + e⁰ + e⁻¹) − 2; −log h_{b\a} = log(e¹ + e⁰ + e⁻¹) − 1
    assert decoupled_term(Z, A, B).item() == pytest.approx(
        math.log(math.e**2 + 1 + 1 / math.e) - 2, abs=1e-12
    )
    assert decoupled_term(Z, A, B).item() == pytest.approx(0.1698, abs=5e-5)
    assert decoupled_term(Z, B, A).item() == pytest.approx(0.4076, abs=5e-5)
    flat = torch.zeros(3, 4, dtype=torch.float64)
    assert decoupled_term(flat, torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])).item() == pytest.approx(
        math.log(3)
    )


@pytest.mark.parametrize(
    ("mode", "t", "expected"),
    [
        ("both", 1, 0.7643),
        ("both", 0.5, 0.7767),
        ("both", 0, 0.7979),
        ("less", 0.5, 0.7625),
        ("more", 0.5, 0.7544),
    ],
)
def test_loss_by_hand(mode, t, expected):
    loss = decoupled_mixup_cross_entropy(Z, A, B, 0.7, eta=0.1, mode=mode, t=t)
    assert loss.item() == pytest.approx(expected, abs=5e-5)


def test_gradient_of_the_decoupled_terms():
    z = Z.clone().requires_grad_()
    (decoupled_term(z, A, B) + decoupled_term(z, B, A)).backward()
    assert torch.allclose(
        z.grad, torch.tensor([[-0.1562, -0.3348, 0.3589, 0.1320]], dtype=torch.float64), atol=5e-5
    )
    assert z.grad.sum().item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: decoupled_mixup_cross_entropy(x, A, B, 0.7), z)
    shifted = decoupled_mixup_cross_entropy(Z + 5, A, B, 0.7)
    assert shifted.item() == pytest.approx(decoupled_mixup_cross_entropy(Z, A, B, 0.7).item(), abs=1e-12)


def test_only_the_competitor_leaves_the_normaliser():
    logits, _, b = problem()
    h = decoupled_log_softmax(logits, b).exp()
    p = logits.softmax(1)
    expected = p / (1 - p.gather(1, b[:, None]))  # fine here: no p is near 1
    expected.scatter_(1, b[:, None], 0.0)
    assert torch.allclose(h, expected, atol=1e-10)
    assert torch.allclose(h.sum(1), torch.ones(len(h), dtype=torch.float64))


def test_limits():
    logits, a, b = problem()
    assert decoupled_mixup_cross_entropy(logits, a, b, 0.3, eta=0.0).equal(
        mixup_cross_entropy(logits, a, b, 0.3)
    )
    same = decoupled_mixup_cross_entropy(logits, a, a, 0.3)
    assert same.item() == pytest.approx(F.cross_entropy(logits, a).item(), abs=1e-12)
    pure = decoupled_mixup_cross_entropy(logits, a, b, 1.0)  # r(1) = 1, r(0) = 0
    expected = F.cross_entropy(logits, a) + 0.1 * decoupled_term(logits, a, b)
    assert pure.item() == pytest.approx(expected.item(), abs=1e-12)
    half = decoupled_mixup_cross_entropy(logits, a, b, 0.5)  # keeps its terms, unlike the released code
    expected = mixup_cross_entropy(logits, a, b, 0.5) + 0.05 * (
        decoupled_term(logits, a, b) + decoupled_term(logits, b, a)
    )
    assert half.item() == pytest.approx(expected.item(), abs=1e-12)
    two_classes = decoupled_term(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 1, 0]))
    assert two_classes.item() == pytest.approx(0, abs=1e-6)  # nothing is left to compete with


@pytest.mark.parametrize("mode", ["both", "less", "more"])
def test_names_and_order_of_the_classes_do_not_matter(mode):
    """The released code gives 0.7643 for (a, b) = (0, 1) and 0.7738 for the same problem renamed."""
    renamed = decoupled_mixup_cross_entropy(Z[:, [1, 0, 2, 3]], B, A, 0.7)
    assert renamed.item() == pytest.approx(0.7643, abs=5e-5)
    logits, a, b = problem()
    loss = decoupled_mixup_cross_entropy(logits, a, b, 0.3, mode=mode, t=0.5)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    relabelled = decoupled_mixup_cross_entropy(
        logits[:, order.argsort()], order[a], order[b], 0.3, mode=mode, t=0.5
    )
    exchanged = decoupled_mixup_cross_entropy(logits, b, a, 0.7, mode=mode, t=0.5)
    assert relabelled.item() == pytest.approx(loss.item(), abs=1e-12)
    assert exchanged.item() == pytest.approx(loss.item(), abs=1e-12)


def test_rows_with_one_class_count_once_in_one_mean():
    """The released code averages both kinds of rows apart and adds, 0.7643 + 0.4402; one mean: 0.6022."""
    loss = decoupled_mixup_cross_entropy(Z.repeat(2, 1), torch.tensor([0, 0]), torch.tensor([1, 0]), 0.7)
    assert loss.item() == pytest.approx(0.6022, abs=5e-5)
    rows = [
        decoupled_mixup_cross_entropy(z[None], a[None], b[None], 0.3)
        for z, a, b in zip(*problem(), strict=True)
    ]
    assert decoupled_mixup_cross_entropy(*problem(), 0.3).item() == pytest.approx(
        torch.stack(rows).mean().item(), abs=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stable_at_large_logits(dtype):
    z = torch.tensor(
        [[1e4, 0.0, -1e4, 5.0], [0.0, 1e4, 3.0, 1.0], [1e4, 1e4, 1.0, 2.0]], dtype=dtype, requires_grad=True
    )
    a, b = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 1])
    terms = [decoupled_term(z[i : i + 1], a[i : i + 1], b[i : i + 1]).item() for i in range(3)]
    # row 2: the competitor dominates; without it the others are 0, 3, 1: log(1 + e³ + e) − 0; row 3: a = b
    assert terms == pytest.approx([0.0, math.log(1 + math.e**3 + math.e), 0.0], abs=1e-5)
    decoupled_mixup_cross_entropy(z, a, b, 0.4).backward()
    assert z.grad.isfinite().all()


def test_rescale():
    assert [rescale(0.3, t, xi) for t, xi in ((1, 1), (0, 1), (2, 1))] == pytest.approx([0.3, 1.0, 0.09])
    assert [rescale(x, 1, 0.8) for x in (0.0, 0.4, 0.8, 0.9, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0])
    assert rescale(0.0, t=0) == 0.0


@pytest.mark.parametrize(
    ("xi", "t", "target_a", "target_b", "expected"),
    [
        (1, 1, 0.7, 0.3, 2.7466),
        (0.8, 1, 0.875, 0.375, 2.3216),
        (0.8, 0.5, 0.9354, 0.6124, 1.9634),
        (1, 0.5, 0.8367, 0.5477, 2.2256),
    ],
)
def test_two_hot_by_hand(xi, t, target_a, target_b, expected):
    assert (rescale(0.7, t, xi), rescale(0.3, t, xi)) == pytest.approx((target_a, target_b), abs=5e-5)
    assert decoupled_mixup_binary_cross_entropy(Z, A, B, 0.7, t=t, xi=xi).item() == pytest.approx(
        expected, abs=5e-5
    )
    flat = decoupled_mixup_binary_cross_entropy(
        torch.zeros(3, 4), torch.arange(3), torch.tensor([3, 3, 3]), 0.7, t=t, xi=xi
    )
    assert flat.item() == pytest.approx(4 * math.log(2), abs=1e-5)


def test_two_hot_with_one_class_is_plain_binary_cross_entropy():
    logits, a, _ = problem()
    loss = decoupled_mixup_binary_cross_entropy(logits, a, a, 0.7, t=2)
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(a, 7).double(), reduction="sum") / len(a)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


# -- the method ------------------------------------------------------------------------------------------


def network(**hyperparameters) -> DecoupledMixup:
    generator = torch.Generator().manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    for parameter in backbone.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return DecoupledMixup(backbone, 5, **hyperparameters)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 1, 8, 8, generator=generator), torch.randint(5, (12,), generator=generator)


@pytest.mark.parametrize("policy", ["mixup", "cutmix", "resizemix", "fmix", "saliencymix"])
@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_training_loss_is_the_formula_on_the_mixed_batch(policy, loss):
    image, label = batch()
    method = network(policy=policy, loss=loss, eta=0.3, mode="both", t=0.5, xi=0.8)
    draw = network(policy=policy).mix(image, label)  # the same seed: the same draw
    logits = method.backbone(draw.mix(image))
    partner = label[draw.partner]
    if loss == "ce":
        expected = decoupled_mixup_cross_entropy(
            logits, label, partner, draw.lam, eta=0.3, mode="both", t=0.5, xi=0.8
        )
    else:
        expected = decoupled_mixup_binary_cross_entropy(logits, label, partner, draw.lam, t=0.5, xi=0.8)
    assert method.training_loss((image, label)).item() == pytest.approx(expected.item(), abs=1e-6)


def test_policy_options_reach_the_policy():
    image, label = batch()
    draws = [
        network(policy="resizemix", policy_options={"scope": (0.9, 0.9)}, seed=s).mix(image, label).lam
        for s in range(20)
    ]
    # τ = 0.9 on 8 pixels: sides int(7.2) // 2 · 2 = 6; the smallest share is 1 − 36 / 64
    assert min(draws) == 1 - 36 / 64


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"policy": "cutmixx"}, "Did you mean cutmix"),
        ({"policy": "fmix", "policy_options": {"decai": 2}}, "Did you mean decay"),
        ({"policy": "manifold_mixup"}, "stages"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"mode": "most"}, "mode"),
        ({"loss": "mse"}, "loss"),
        ({"eta": -0.1}, "eta=-0.1"),
        ({"t": -1}, "t=-1"),
        ({"xi": 0}, "xi=0"),
        ({"xi": 1.5}, "xi=1.5"),
    ],
)
def test_mistakes_stop_at_construction(hyperparameters, message):
    with pytest.raises(UserError, match=message):
        network(**hyperparameters)
