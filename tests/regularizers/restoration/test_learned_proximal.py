"""Learned proximal networks: the network, proximal matching, the prior by inversion, and plug-and-play solvers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from regbench import extras, seeding
from regbench.backbones import build
from regbench.backbones.lpn import ImageLPN, VectorLPN
from regbench.data.laplace import load_laplace
from regbench.errors import UserError
from regbench.functional.proximal import (
    alternating_directions,
    invert,
    prior_of_output,
    proximal_gradient,
)
from regbench.measures.prior import ImagePrior, LaplacePrior, blurred, prior
from regbench.regularizers.restoration.base import check_degradation, gaussian_kernel, noise_like, operator
from regbench.regularizers.restoration.denoiser import Denoiser
from regbench.regularizers.restoration.learned_proximal import (
    LearnedProximal,
    check_stages,
    proximal_matching,
    stage_at,
)
from regbench.regularizers.restoration.plug_and_play import PlugAndPlay
from regbench.regularizers.restoration.total_variation import TotalVariation
from support import ranks_of_two, read_result

TINY = ["logger=none", "progress=none", "dataset.size=8", "dataset.test=10", "trainer.max_epochs=2",
        "trainer.limit_train_batches=3"]  # fmt: skip


def trained_like(network: nn.Module) -> nn.Module:
    """Weights of order 1 in place of the initial ones, clamped, in float64."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    network.clamp()
    return network.double().eval()


def images(count: int = 3, side: int = 8) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Soft(nn.Module):
    """Soft thresholding by 1, the proximal operator of |x|, with its convex potential max(|y| − 1, 0)² / 2."""

    def forward(self, y):
        return y.sign() * (y.abs() - 1).clamp(min=0)

    def potential(self, y):
        return (y.abs() - 1).clamp(min=0).square().flatten(1).sum(1) / 2


# -- the network ---------------------------------------------------------------------------------------------------


def test_parameters_are_the_released_networks():
    """Counted layer by layer from the released code."""

    def count(network):
        return sum(p.numel() for p in network.parameters())

    assert count(VectorLPN(1)) == 50 + 4 * 50 * 50 + 50 + 4 * (50 + 50) + 2 == 10_502
    assert count(ImageLPN(1, (28, 28))) == 317_056
    big = {"channels": 256, "strides": (2, 1, 2, 1, 2), "beta": 100.0, "alpha": 1e-6, "biases": True}
    with torch.device("meta"):
        assert count(ImageLPN(3, (128, 128), **big)) == 7_235_713
        assert count(ImageLPN(1, (128, 128), **big)) == 7_175_297


