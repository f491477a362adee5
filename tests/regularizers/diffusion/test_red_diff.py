"""RED-diff and the samplers beside it, against exact Gaussian priors, closed forms and numbers by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regbench import extras
from regbench.errors import UserError
from regbench.functional.diffusion import alpha_bars, inverse_snr, noised, prior_weight, time_grid
from regbench.regularizers.diffusion.base import Draws, RestorationMethod
from regbench.regularizers.diffusion.ddrm import DDRM
from regbench.regularizers.diffusion.dps import DPS, guidance
from regbench.regularizers.diffusion.pigdm import PiGDM
from regbench.regularizers.diffusion.pseudo_inverse import PseudoInverse
from regbench.regularizers.diffusion.red_diff import REDDiff, red_diff_loss
from support import read_result

BARS = alpha_bars(1000, 1e-4, 0.02)
QUIET = ["logger=none", "progress=none"]
HALF = {"kind": "inpainting", "mask": "random", "missing": 0.5}


class Gaussian(nn.Module):
    """The exact eps of independent pixels of N(mean, var): sqrt(1 − ab) (x_t − sqrt(ab) mean) / (ab var + 1 − ab)."""

    def __init__(self, mean: float, var: float):
        super().__init__()
        self.mean, self.var = mean, var

    def forward(self, xt, time):
        ab = BARS[int(time[0])]
        return math.sqrt(1 - ab) * (xt - math.sqrt(ab) * self.mean) / (ab * self.var + 1 - ab)


class TwoModes(nn.Module):
    """The exact eps of pixels that are independently N(1, .01) or N(−1, .01), one as likely as the other."""

    def forward(self, xt, time):
        ab = BARS[int(time[0])]
        var, at = ab * 0.01 + 1 - ab, math.sqrt(ab)
        return math.sqrt(1 - ab) * (xt - at * torch.tanh(at * xt / var)) / var


def method(cls=REDDiff, prior=None, **options):
    extra = {} if cls is PseudoInverse else {"prior": prior or Gaussian(0.0, 1.0)}
    return cls(nn.Identity(), 0, **extra, **options)


def restored(solver, x, index=None):
    """(what the method gives, y, the operator) for images in [−1, 1]."""
    index = torch.arange(len(x)) if index is None else index
    y, operator, draws = solver.degrade(x, index)
    return solver.restore(y, operator, draws).detach(), y, operator


# -- the schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "bar", "inverse"),
    [
        (0, 0.9999, 0.0100),
        (100, 0.895142, 0.3423),
        (250, 0.521423, 0.958),
        (500, 0.077797, 3.443),
        (750, 0.0033, 17.379),
        (999, 4.0e-5, 157.4),
    ],
)
def test_schedule_by_hand(t, bar, inverse):
    assert BARS[t] == pytest.approx(bar, abs=5e-5)
    assert inverse_snr(BARS[t]) == pytest.approx(inverse, rel=5e-3)


def test_schedule_is_diffusers_own():
    diffusers = pytest.importorskip("diffusers")
    own = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02).alphas_cumprod
    torch.testing.assert_close(torch.tensor(BARS).float(), own, rtol=1e-5, atol=1e-8)


def test_grid_and_weights():
    assert time_grid(100, 1000)[-2:] == [980, 990]
    assert len(time_grid(100, 1000)) == 100
    r = inverse_snr(0.2)  # sqrt(.8 / .2)
    assert r == pytest.approx(2.0)
    found = {
        kind: prior_weight(kind, 0.2) for kind in ("linear", "sqrt", "square", "log", "const", "power2over3")
    }
    assert found == pytest.approx(
        {
            "linear": 2,
            "sqrt": 2**0.5,
            "square": 4,
            "log": math.log(3),
            "const": 1,
            "power2over3": 4 ** (1 / 3),
        }
    )
    assert prior_weight("trunc_linear", 0.2) == 1
    assert prior_weight("trunc_linear", 0.8) == pytest.approx(0.5)


# -- RED-diff ----------------------------------------------------------------------------------------------------------


def test_the_gradient_is_weighted_residual_plus_adjoint_of_the_misfit():
    """w (e − eps) / n + A^T (A x − y) / m, with deepinv's own adjoint of 2 × 2 averages: n = 16, m = 4."""
    solver = method(degradation={"kind": "super_resolution", "factor": 2})
    x = torch.linspace(-1, 1, 16).view(1, 1, 4, 4).requires_grad_(True)
    _, operator, _ = solver.degrade(x.detach(), torch.arange(1))
    y, residual = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 4, 4)
    red_diff_loss(x, y, operator.A(x), residual, weight=0.7, obs_weight=2.0).backward()
    expected = 0.7 * residual / 16 + 2 * operator.A_adjoint(operator.A(x.detach()) - y) / 4
    torch.testing.assert_close(x.grad, expected)
    x.grad = None
    red_diff_loss(x, y, operator.A(x), residual, weight=0.7, obs_weight=2.0, reduction="sum").backward()
    torch.testing.assert_close(x.grad, 0.7 * residual + 2 * operator.A_adjoint(operator.A(x.detach()) - y))


