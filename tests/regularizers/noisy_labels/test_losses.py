"""bootstrap, forward_correction, forward_estimated, gce and sce: values and gradients worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench import registry
from regbench.errors import UserError
from regbench.functional.noise_losses import (
    anchor_matrix,
    forward_loss,
    generalized_cross_entropy,
    hard_bootstrap,
    soft_bootstrap,
    symmetric_cross_entropy,
)
from regbench.regularizers.classification.base import Batch, Partner
from regbench.regularizers.noisy_labels.forward_correction import true_matrix

P = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
Y = torch.tensor([1])
T = true_matrix(3, "symmetric", 0.3, False, None)  # 0.7 on the diagonal, 0.15 beside it


def value_and_gradient(loss, *args) -> tuple[float, list[float]]:
    logits = (P.log() + 5.0).requires_grad_()  # softmax does not see the 5
    value = loss(logits, Y, *args)
    value.backward()
    return value.item(), logits.grad[0].tolist()


@pytest.mark.parametrize(
    ("loss", "args", "value", "gradient"),
    [
        # 0.95 · 1.609438 + 0.05 · 0.801819 (the entropy); its gradient is −p (log p + entropy)
        (soft_bootstrap, (0.95,), 1.569057, [0.649420, -0.751924, 0.102504]),
        (hard_bootstrap, (0.8,), 1.358885, [0.5, -0.6, 0.1]),  # p − (0.2, 0.8, 0)
        # −log(0.105 + 0.14 + 0.015); p minus these three shares of 0.26
        (forward_loss, (T.log(),), 1.347074, [0.296154, -0.338462, 0.042308]),
        (generalized_cross_entropy, (0.7,), 0.965527, [0.226892, -0.259305, 0.032413]),  # 0.2^0.7 (p − y)
        (generalized_cross_entropy, (1.0,), 0.8, [0.14, -0.16, 0.02]),  # 1 − p_y
        (generalized_cross_entropy, (0.7, 0.5), 0.549183, [0.0, 0.0, 0.0]),  # (1 − 0.5^0.7) / 0.7
        (generalized_cross_entropy, (0.7, 0.1), 0.965527, [0.226892, -0.259305, 0.032413]),  # 0.2 > k
        (symmetric_cross_entropy, (0.1, 1.0, -4.0), 3.360944, [0.63, -0.72, 0.09]),
        (symmetric_cross_entropy, (0.0, 0.1, -4.0), 0.32, [0.056, -0.064, 0.008]),
    ],
)
def test_value_and_gradient_by_hand(loss, args, value, gradient):
    found, grad = value_and_gradient(loss, *args)
    assert found == pytest.approx(value, abs=1e-6)
    assert grad == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "args"),
    [
        (soft_bootstrap, (1.0,)),
        (hard_bootstrap, (1.0,)),
        (forward_loss, (torch.eye(3, dtype=torch.float64).log(),)),  # log 0 is −∞, and harms no gradient
        (generalized_cross_entropy, (1e-7,)),
        (symmetric_cross_entropy, (1.0, 0.0, -4.0)),
    ],
)
def test_limits_are_cross_entropy(loss, args):
    found, grad = value_and_gradient(loss, *args)
    expected, expected_grad = value_and_gradient(F.cross_entropy)
    assert found == pytest.approx(expected, abs=1e-6)
    assert grad == pytest.approx(expected_grad, abs=1e-6)


def test_forward_correction_has_its_minimum_at_the_true_posterior():
    """Labels are drawn from p T: the expected loss has no gradient at z = log p, and cross entropy's has one."""
    logits = P.log().requires_grad_()
    noisy = (P @ T)[0]
    expected = sum(q * forward_loss(logits, torch.tensor([y]), T.log()) for y, q in enumerate(noisy))
    (gradient,) = torch.autograd.grad(expected, logits)
    assert gradient.abs().max() < 1e-14
    entropy = -(noisy * noisy.log()).sum()
    assert expected.item() == pytest.approx(entropy.item(), abs=1e-12)
    plain = sum(q * F.cross_entropy(logits, torch.tensor([y])) for y, q in enumerate(noisy))
    assert torch.autograd.grad(plain, logits)[0].abs().max() > 0.1