def test_a_network_by_hand():
    """psi = 2 sp(.5 sp(y) − .3 y + .1) + .01 y² and its derivative, sp(z) = log(1 + exp(10 z)) / 10."""
    network = VectorLPN(1, hidden=1, layers=1, alpha=0.01).double()
    values = {"first": 1.0, "inner.0": 0.5, "last": 2.0, "skips.0": -0.3, "last_skip": 0.0}
    with torch.no_grad():
        for name, value in values.items():
            network.get_submodule(name).weight.fill_(value)
        network.skips[0].bias.fill_(0.1)
        network.last_skip.bias.zero_()
    y = torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
    psi = torch.tensor([0.8136344, 0.3155577, 0.6197218, 1.0413431], dtype=torch.float64)
    f = torch.tensor([-0.6091639, -0.0793569, 0.4009868, 0.4373229], dtype=torch.float64)
    torch.testing.assert_close(network.potential(y), psi, atol=1e-7, rtol=0)
    torch.testing.assert_close(network(y)[:, 0], f, atol=1e-7, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_the_jacobian_is_symmetric_and_at_least_twice_alpha(alpha):
    network = trained_like(ImageLPN(1, (8, 8), channels=4, features=8, alpha=alpha))
    y = images(1)
    jacobian = torch.autograd.functional.jacobian(network, y).view(64, 64)
    torch.testing.assert_close(jacobian, jacobian.T, atol=1e-10, rtol=0)
    assert torch.linalg.eigvalsh((jacobian + jacobian.T) / 2).min() >= 2 * alpha - 1e-9


def test_clamped_weights_make_psi_convex_and_negative_ones_do_not():
    torch.manual_seed(0)
    network = VectorLPN(3).double()
    a, b = (torch.randn(500, 3, dtype=torch.float64) for _ in range(2))

    def least():
        return ((network(a) - network(b)) * (a - b)).sum(1).min()

    with torch.no_grad():
        network.last.weight.fill_(-1.0)
    assert least() < -1e-3
    network.last.weight.data.abs_()
    network.clamp()
    assert least() >= -1e-9
    assert all((layer.weight >= 0).all() for layer in network.positive())
    assert (network.first.weight < 0).any()  # these may be


def test_image_networks_start_with_small_positive_weights():
    network = ImageLPN(1, (16, 16), channels=16)
    logs = torch.cat([layer.weight.flatten() for layer in network.positive()]).log()
    assert logs.mean().item() == pytest.approx(-10, abs=0.01)
    assert logs.std().item() == pytest.approx(0.1, abs=0.01)


def test_the_gradient_is_taken_in_every_mode():
    network = VectorLPN(2)
    y = torch.randn(4, 2)
    found = network(y)
    assert found.requires_grad  # for training, by the weights
    with torch.no_grad():
        assert torch.equal(network(y), found)
    with torch.inference_mode():
        assert torch.equal(network(y + 0), found)
    assert not y.requires_grad


@pytest.mark.parametrize(
    "network",
    [VectorLPN(2), ImageLPN(2, (8, 8), channels=4, features=8, biases=True)],
    ids=["vector", "image"],
)
def test_all_that_is_trained_gets_a_gradient(network):
    """psi's additive constant gets none, and DDP stops where a trainable parameter has none."""
    y = torch.randn(3, 2) if isinstance(network, VectorLPN) else torch.randn(3, 2, 8, 8)
    network(y).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    constant = network.last_skip.bias if isinstance(network, VectorLPN) else network.last.bias
    assert not constant.requires_grad
    assert any(value is not None and value.shape == (1,) for value in network.state_dict().values())


def test_processes_draw_their_rows_of_the_same_noise(monkeypatch):
    """Of two, one has samples 0 and 2, the other one 1 and 3; what the network is shown is that of one process."""
    seen = []

    class Seeing(nn.Module):
        def forward(self, y):
            seen.append(y)
            return y

    image = torch.rand(4, 1, 8, 8)
    Denoiser(Seeing(), 0).training_loss({"image": image})
    for rank in ranks_of_two(monkeypatch):
        Denoiser(Seeing(), 0).training_loss({"image": image[rank::2]})
        assert torch.equal(seen[-1], seen[0][rank::2])


def test_networks_refuse_what_they_cannot_take():
    with pytest.raises(UserError, match="strides"):
        ImageLPN(1, (10, 10))
    with pytest.raises(UserError, match="lpn_vector"):
        build({"_target_": "regbench.backbones.lpn.ImageLPN"}, shape=(3,), num_classes=0)
    with pytest.raises(UserError, match="beta"):
        VectorLPN(1, beta=0)
    with pytest.raises(UserError, match="hidden"):
        VectorLPN(1, hidden=0)
    pytest.importorskip("deepinv")
    with pytest.raises(UserError, match="depth"):
        build({"_target_": "regbench.backbones.dncnn.dncnn", "depth": 2}, shape=(1, 8, 8), num_classes=0)


# -- training ------------------------------------------------------------------------------------------------------


def test_proximal_matching_by_hand():
    """1 − exp(−4 / 4), and noise of .1 on 784 pixels, |·|² = 7.84, with gamma 2.24."""
    x = torch.zeros(2, 4, dtype=torch.float64)
    assert proximal_matching(x + 1, x, 2.0).item() == pytest.approx(0.6321206, abs=1e-7)
    x = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    assert proximal_matching(x + 0.1, x, 2.24).item() == pytest.approx(0.7903886, abs=1e-7)


def test_minimisers_of_the_losses_for_laplace_numbers():
    """E[loss(f, x) | y = 1] over a fine grid of x, x Laplace, y = x + eps: the mean .5032, the median .4287, and with
    gamma .1 nearly soft thresholding's 0: .1110."""
    x = torch.linspace(-12, 12, 9601, dtype=torch.float64)
    density = torch.exp(-x.abs() - (1 - x) ** 2 / 2)
    density /= density.sum()
    candidates = torch.linspace(0, 1, 401, dtype=torch.float64)

    def matching(found, target):  # a batch of one
        return proximal_matching(found.view(1, 1), target.view(1, 1), 0.1)

    def best(loss):
        losses = torch.stack([torch.vmap(loss, (None, 0))(candidate, x) for candidate in candidates])
        return candidates[(losses @ density).argmin()].item()

    assert best(lambda found, target: (found - target) ** 2) == pytest.approx(0.5032, abs=0.003)
    assert best(lambda found, target: (found - target).abs()) == pytest.approx(0.4287, abs=0.003)
    assert best(matching) == pytest.approx(0.1110, abs=0.003)


def test_stages_by_hand():
    """Shares .5, .25, .25 of 10 steps: 5, then up to round(7.5) = 8, then the rest."""
    stages = [{"loss": "l1", "share": 0.5}, {"loss": "l2", "share": 0.25}, {"loss": "l1", "share": 0.25}]
    kinds = [stage_at(stages, step, 10)["loss"] for step in range(11)]
    assert kinds == ["l1"] * 5 + ["l2"] * 3 + ["l1"] * 3


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"loss": "l3", "share": 1}], "l3"),
        ([{"loss": "pm", "share": 1}], "gamma"),
        ([{"loss": "l2", "share": 1, "gamma": 1}], "gamma"),
        ([{"loss": "pm", "share": 1, "gamma": 0}], "gamma"),
        ([{"loss": "l2", "share": 0.7}], "add up to 1"),
        ([{"loss": "l2", "share": 1, "lr": 0}], "positive"),
        ([{"loss": "l2", "shares": 1}], "share"),
        ([], "add up to 1"),
    ],
)
def test_mistakes_in_stages_are_refused(stages, message):
    with pytest.raises(UserError, match=message):
        check_stages(stages)


