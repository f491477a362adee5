"""The mask policy's maths against numbers worked out by hand, who gets a gradient from what, and the two phases."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.backbones.small import small_cnn
from regbench.errors import UserError
from regbench.regularizers.classification.noise_mask import (
    NoiseMask,
    PolicyNetwork,
    finetune_factor,
    log_densities,
    log_parameters,
    moved_base,
    score,
    smooth_mask,
    surrogate,
)
from support import QUICK, StopAfter, history, weights

EXACT = 1e-6


def double(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sampled(alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.distributions.Beta(alpha, beta).sample()


# -- densities, scores and the loss, by hand -------------------------------------------------------------------------

THREE = (double([2.0, 1.0, 0.5]), double([3.0, 1.0, 0.5]), double([0.25, 0.6, 0.9]))  # α, β, m of three cells


def test_densities_by_hand():
    assert log_densities(*THREE).exp()[0].tolist() == pytest.approx([1.6875, 1.0, 1.061033], abs=EXACT)
    assert log_densities(*THREE)[0, 0].item() == pytest.approx(0.523248, abs=EXACT)


def test_scores_and_loss_by_hand():
    log_p = log_densities(*THREE)
    lse, joint = score(log_p, "lse"), score(log_p, "joint")
    assert lse.item() == pytest.approx(1.321365, abs=EXACT)
    assert joint.item() == pytest.approx(0.582491, abs=EXACT)
    loss = surrogate(double(2.0).squeeze(), lse, lse.mean(), double(2.0).squeeze())
    assert loss.item() == pytest.approx(2.642729, abs=EXACT)


def test_score_of_a_cell_by_hand():
    """Down to the head's output, which α takes a tenth of: u = log α."""
    head = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    base = THREE[0].log() / 0.9
    alpha = log_parameters(base, head, 0.1).exp()
    assert torch.allclose(alpha, THREE[0])
    beta = THREE[1].clone().requires_grad_()
    log_p = log_densities(alpha, beta, THREE[2])
    of_alpha, of_beta = torch.autograd.grad(log_p[0, 0], (alpha, beta), retain_graph=True)
    assert (of_alpha[0, 0].item(), of_beta[0, 0].item()) == pytest.approx((-0.302961, 0.295651), abs=EXACT)
    of_alpha, of_head = torch.autograd.grad(score(log_p, "lse").sum(), (alpha, head))
    assert of_alpha[0, 0].item() == pytest.approx(-0.136386, abs=EXACT)
    assert of_head[0, 0].item() == pytest.approx(-0.0272772, abs=1e-7)


def test_surrogate_has_the_gradients_of_the_codes_product():
    generator = torch.Generator().manual_seed(0)
    ce = torch.tensor(1.7, requires_grad=True)
    scores = torch.randn(5, generator=generator).requires_grad_()
    product = torch.autograd.grad(scores.mean() * ce, (ce, scores))
    loss = surrogate(ce, scores, scores.mean().detach(), ce.detach())
    for own, expected in zip(torch.autograd.grad(loss, (ce, scores)), product, strict=True):
        assert torch.allclose(own, expected)


def test_running_vectors_by_hand():
    base, head = double([0.5]), double([1.0], [1.0])
    assert log_parameters(base, head, 0.1).tolist() == [[pytest.approx(0.55)]] * 2
    assert moved_base(base, head, 0.99).item() == pytest.approx(0.505)
    for _ in range(100):
        base = moved_base(base, head, 0.99)
    assert base.item() == pytest.approx(0.816984, abs=EXACT)
    assert not moved_base(base, head.requires_grad_(), 0.99).requires_grad


def test_log_parameters_are_cut():
    assert log_parameters(double([100.0, -100.0]), double([0.0, 0.0]), 0.1).tolist() == [[5.0, -5.0]]


def test_log_sum_survives_the_edges():
    """Near 0 with α < 1 the density overflows float32 in a plain sum of exponentials."""
    alpha = torch.full((1, 64), math.exp(-5.0), requires_grad=True)
    value = score(log_densities(alpha, alpha, torch.full((1, 64), 1e-6)), "lse")
    value.sum().backward()
    assert value.isfinite().all()
    assert alpha.grad.isfinite().all()


# -- what the objective is: see the page -----------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "expected", "tolerance"), [(4096, 8.5004, 0.005), (64, 4.3411, 0.01)])
def test_mean_log_sum_density(cells, expected, tolerance):
    """About log(K ∫p²); for Beta(2, 2), ∫p² = B(3, 3) / B(2, 2)² = 1.2, and log(4096 · 1.2) = 8.500."""
    ab = torch.full((2000 if cells == 64 else 200, cells), 2.0)
    assert score(log_densities(ab, ab, sampled(ab, ab)), "lse").mean().item() == pytest.approx(
        expected, abs=tolerance
    )