def test_losses_stay_finite_where_the_prediction_is_saturated():
    logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)  # float32: p is (1, 0, 0)
    for loss, args in (
        (soft_bootstrap, (0.95,)),
        (hard_bootstrap, (0.8,)),
        (forward_loss, (T.float().log(),)),
        (generalized_cross_entropy, (0.7,)),
        (symmetric_cross_entropy, (0.1, 1.0, -4.0)),
    ):
        value = loss(logits, torch.tensor([2]), *args)
        assert value.isfinite()
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


# -- the transition matrix ---------------------------------------------------------------------------------


def test_true_matrices():
    assert true_matrix(5, "symmetric", 0.4, True, None)[0].tolist() == pytest.approx([0.68] + 4 * [0.08])
    assert true_matrix(3, "asymmetric", 0.4, False, {"2": 0})[2].tolist() == pytest.approx([0.4, 0, 0.6])
    assert true_matrix(6, "asymmetric", 0.2, False, 3)[5].tolist() == pytest.approx([0, 0, 0, 0.2, 0, 0.8])


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (("instance", 0.2, False, None), "depends on the class alone"),
        (("asymmetric", 0.2, False, "random"), "depends on the class alone"),
        (("asymmetric", 0.2, False, 4), "does not divide"),
        (("asymmetric", 0.2, False, {7: 0}), "outside 0"),
        (("symmetric", 1.5, False, None), "from 0 to 1"),
        (("symetric", 0.5, False, None), "symmetric"),
    ],
)
def test_matrices_that_are_not_known(noise, message):
    with pytest.raises(UserError, match=message):
        true_matrix(6, *noise)


def test_anchors_by_hand():
    """Five samples: the 97th percentile is the largest of each class, so the second largest is the anchor."""
    p = torch.tensor(
        [[0.90, 0.05, 0.05], [0.80, 0.15, 0.05], [0.10, 0.70, 0.20], [0.05, 0.60, 0.35], [0.30, 0.10, 0.60]],
        dtype=torch.float64,
    )
    assert anchor_matrix(p).tolist() == [p[1].tolist(), p[3].tolist(), p[3].tolist()]
    assert anchor_matrix(p, None).tolist() == [p[0].tolist(), p[2].tolist(), p[4].tolist()]
    assert anchor_matrix(p[:1]).tolist() == 3 * [p[0].tolist()]