def test_methods_refuse_what_they_cannot_take():
    with pytest.raises(UserError, match="backbone=lpn"):
        LearnedProximal(nn.Linear(1, 1), 0)
    with pytest.raises(UserError, match="scheduler=constant"):
        LearnedProximal(VectorLPN(1), 0, scheduler={"name": "cosine"})
    with pytest.raises(UserError, match="sigma"):
        Denoiser(nn.Linear(1, 1), 0, sigma=0)


def test_training_follows_the_stages_and_clamps(train):
    """3 of 6 steps at lr 1e-3, the others at a tenth."""
    code, run = train("regularizer=learned_proximal", *TINY, "backbone.channels=4",
                "regularizer.stages=[{loss:l1,share:0.5},{loss:pm,gamma:0.3,share:0.5,lr:0.1}]")  # fmt: skip
    assert code == 0
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    weights = {
        name: value for name, value in state["state_dict"].items() if "inner" in name or "dense.w" in name
    }
    assert weights
    assert all((value >= 0).all() for value in weights.values())
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-4)
    assert {"test/mse", "test/psnr", "test/ssim"} <= set(read_result(run)["metrics"])


def test_laplace_numbers():
    """Mean of |x| = scale, variance 2 scale²; other seeds draw others."""
    sets = load_laplace(None, train=200_000, val=10, test=10, scale=2.0, seed=0)
    x = sets.train.fields["image"].double()
    assert x.shape == (200_000, 1)
    assert x.abs().mean().item() == pytest.approx(2.0, rel=0.01)
    assert x.var().item() == pytest.approx(8.0, rel=0.02)
    other = load_laplace(None, train=10, val=10, test=10, scale=2.0, seed=1)
    assert not torch.equal(other.test.fields["image"], sets.test.fields["image"])
    with pytest.raises(UserError, match="scale"):
        load_laplace(None, train=10, val=10, test=10, scale=0.0, seed=0)