@pytest.mark.parametrize(("t", "share"), [(100, 0.026215), (500, 0.230551), (999, 0.249990)])
def test_expected_gradient_of_a_gaussian_prior(t, share):
    """λ f E[e − eps] = .25 (1 − ab) (mu − m) for N(m, 1); e is affine in eps: the mean over ± eps is exact."""
    prior, mu, noise = Gaussian(0.5, 1.0), torch.tensor([[2.0, -1.0]]), torch.randn(1, 2)
    found = (
        sum(prior(noised(mu, sign * noise, BARS[t]), torch.tensor([t])) - sign * noise for sign in (1, -1))
        / 2
    )
    weighted = 0.25 * prior_weight("linear", BARS[t]) * found
    torch.testing.assert_close(weighted, share * (mu - 0.5), rtol=1e-4, atol=1e-6)


def test_stationary_point_of_denoising():
    """y = 2, prior N(0, 1): mu = 2 / (1 + .25 · mean(1 − ab)) = 1.6933 ; Adam's steps wander around it."""
    assert sum(1 - ab for ab in BARS) / 1000 == pytest.approx(0.72449, abs=1e-5)
    solver = method(degradation={"kind": "denoising"}, steps=500, lr=0.02, order="random", init="noise")
    found, _, _ = restored(solver, torch.full((2, 1, 32, 32), 2.0))
    assert found.mean().item() == pytest.approx(1.6933, abs=0.03)


def test_without_prior_or_with_a_perfect_guess_a_masked_start_stays():
    """The pseudo-inverse of a mask fits y already; a prior that names the noise itself gives no gradient either.

    But for rounding, whose sign Adam would follow: strength makes it vanish beside the 1e-8 that Adam adds. A wrong
    prior's gradient does not.
    """
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    found, y, operator = restored(method(degradation=HALF, strength=0.0, steps=5), x)
    assert torch.equal(found, operator.A_dagger(y))

    class Knowing(nn.Module):  # x_0 is known: that of y, 0 where pixels are missing
        def forward(self, xt, time):
            ab = BARS[int(time[0])]
            return (xt - math.sqrt(ab) * operator.A_dagger(y)) / math.sqrt(1 - ab)

    options = {"degradation": HALF, "steps": 5, "lr": 0.1, "strength": 1e-7, "obs_weight": 0.0}
    found, y, operator = restored(method(prior=Knowing(), **options), x)
    torch.testing.assert_close(found, operator.A_dagger(y), rtol=0, atol=1e-4)
    for wrong in (Gaussian(5.0, 1.0), Gaussian(-100.0, 0.1)):
        moved, _, _ = restored(method(prior=wrong, **options), x)
        assert (moved - operator.A_dagger(y)).abs().mean() > 0.1