def test_percentile_is_numpys_higher():
    p = torch.rand(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    limits = np.percentile(p.numpy(), 97, axis=0, method="higher")
    for k, limit in enumerate(limits):
        anchor = anchor_matrix(p)[k]
        assert anchor[k] < limit
        assert int((p[:, k] > anchor[k]).sum()) == int((p[:, k] >= limit).sum())  # nothing between
    torch.testing.assert_close(anchor_matrix(p).sum(1), torch.ones(4, dtype=torch.float64))


def test_estimate_recovers_the_matrix_of_a_perfect_network():
    """A network that predicts labels as they are drawn: for an image that is surely of class k it predicts T[k]."""
    posterior = torch.cat([torch.eye(3).repeat(40, 1), torch.full((200, 3), 1 / 3)]).double()
    network = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(T.T)
    made = method("forward_estimated", warmup=nn.Sequential(nn.Flatten(), network, Log()))
    found = made.estimate([{"image": part} for part in posterior.split(64)])
    # 40 of 320 are alike and reach the percentile, so all are skipped as outliers, and uncertain images stand.
    assert found.max() < 0.5
    made.percentile = None
    torch.testing.assert_close(made.estimate([(posterior,)]), T)
    torch.testing.assert_close(made.log_matrix, T.log().float())


# -- the methods -------------------------------------------------------------------------------------------


class Log(nn.Module):
    def forward(self, p: Tensor) -> Tensor:
        return p.log()


def method(slug: str, **options):
    return registry.load(slug)(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3, **options)


def estimated():
    made = method("forward_estimated", warmup=nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    made.estimate([(torch.rand(100, 1, 2, 2),)])
    return made


METHODS = {
    "bootstrap": lambda: method("bootstrap"),
    "bootstrap_hard": lambda: method("bootstrap", form="hard"),
    "gce": lambda: method("gce"),
    "sce": lambda: method("sce"),
    "forward_correction": lambda: method("forward_correction", kind="symmetric", rate=0.3),
    "forward_estimated": estimated,
}
IMAGE = torch.zeros(1, 1, 2, 2)


@pytest.mark.parametrize("name", METHODS)
def test_a_mixed_batch_mixes_the_losses(name):
    made, logits, other = METHODS[name](), P.float().log(), torch.tensor([0])
    parts = [made.objective(logits, Batch(IMAGE, label)).item() for label in (Y, other)]
    mixed = made.objective(logits, Batch(IMAGE, Y, Partner(other, 0.7))).item()
    assert mixed == pytest.approx(0.7 * parts[0] + 0.3 * parts[1])
    assert parts[0] != pytest.approx(parts[1])


def test_defaults_are_the_papers():
    loss = {name: make().objective(P.float().log(), Batch(IMAGE, Y)).item() for name, make in METHODS.items()}
    assert loss["bootstrap"] == pytest.approx(1.569057, abs=1e-6)  # β 0.95
    assert loss["bootstrap_hard"] == pytest.approx(1.358885, abs=1e-6)  # β 0.8
    assert loss["gce"] == pytest.approx(0.965527, abs=1e-6)
    assert loss["sce"] == pytest.approx(3.360944, abs=1e-6)
    assert loss["forward_correction"] == pytest.approx(1.347074, abs=1e-6)


def test_truncation_starts_with_its_epoch():
    made = method("gce", k=0.5, truncate_from=2)
    batch, losses = Batch(IMAGE, Y), []
    for epoch in (0, 1, 2):
        made.trainer = SimpleNamespace(current_epoch=epoch)
        losses.append(made.objective(P.float().log(), batch).item())
    assert losses == pytest.approx([0.965527, 0.965527, 0.549183], abs=1e-6)


def test_matrix_comes_from_the_data_unless_it_is_given():
    made = method("forward_correction")
    with pytest.raises(UserError, match=r"set regularizer.kind"):
        made.objective(P.float().log(), Batch(IMAGE, Y))
    noise = {"kind": "symmetric", "rate": 0.3, "keep_true": False, "class_map": None, "exact": True}
    made.trainer = SimpleNamespace(datamodule=SimpleNamespace(node={"noise": noise}))
    assert made.objective(P.float().log(), Batch(IMAGE, Y)).item() == pytest.approx(1.347074, abs=1e-6)
    assert not [
        name for name in made.state_dict() if "matrix" in name
    ]  # nothing to carry over to other noise


def test_estimate_is_made_before_the_first_step():
    made = method("forward_estimated", warmup=nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    with pytest.raises(UserError, match=r"call estimate"):
        made.objective(P.float().log(), Batch(IMAGE, Y))
    images = torch.rand(50, 1, 2, 2)
    loader = [{"image": part} for part in images.split(8)]
    made.trainer = SimpleNamespace(datamodule=SimpleNamespace(plain_train_loader=lambda device: loader))
    made.objective(P.float().log(), Batch(IMAGE, Y))
    expected = anchor_matrix(made.warmup(images).double().softmax(1)).log()
    torch.testing.assert_close(made.log_matrix.double(), expected, atol=1e-6, rtol=0)
    assert not any(p.requires_grad for p in made.warmup.parameters())


@pytest.mark.parametrize(
    ("slug", "options", "message"),
    [
        ("bootstrap", {"form": "firm"}, "form"),
        ("bootstrap", {"beta": 1.2}, "beta=1.2"),
        ("gce", {"q": 0.0}, "q=0.0"),
        ("gce", {"k": 1.0}, "k=1.0"),
        ("gce", {"truncate_from": -1}, "truncate_from=-1"),
        ("sce", {"log_zero": 4.0}, "log_zero=4.0"),
        ("sce", {"alpha": -1.0}, "alpha=-1.0"),
        ("forward_correction", {"rate": 0.4}, "no regularizer.kind"),
        ("forward_correction", {"kind": "instance", "rate": 0.4}, "depends on the class alone"),
        ("forward_estimated", {"percentile": 100.0, "warmup": nn.Identity()}, "percentile=100.0"),
    ],
)
def test_mistakes_stop_at_construction(slug, options, message):
    with pytest.raises(UserError, match=message):
        method(slug, **options)