# -- the prior -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "r"), [(0.4, 0.48), (1.25, -0.064)])
def test_prior_of_a_quadratic(slope, r):
    """psi = slope y² / 2: f(y) = slope y, and R(x) = x² / 2 (1 / slope − 1) at x = .8; negative for slopes above 1."""
    x = torch.tensor([[0.8]], dtype=torch.float64)
    potential = lambda y: slope * y.square().sum(1) / 2  # noqa: E731
    v = invert(potential, x, steps=50, tolerance=1e-10)
    assert v.item() == pytest.approx(0.8 / slope, abs=1e-7)
    assert prior_of_output(potential, v, x).item() == pytest.approx(r, abs=1e-9)


def test_prior_of_soft_thresholding_is_the_absolute_value():
    x = torch.tensor([[1.0], [2.5]], dtype=torch.float64)
    v = invert(Soft().potential, x, steps=100, tolerance=1e-10)
    torch.testing.assert_close(v, x + 1, atol=1e-7, rtol=0)
    torch.testing.assert_close(prior_of_output(Soft().potential, v, x), x[:, 0], atol=1e-8, rtol=0)


def test_inversion_finds_what_the_network_was_given():
    network = trained_like(ImageLPN(1, (8, 8), channels=4, features=8, alpha=0.05))
    v = images()
    x = network(v).detach()
    values, misfit = prior(network, x, 500)
    assert misfit.max() < 1e-6
    torch.testing.assert_close(
        values, prior_of_output(network.potential, v, x).detach(), atol=1e-6, rtol=1e-6
    )


def test_a_proximal_operator_minimises_its_prior():
    """x = f(v) has a lower |x − v|² / 2 + R(x) than other outputs have."""
    network = trained_like(VectorLPN(2, alpha=0.1))
    draws = torch.Generator().manual_seed(0)
    v, others = (torch.randn(n, 2, generator=draws, dtype=torch.float64) for n in (1, 200))
    points = torch.cat([v, others])
    x = network(points).detach()
    values = (x - v).square().sum(1) / 2 + prior_of_output(network.potential, points, x).detach()
    assert values[0] <= values.min() + 1e-12


def test_blur_of_the_measure_keeps_the_mean():
    assert blurred(images(), 1.0).mean().item() == pytest.approx(images().mean().item(), rel=1e-6)
    assert torch.equal(blurred(images(), 0.0), images())


def test_measures_run_and_refuse(train):
    code, run = train("regularizer=learned_proximal", *TINY, "backbone.channels=4", "callbacks=[default,image_prior]",
                "callbacks.image_prior.images=4", "callbacks.image_prior.steps=20")  # fmt: skip
    assert code == 0
    found = read_result(run)["metrics"]
    assert {"test/prior_noise", "test/prior_blur", "test/prior_midpoint", "test/inversion_error"} <= set(
        found
    )
    assert (run / "figures" / "image_prior.png").is_file()
    for mistake in ({"images": 3}, {"steps": 0}, {"noise": [0.0, 0.1]}, {"blur": [0.0, 2.0, 1.0]}):
        with pytest.raises(UserError, match=f"image_prior.{next(iter(mistake))}|steps"):
            ImagePrior(**mistake)
    with pytest.raises(UserError, match="steps"):
        LaplacePrior(steps=0)
    with pytest.raises(UserError, match="backbone=lpn"):
        ImagePrior().setup(None, Denoiser(nn.Linear(1, 1), 0), "test")


@pytest.mark.parametrize(
    ("measure", "shape", "says"),
    [
        (ImagePrior(), (1,), "mnist5k_pictures"),
        (LaplacePrior(), (1, 8, 8), "laplace"),
        (LaplacePrior(), (2,), "laplace"),
    ],
)
def test_measures_refuse_other_data_before_training(measure, shape, says):
    trainer = SimpleNamespace(datamodule=SimpleNamespace(shape=shape))
    with pytest.raises(UserError, match=says):
        measure.setup(trainer, Denoiser(VectorLPN(1), 0), "fit")


def test_laplace_measure_runs(train):
    code, run = train("regularizer=learned_proximal", "dataset=laplace", "backbone=lpn_vector",
                      "dataset.train=1000", "callbacks=[default,laplace_prior]", "trainer.max_epochs=1",
                      "logger=none", "progress=none")  # fmt: skip
    assert code == 0
    assert {"test/prox_at_1", "test/soft_error", "test/prior_at_3"} <= set(read_result(run)["metrics"])
    assert (run / "figures" / "laplace_prior.png").is_file()