def test_mode_seeking():
    """Prior N(1, .25), half of the pixels unknown: their mean is the mode; their spread comes from lr, not from .5."""
    x, spreads = torch.ones(8, 1, 16, 16), []
    for lr in (0.1, 0.5):
        found, _, operator = restored(method(prior=Gaussian(1.0, 0.25), degradation=HALF, lr=lr), x)
        unknown = found[operator.mask.expand_as(found) == 0]
        assert unknown.mean().item() == pytest.approx(1.0, abs=0.05)
        spreads.append(unknown.std().item())
    assert spreads == pytest.approx([0.22, 0.63], abs=0.06)


def test_each_pixel_picks_one_of_two_modes():
    """No measurement, mu = 0 at the start: with 1,000 steps nearly all end at +1 or −1, as many here as there."""
    solver = method(prior=TwoModes(), steps=1000, obs_weight=0.0)
    draws = Draws(0, "test", [0], (1, 40, 40), torch.device("cpu"))
    y, operator, _ = solver.degrade(torch.zeros(1, 1, 40, 40), torch.arange(1))
    found = solver.restore(y, operator, draws)
    assert ((found.abs() - 1).abs() < 0.35).float().mean() > 0.99
    assert 0.44 < (found > 0).float().mean() < 0.56


def test_orders_of_the_times():
    assert method(steps=4).schedule() == [750, 500, 250, 0]
    assert method(steps=4, order="ascending").schedule() == [0, 250, 500, 750]
    drawn = method(steps=100, order="random").schedule()
    assert len(drawn) == 100
    assert len(set(drawn)) < 100  # drawn anew each time
    assert set(drawn) <= set(range(0, 1000, 10))


def test_the_prior_is_called_at_its_times_and_without_gradients():
    seen = []

    class Watching(Gaussian):
        def forward(self, xt, time):
            seen.append(int(time[0]))
            assert not torch.is_grad_enabled()
            return torch.cat(
                [super().forward(xt, time), torch.full_like(xt, torch.nan)], dim=1
            )  # variances: not read

    found, _, _ = restored(
        method(prior=Watching(0.0, 1.0), degradation=HALF, steps=4), torch.zeros(1, 1, 8, 8)
    )
    assert seen == [750, 500, 250, 0]
    assert found.isfinite().all()


# -- the samplers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DPS, PiGDM, DDRM])
def test_unknown_pixels_are_samples_of_a_gaussian_prior(cls):
    """Prior N(1, .25) of independent pixels: what is not measured has mean 1 and standard deviation .5."""
    # DDRM's eta is another: with 1 all noise is fresh, so that samples of a posterior's mean are too narrow.
    solver = method(
        cls, prior=Gaussian(1.0, 0.25), degradation=HALF, steps=500, eta=0.0 if cls is DDRM else 1.0
    )
    x = torch.full((4, 1, 24, 24), 0.8)
    found, y, operator = restored(solver, x)
    missing = operator.mask.expand_as(found) == 0
    assert found[missing].mean().item() == pytest.approx(1.0, abs=0.06)
    assert found[missing].std().item() == pytest.approx(0.5, abs=0.05)
    if cls is DPS:
        assert (found - y)[~missing].abs().mean() < 0.2
    else:
        torch.testing.assert_close(found[~missing], y[~missing], rtol=0, atol=1e-4)


def test_ddrm_follows_noisy_measurements_as_far_as_they_can_be_trusted():
    """H = I, noise .2: the mean of what DDRM gives lies between that of the prior, 0, and y's; its spread below y's."""
    degradation = {"kind": "denoising", "sigma_y": 0.3}
    solver = method(DDRM, prior=Gaussian(0.0, 0.04), degradation=degradation, steps=100)
    found, y, _ = restored(solver, torch.full((4, 1, 16, 16), 0.5))
    assert y.std().item() == pytest.approx(0.6, abs=0.05)
    assert 0.02 < found.mean() < 0.4
    assert found.std() < y.std() / 2