def test_uniform_cells_score_log_k():
    one = torch.ones(3, 64)
    assert score(log_densities(one, one, sampled(one, one)), "lse").tolist() == pytest.approx(
        [math.log(64)] * 3, abs=1e-5
    )


def test_bias_and_spread_of_the_two_estimators():
    """Constant cross entropy, Beta(a, a), a = 2, 64 cells: REINFORCE has mean 0 and a hundred times the spread."""
    a = torch.full((20_000, 1), 2.0, dtype=torch.float64, requires_grad=True)
    ab = a.expand(-1, 64)
    log_p = log_densities(ab, ab, sampled(ab.detach(), ab.detach()))
    (lse,) = torch.autograd.grad(score(log_p, "lse").sum(), a, retain_graph=True)
    (joint,) = torch.autograd.grad(score(log_p, "joint").sum(), a)
    assert lse.mean().item() == pytest.approx(0.0992, abs=0.001)
    assert lse.std().item() == pytest.approx(0.0252, abs=0.001)
    assert joint.mean().item() == pytest.approx(0.0, abs=0.1)
    assert joint.std().item() == pytest.approx(3.15, abs=0.05)


@pytest.mark.parametrize(("objective", "drifts"), [("lse", True), ("joint", False)])
def test_a_constant_cross_entropy_moves_lse_to_uniform_cells_and_joint_nowhere(objective, drifts):
    torch.manual_seed(1)
    u = torch.full((2, 1, 64), 1.0, requires_grad=True)
    optimizer = torch.optim.SGD([u], lr=2.0 if drifts else 0.002)
    for _ in range(300):
        alpha, beta = u.exp().expand(-1, 32, -1)
        cells = torch.distributions.Beta(alpha.detach(), beta.detach()).sample().clamp(1e-6, 1 - 1e-6)
        optimizer.zero_grad()
        score(log_densities(alpha, beta, cells), objective).mean().backward()
        optimizer.step()
    mean = u.mean().item()
    assert (mean < 0.5) if drifts else (mean == pytest.approx(1.0, abs=0.02))


# -- the mask --------------------------------------------------------------------------------------------------------


def test_the_blurs_kernel():
    impulse = torch.zeros(1, 27 * 27)
    impulse[0, 13 * 27 + 13] = 1.0
    row = smooth_mask(impulse, (27, 27), 13, 6.0)[0, 0].sum(0)[7:20]
    assert row.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (row[0].item(), row[6].item(), row[12].item()) == pytest.approx(
        (0.0558646, 0.0921051, 0.0558646), abs=1e-6
    )
    assert row.square().sum().item() == pytest.approx(0.0789742, abs=1e-6)


def test_a_constant_mask_stays_constant():
    assert torch.allclose(smooth_mask(torch.full((2, 64), 0.3), (28, 28), 13, 6.0), torch.tensor(0.3))


def test_cells_are_repeated_not_interpolated():
    """A grid of 8 over 28 pixels: pixel i has cell ⌊8 i / 28⌋, so cells are 4, 3, 4, 3, … pixels long."""
    mask = smooth_mask(torch.arange(64.0)[None], (28, 28), 1, 6.0)[0, 0]
    assert mask.shape == (28, 28)
    assert (mask[0] + 0.5).long().bincount().tolist() == [4, 3] * 4
    assert (mask[:, 0] / 8 + 0.5).long().bincount().tolist() == [4, 3] * 4


@pytest.mark.parametrize(("grid", "side", "std"), [(8, 28, 0.084), (64, 224, 0.079), (224, 224, 0.023)])
def test_spread_of_a_uniform_mask(grid, side, std):
    cells = torch.rand(64 if side == 28 else 4, grid**2, generator=torch.Generator().manual_seed(0))
    mask = smooth_mask(cells, (side, side), 13, 6.0)
    assert mask.mean().item() == pytest.approx(0.5, abs=0.01)
    assert mask.std((-2, -1)).mean().item() == pytest.approx(std, abs=0.006)
    assert ((mask > 0) & (mask < 1)).all()


# -- the policy network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("backbone", [None, "resnet10t"])
def test_policy_network(backbone, channels):
    policy = PolicyNetwork(16, backbone, 8)
    heads = policy(torch.randn(4, channels, 32, 32))
    assert [head.shape for head in heads] == [(4, 16), (4, 16)]
    sum(head.square().sum() for head in heads).backward()
    assert all(p.grad is not None for p in policy.parameters())  # DDP needs one of each
    assert policy.head_a[0].in_features == (64 if backbone is None else 512)


# -- the method ------------------------------------------------------------------------------------------------------


def method(**options) -> NoiseMask:
    torch.manual_seed(0)
    return NoiseMask(small_cnn(1, (16, 16), 5, width=4), 5, **options)