# -- plug and play -------------------------------------------------------------------------------------------------


class Identity:
    """A = 1, as deepinv's operators."""

    def A(self, x):
        return x

    A_adjoint = A

    def prox_l2(self, z, y, gamma):
        return (gamma * y + z) / (gamma + 1)


@pytest.mark.parametrize(("rho", "x"), [(2.0, 1.0), (1.0, 2.0), (0.1, 2.9)])
def test_admm_by_hand(rho, x):
    """The minimum of (x − 3)² / 2 + rho |x|: 3 − rho."""
    y = torch.tensor([[3.0]], dtype=torch.float64)
    *_, last = alternating_directions(Soft(), Identity(), y, y, rho=rho, steps=500)
    assert last.x.item() == pytest.approx(x, abs=1e-6)


@pytest.mark.parametrize(("eta", "x"), [(0.5, 1.0), (1.0, 2.0)])
def test_proximal_gradient_by_hand(eta, x):
    """The minimum of (x − 3)² / 2 + |x| / eta: 3 − 1 / eta."""
    y = torch.tensor([[3.0]], dtype=torch.float64)
    *_, last = proximal_gradient(Soft(), Identity(), y, y, eta=eta, steps=200)
    assert last.x.item() == pytest.approx(x, abs=1e-9)


def test_kernel_by_hand():
    assert gaussian_kernel(1.0, 5)[0, 0, 0, 0].item() == pytest.approx(0.0029690, abs=1e-7)
    assert gaussian_kernel(2.0, 7)[0, 0, 3, 3].item() == pytest.approx(0.0467018, abs=1e-7)
    assert gaussian_kernel(2.0, 7)[0, 0, 0, 6].item() == pytest.approx(0.0049223, abs=1e-7)


@pytest.mark.parametrize("kind", ["blur", "inpainting"])
def test_operators_have_norm_one_and_an_adjoint(kind):
    pytest.importorskip("deepinv")
    masks = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    physics = operator(check_degradation({"kind": kind}), (1, 8, 8), masks)
    x, y = images(), images().flip(0)
    torch.testing.assert_close((physics.A(x) * y).sum(), (x * physics.A_adjoint(y)).sum())
    z = images()
    for _ in range(200):  # the power method
        z = physics.A_adjoint(physics.A(z))
        norm = z.norm()
        z = z / norm
    assert norm.item() == pytest.approx(1.0, abs=1e-6)


def test_objective_does_not_rise_and_noise_does_not_depend_on_the_batch():
    pytest.importorskip("deepinv")
    network = ImageLPN(1, (16, 16), channels=4, features=8).eval()
    trained_like(network).float()
    batch = {"image": images(4, 16).float(), "index": torch.arange(4)}
    for kind in ("blur", "inpainting"):
        method = PlugAndPlay(nn.Identity(), 0, denoiser=network, degradation={"kind": kind}, steps=30)
        method.test_step(batch, 0)
        assert method._rise.compute() <= 1e-9
    a = noise_like(batch["image"], 0, "x", torch.arange(4))
    assert torch.equal(a[2:], noise_like(batch["image"][2:], 0, "x", torch.arange(2, 4)))


def test_the_rise_is_the_largest_of_all_processes(monkeypatch):
    """As torchmetrics gathers it: here from another process with a rise of 3."""
    pytest.importorskip("deepinv")
    network = trained_like(ImageLPN(1, (8, 8), channels=4, features=8)).float()
    method = PlugAndPlay(nn.Identity(), 0, denoiser=network, steps=5)
    method.test_step({"image": images().float(), "index": torch.arange(3)}, 0)
    method._rise.distributed_available_fn = lambda: True
    method._rise.dist_sync_fn = lambda value, group: [value, torch.full_like(value, 3.0)]
    logged = {}
    monkeypatch.setattr(method, "log_dict", logged.update)
    method.on_test_epoch_end()
    assert logged["test/rise"] == 3