def test_guidance_is_twice_the_gradient_of_the_norm():
    x = torch.tensor([[0.0, 0.0]], requires_grad=True)
    y = torch.tensor([[3.0, 4.0]])
    (of_norm,) = torch.autograd.grad((y - x).norm(), x)
    torch.testing.assert_close(of_norm, torch.tensor([[-0.6, -0.8]]))
    torch.testing.assert_close(guidance(x, y, x), 2 * of_norm)
    assert torch.equal(
        guidance(x, torch.zeros(1, 2), 1 * x), torch.zeros(1, 2)
    )  # a perfect fit: nothing, not NaN


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_measurement_noise():
    """sigma_y = .1 for pixels in [0, 1] is .2 for pixels in [−1, 1]."""
    x = torch.zeros(8, 1, 16, 16)
    y, _, _ = method(degradation={"kind": "denoising", "sigma_y": 0.1}).degrade(x, torch.arange(8))
    assert y.std().item() == pytest.approx(0.2, abs=0.01)


class Off(RestorationMethod):
    """.2 away from the measurements."""

    def restore(self, y, operator, draws):
        return y + 0.2


def test_metrics_by_hand():
    """An error of .1 everywhere, in pixels of [0, 1], is 20 dB; in y, of pixels in [−1, 1], it is .2."""

    solver = Off(nn.Identity(), 0, prior=nn.Identity(), degradation={"kind": "denoising"})
    solver.test_step({"image": torch.rand(3, 1, 16, 16) * 0.8, "index": torch.arange(3)}, 0)
    found = {name: value.item() for name, value in solver._means.finish().items()}
    assert found["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert found["residual"] == pytest.approx(0.2, abs=1e-5)
    assert 0.5 < found["ssim"] < 1


def test_the_misfit_is_of_measured_pixels_alone():
    """Noise on pixels that are not measured is none of their misfit: the pseudo-inverse reproduces the known ones."""
    batch = {"image": torch.rand(3, 1, 16, 16), "index": torch.arange(3)}
    for mask in ("box", "random"):
        for cls, expected in ((PseudoInverse, 0.0), (Off, 0.2)):
            solver = method(cls, degradation=HALF | {"mask": mask, "sigma_y": 0.1})
            solver.test_step(batch, 0)
            assert solver._means.finish()["residual"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cls", [REDDiff, DPS, PiGDM, DDRM])
def test_an_image_is_restored_alike_whatever_its_batch(cls):
    solver = method(cls, prior=Gaussian(0.0, 0.5), degradation=HALF | {"sigma_y": 0.1}, steps=5)
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    together, _, _ = restored(solver, x)
    alone, _, _ = restored(solver, x[2:], torch.tensor([2]))
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-5)


def test_a_run_makes_its_prior_and_leaves_no_checkpoint(train):
    code, folder = train(
        "regularizer=red_diff", "regularizer.degradation.kind=hdr", "regularizer.steps=3", "dataset.size=8",
        "dataset.test=10", "backbone=none", "trainer.max_epochs=1", "trainer.limit_train_batches=2", *QUIET,
    )  # fmt: skip
    assert code == 0
    metrics = read_result(folder)["metrics"]
    assert set(metrics) == {"test/psnr", "test/ssim", "test/residual"}
    assert not (folder / "checkpoints").exists() or not list((folder / "checkpoints").iterdir())


def test_what_the_sampler_draws_follows_the_stream_order():
    """And not the stream noise, which masks and measurement noise follow; a run's data module has the streams."""
    x, index = torch.zeros(1, 1, 8, 8), torch.arange(1)

    def drawn(order: int, noise: int):
        solver = method(DPS, degradation=HALF | {"sigma_y": 0.1}, seed=order, steps=5)
        solver._trainer = SimpleNamespace(datamodule=SimpleNamespace(seeds={"order": order, "noise": noise}))
        y, operator, draws = solver.degrade(x, index)
        return operator.mask, y, draws.normal()

    (mask, y, sampled), other_order, other_noise = drawn(0, 0), drawn(1, 0), drawn(0, 1)
    assert torch.equal(other_order[0], mask)
    assert torch.equal(other_order[1], y)
    assert not torch.equal(other_order[2], sampled)
    assert not torch.equal(other_noise[0], mask)
    assert not torch.equal(other_noise[1], y)
    assert torch.equal(other_noise[2], sampled)


def test_masks_and_noise_follow_the_stream_noise(train):
    """And not the stream order: the pseudo-inverse draws nothing."""
    task = ["regularizer.degradation.mask=random", "dataset.size=8", "dataset.test=10", *QUIET]
    found = {}
    for seeds in ("seed=0", "seeds.order=1", "seeds.noise=1"):
        _, folder = train("regularizer=pseudo_inverse", seeds, *task, run_dir=seeds.replace("=", "_"))
        found[seeds] = read_result(folder)["metrics"]
    assert found["seed=0"] == found["seeds.order=1"] != found["seeds.noise=1"]


@pytest.mark.parametrize("kind", ["inpainting", "super_resolution", "deblurring", "denoising"])
def test_half_precision_changes_neither_the_measurements_nor_the_prior_s_input(kind):
    """With accelerator.precision=bf16-true Lightning makes bf16 the default type, and gives such images and weights."""
    seen = []

    class Watching(Gaussian):
        def __init__(self):
            super().__init__(0.0, 1.0)
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, xt, time):
            seen.append(xt.dtype)
            return super().forward(xt, time) * self.weight

    degradation = HALF | {"kind": kind, "kernel": "uniform", "taps": 3, "sigma_y": 0.1}
    batch = {"image": torch.rand(2, 1, 16, 16).bfloat16().float(), "index": torch.arange(2)}
    expected = method(PseudoInverse, degradation=degradation).test_step(batch, 0)["degraded"]
    torch.set_default_dtype(torch.bfloat16)
    try:
        solver = method(prior=Watching(), degradation=degradation, steps=2).to(torch.bfloat16)
        found = solver.test_step(batch | {"image": batch["image"].bfloat16()}, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found["degraded"], expected)
    assert set(seen) == {torch.bfloat16}
    assert found["restored"].isfinite().all()