def batch(size: int = 16):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 16, 16, generator=generator), torch.randint(5, (size,), generator=generator)


def gradients(model: NoiseMask, network: nn.Module) -> list[torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    model.training_loss(batch()).backward()
    return [p.grad for p in network.parameters()]


def test_no_mask_is_plain_training_bit_for_bit():
    model, plain = method(mask="none"), small_cnn(1, (16, 16), 5, width=4)
    plain.load_state_dict(model.backbone.state_dict())
    image, label = batch()
    F.cross_entropy(plain(image), label).backward()
    for own, p in zip(gradients(model, model.backbone), plain.parameters(), strict=True):
        assert own.equal(p.grad)


def test_a_mask_of_ones_without_coupling_is_plain_training_bit_for_bit(monkeypatch):
    """So the classifier gets nothing from the score."""
    monkeypatch.setattr(
        "regbench.regularizers.classification.noise_mask.smooth_mask",
        lambda cells, size, kernel, sigma: torch.ones(len(cells), 1, *size),
    )
    plain, masked = method(mask="none"), method(couple_classifier=False)
    for one, other in zip(gradients(plain, plain.backbone), gradients(masked, masked.backbone), strict=True):
        assert one.equal(other)


def test_coupling_multiplies_the_classifiers_gradient_by_the_mean_score():
    coupled, free = method(), method(couple_classifier=False)
    own = gradients(coupled, coupled.backbone)
    factor = coupled._watched["score"][0]
    assert 3.5 < factor < 5.0  # about log(64 ∫p²)
    for one, other in zip(own, gradients(free, free.backbone), strict=True):
        torch.testing.assert_close(one, factor * other, rtol=1e-4, atol=1e-5)


def test_masks_carry_no_gradient_and_the_policy_learns_from_scores_only():
    model = method()
    mask, scores = model.act(batch()[0])
    assert not mask.requires_grad
    assert mask.shape == (16, 1, 16, 16)
    assert scores.requires_grad
    assert all(g is not None for g in gradients(model, model.policy))
    assert not any(b.requires_grad for b in (model.base_a, model.base_b))


def test_credit_and_baselines_by_hand():
    ce = torch.tensor([1.0, 2.0, 6.0])
    assert method().credits(ce).item() == 3.0
    assert method(credit="sample").credits(ce).tolist() == [1.0, 2.0, 6.0]
    assert method(credit="sample", baseline="loo").credits(ce).tolist() == [-3.0, -1.5, 4.5]
    model = method(baseline="ema")
    start = math.log(5)
    assert model.credits(ce).item() == pytest.approx(3 - start)
    assert model.credits(ce).item() == pytest.approx(3 - (0.9 * start + 0.1 * 3))


@pytest.mark.parametrize("mask", ["uniform", "constant", "gaussian_noise"])
def test_controls(mask):
    image, _ = batch()
    made = method(mask=mask, noise=0.2).control(image)
    if mask == "gaussian_noise":
        assert made.shape == image.shape
        assert made.std().item() == pytest.approx(0.2, abs=0.02)
        return
    assert made.shape == (16, 1, 16, 16)
    assert made.mean().item() == pytest.approx(0.5, abs=0.02)
    assert made.eq(0.5).all() == (mask == "constant")


def test_loss_scale():
    one, four = method(mask="constant"), method(mask="constant", loss_scale=4.0)
    assert four.training_loss(batch()).item() == pytest.approx(4 * one.training_loss(batch()).item())


# -- two phases ------------------------------------------------------------------------------------------------------


class Lengths:
    """Stands for the trainer: the length of a run."""

    def __init__(self, epochs: int):
        self.max_epochs = epochs


def test_fine_tuning_learning_rates_by_hand():
    rates = [1e-3 * finetune_factor(epoch, 7) for epoch in range(10)]
    expected = [1e-5, 0.000151, 0.000293, 0.000434, 0.000576, 0.000717, 0.000859, 1e-3, 1e-3, 1e-3]
    assert rates == pytest.approx(expected, abs=5e-7)


def test_learning_rates_of_the_papers_run():
    """90 + 10 epochs of three steps: steps of 30 epochs, then a hundredth of the first rate with its own warm-up."""
    model = method(scheduler={"name": "multistep", "milestones": [30, 60, 90], "gamma": 0.1})
    model._trainer = Lengths(100)
    assert model.masked_epochs == 90
    classifier, policy = model.lr_factors(300)
    rates = [0.1 * classifier(3 * epoch) for epoch in range(100)]
    assert [rates[e] for e in (0, 29, 30, 60, 89)] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    assert rates[90:] == pytest.approx([1e-3 * finetune_factor(e, 7) for e in range(10)])
    assert classifier(272) == classifier(270) < classifier(273)  # by epoch
    assert [policy(s) for s in (0, 135, 270)] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("epochs", "share", "masked"), [(1, 0.1, 1), (25, 0.2, 20), (10, 0.0, 10), (4, 1.0, 0)]
)
def test_length_of_the_first_phase(epochs, share, masked):
    model = method(finetune_share=share)
    model._trainer = Lengths(epochs)
    assert model.masked_epochs == masked