@pytest.mark.parametrize("kind", ["blur", "inpainting"])
def test_masks_and_noise_follow_the_stream_noise(kind):
    """A run's data module has the streams, by default of one value; outside of a run all is of the seed."""
    pytest.importorskip("deepinv")
    batch = {"image": images().float(), "index": torch.arange(3)}

    def degraded(seed: int, streams: dict[str, int] | None = None):
        method = TotalVariation(nn.Identity(), 0, degradation={"kind": kind}, steps=1, seed=seed)
        method.on_test_start()
        if streams is not None:
            method._trainer = SimpleNamespace(datamodule=SimpleNamespace(seeds=streams))
        return method.test_step(batch, 0)["degraded"]

    assert torch.equal(degraded(1, seeding.streams(1)), degraded(1))
    assert torch.equal(degraded(0, seeding.streams(0, {"noise": 1})), degraded(1))
    assert torch.equal(degraded(1, seeding.streams(1, {"noise": 0})), degraded(0))
    assert not torch.equal(degraded(0), degraded(1))


def test_half_precision_changes_neither_the_measurements_nor_the_prox():
    """Under accelerator.precision=bf16-true Lightning makes bf16 the default type, and converts what it is given."""
    pytest.importorskip("deepinv")
    network = trained_like(ImageLPN(1, (8, 8), channels=4, features=8)).bfloat16()
    batch = {"image": images().bfloat16(), "index": torch.arange(3)}
    for kind in ("blur", "inpainting"):
        options = {"denoiser": network, "degradation": {"kind": kind}, "steps": 2}
        expected = PlugAndPlay(nn.Identity(), 0, **options).test_step(batch, 0)
        torch.set_default_dtype(torch.bfloat16)
        try:
            method = PlugAndPlay(nn.Identity(), 0, **options).to(torch.bfloat16)
            with torch.inference_mode():  # as Lightning tests
                method.on_test_start()
                found = method.test_step(batch, 0)
        finally:
            torch.set_default_dtype(torch.float32)
        for name, picture in expected.items():
            torch.testing.assert_close(found[name], picture, rtol=0, atol=1e-12)


def test_a_kernel_wider_than_the_images_is_refused():
    pytest.importorskip("deepinv")
    method = TotalVariation(nn.Identity(), 0, degradation={"taps": 9})
    with pytest.raises(UserError, match="taps=9"):
        method.test_step({"image": images().float(), "index": torch.arange(3)}, 0)


def test_a_missing_deepinv_is_found_when_the_method_is_built(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with pytest.raises(UserError, match="deepinv"):
        TotalVariation(nn.Identity(), 0)


def test_total_variation_agrees_with_skimage():
    """A weight on the sum of the gradients' lengths; skimage's fixed point is that of the same functional."""
    pytest.importorskip("deepinv")
    from skimage.restoration import denoise_tv_chambolle

    image = images(1, 16)
    method = TotalVariation(nn.Identity(), 0, weight=0.1)
    method.on_test_start()
    for _ in range(100):  # from the last one's dual
        found = method.prox(image)
    expected = denoise_tv_chambolle(image[0, 0].numpy(), weight=0.1, eps=1e-12, max_num_iter=20_000)
    assert np.abs(found[0, 0].numpy() - expected).max() < 0.01


def test_restoration_runs(train):
    pytest.importorskip("deepinv")
    code, run = train("regularizer=total_variation", "logger=none", "progress=none", "dataset.test=10",
                "regularizer.degradation.kind=inpainting", "regularizer.solver=admm")  # fmt: skip
    assert code == 0
    found = read_result(run)["metrics"]
    assert found["test/psnr"] > 10
    assert "test/rise" not in found


@pytest.mark.parametrize(
    "option",
    [{"solver": "hqs"}, {"eta": 0.0}, {"rho": 0.0}, {"steps": 0}, {"weight": 0.0}, {"degradation": {"kind": "fog"}},
     {"degradation": {"missing": 1.0}}, {"degradation": {"taps": 4}}, {"degradation": {"fog": 1}}],
)  # fmt: skip
def test_mistakes_in_restorations_are_refused(option):
    with pytest.raises(UserError):
        TotalVariation(nn.Identity(), 0, **option)


def test_restoration_refuses_other_data():
    pytest.importorskip("deepinv")
    batch = {"image": images().float() * 2, "index": torch.arange(3)}
    with pytest.raises(UserError, match="mnist5k_pictures"):
        TotalVariation(nn.Identity(), 0).test_step(batch, 0)