def test_a_missing_deepinv_is_found_when_the_method_is_built(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    for kind in ("inpainting", "denoising"):
        with pytest.raises(UserError, match="deepinv"):
            method(degradation={"kind": kind})
    method(degradation={"kind": "hdr"})  # needs none


@pytest.mark.parametrize(
    ("cls", "options", "says"),
    [
        (REDDiff, {"weight": "cubic"}, "weight"),
        (REDDiff, {"order": "sideways"}, "order"),
        (REDDiff, {"init": "zero"}, "init"),
        (REDDiff, {"reduction": "max"}, "reduction"),
        (REDDiff, {"lr": 0.0}, "lr=0.0"),
        (REDDiff, {"strength": -1.0}, "strength=-1.0"),
        (REDDiff, {"steps": 0}, "steps=0"),
        (REDDiff, {"steps": 1001}, "steps=1001"),
        (REDDiff, {"degradation": {"kind": "fog"}}, "kind"),
        (REDDiff, {"degradation": {"sigma": 1}}, "degradation"),
        (REDDiff, {"degradation": {"missing": 1.0}}, "missing=1.0"),
        (REDDiff, {"degradation": {"taps": 4}}, "taps=4"),
        (REDDiff, {"degradation": {"width": 0.0}}, "width=0.0"),
        (DPS, {"zeta": -1.0}, "zeta=-1.0"),
        (PiGDM, {"eta": 2.0}, "eta=2.0"),
        (DDRM, {"eta_b": 2.0}, "eta_b=2.0"),
        (DDRM, {"degradation": {"kind": "hdr"}}, "linear"),
        (PseudoInverse, {"degradation": {"mask": "round"}}, "mask"),
    ],
)
def test_mistakes(cls, options, says):
    with pytest.raises(UserError, match=says):
        method(cls, **options)


def test_pixels_must_lie_between_0_and_1():
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        method().test_step({"image": torch.full((1, 1, 16, 16), 2.0), "index": torch.arange(1)}, 0)