RUN = ["regularizer=noise_mask", "dataset=digits", "backbone=small_cnn", "backbone.width=4", "trainer.max_epochs=4",
       "trainer.limit_train_batches=4", "regularizer.finetune_share=0.5", "checkpoint.select=last", "logger=none",
       "progress=none"]  # fmt: skip


def test_the_second_phase_is_clean_and_leaves_the_policy_alone(train):
    code, folder = train(*RUN)
    assert code == 0
    rows = [row for row in history(folder) if row.get("train/loss")]
    assert [bool(row["train/score"]) for row in rows] == [True, True, False, False]
    assert [bool(row["train/mask_std"]) for row in rows] == [True, True, False, False]
    _, first = train(
        *RUN[:4], "trainer.max_epochs=2", *RUN[5:6], "regularizer.finetune_share=0", *RUN[7:], run_dir="1"
    )
    one, two = weights(first), weights(folder)
    assert all(one[name].equal(two[name]) for name in one if name.startswith(("policy", "base_")))
    assert any(not one[name].equal(two[name]) for name in one if name.startswith("backbone"))


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_resume_is_exact_in_and_between_the_phases(train, epochs, monkeypatch):
    _, whole = train(*RUN, run_dir="whole")
    from regbench import training

    build = training.build_trainer

    def stopping(*args):
        trainer = build(*args)
        trainer.callbacks.append(StopAfter(epochs))
        return trainer

    monkeypatch.setattr(training, "build_trainer", stopping)
    train(*RUN, run_dir="stopped")
    monkeypatch.setattr(training, "build_trainer", build)
    stopped = whole.parent / "stopped"
    assert torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == epochs - 1
    assert train(f"resume={stopped}")[0] == 0
    one, two = weights(whole), weights(stopped)
    assert all(one[name].equal(two[name]) for name in one)


def test_validation_is_clean_unless_asked(train):
    run = ["regularizer=noise_mask", *QUICK, "trainer.limit_train_batches=2"]
    losses = []
    for masked in ("false", "true"):
        code, folder = train(*run, f"regularizer.masked_validation={masked}", run_dir=masked)
        assert code == 0
        losses.append([row["val/nll"] for row in history(folder) if row["val/nll"]])
        if masked == "false":
            plain = weights(folder)
    assert all(plain[name].equal(value) for name, value in weights(folder).items())  # training is the same
    assert losses[0] != losses[1]


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "polcy"}, "Did you mean policy"),
        ({"objective": "sum"}, "objective"),
        ({"credit": "images"}, "credit"),
        ({"baseline": "mean"}, "baseline"),
        ({"baseline": "loo"}, r"credit=sample"),
        ({"head_mix": 1.1}, "head_mix"),
        ({"base_ema": -0.1}, "base_ema"),
        ({"finetune_share": 2}, "finetune_share"),
        ({"finetune_warmup": -1}, "finetune_warmup"),
        ({"grid": 0}, "grid=0"),
        ({"policy_hidden": 0}, "policy_hidden=0"),
        ({"kernel": 4}, "kernel=4"),
        ({"sigma": 0}, "sigma=0"),
        ({"loss_scale": 0}, "loss_scale=0"),
        ({"finetune_lr": 0}, "finetune_lr=0"),
        ({"noise": -1}, "noise=-1"),
        ({"policy_lr": -1}, "policy_lr=-1"),
        ({"policy_backbone": "resnet10x"}, "resnet10"),
        ({"mask": "uniform", "masked_validation": True}, "masked_validation"),
    ],
)
def test_mistakes_stop_at_construction(options, message):
    with pytest.raises(UserError, match=message):
        method(**options)


@pytest.mark.parametrize("options", [{"grid": 17}, {"kernel": 33}])
@pytest.mark.parametrize("mask", ["policy", "uniform", "constant"])
def test_masks_that_do_not_fit_the_image(options, mask):
    with pytest.raises(UserError, match="16x16"):
        method(mask=mask, **options).training_loss(batch())


def test_the_policy_needs_grey_or_colour_images():
    images, labels = torch.rand(4, 2, 16, 16), torch.zeros(4, dtype=torch.long)
    with pytest.raises(UserError, match="2 channels"):
        method().training_loss({"image": images, "label": labels})


def test_nothing_stacks_on_it():
    with pytest.raises(UserError, match="loop of its own"):
        method(stack=["mixup"])
