"""Restoration with a learned denoiser: training one on noisy samples, and solving inverse problems with it.

Batches hold `image`: pictures (C, H, W) with pixels in [0, 1], or vectors (d,) of any numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import MaxMetric

from regbench import seeding
from regbench.errors import UserError, unknown
from regbench.extras import need
from regbench.functional.distributed import own_draw
from regbench.functional.proximal import (
    alternating_directions,
    check_solver,
    prior_of_output,
    proximal_gradient,
)
from regbench.metrics.pictures import Means, picture_quality, psnr
from regbench.regularizers.base import Method, batch_fields
from regbench.regularizers.restoring import noise_seed

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1
DEGRADATION: dict[str, Any] = {"kind": "blur", "missing": 0.5, "blur_std": 1.0, "taps": 5, "noise": 0.02}
KINDS = ("blur", "inpainting")


def noise_like(image: Tensor, seed: int, stream: str, index: Tensor) -> Tensor:
    """Normal numbers of the image's shape, of each sample from a generator of its own: they depend on no batch."""
    return _drawn(torch.randn, image.shape[1:], seed, stream, index).to(image)


def _drawn(
    draw: Callable[..., Tensor], shape: Sequence[int], seed: int, stream: str, index: Tensor
) -> Tensor:
    # Under bf16-true the default type is bf16, in which a generator gives other numbers.
    generators = [seeding.generator(seed, stream, i) for i in index.tolist()]
    return torch.stack([draw(shape, generator=g, dtype=torch.float32) for g in generators])


class DenoisingMethod(Method):
    """A network that removes Gaussian noise: y = x + sigma eps, f(y) → x. Subclasses own `denoising_loss`.

    Measured with noise that is fixed for each sample: mse, and of pictures PSNR and SSIM.

    Attributes:
        restores: the test gives pictures, see `regbench.measures.restored`; here too those of `PlugAndPlayMethod`.

    Args:
        sigma: standard deviation of the noise.
    """

    restores: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, num_classes: int = 0, *, sigma: float = 0.1, **base):
        super().__init__(backbone, num_classes, **base)
        if sigma <= 0:
            raise UserError(f"regularizer.sigma={sigma} must be positive.")
        self.sigma = sigma
        self._means = Means()

    def denoising_loss(self, found: Tensor, image: Tensor) -> Tensor:
        """The loss (scalar) of restored samples (B, ...)."""
        raise NotImplementedError(f"{type(self).__name__} defines no denoising_loss")

    def training_loss(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        (image,) = batch_fields(batch, ("image",))
        generator = self.generator("denoising")
        noise = own_draw(lambda n: torch.randn(n, *image.shape[1:], generator=generator), len(image)).to(
            image
        )
        return self.denoising_loss(self.backbone(image + self.sigma * noise), image)

    def validation_step(self, batch, batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch, batch_idx: int) -> dict[str, Tensor]:
        return self._measure("test", batch)

    def _measure(self, split: str, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        image, index = batch_fields(batch, ("image", "index"))
        noise = noise_like(image, 0, f"{split} denoising", index)  # the same for every seed
        noisy = image + self.sigma * noise
        found = self.backbone(noisy)
        values = {"mse": (found - image).square().mean()}
        if image.ndim == 4:
            values |= picture_quality(found, image)
        self._means.add(values, len(image))
        return {"image": image, "degraded": noisy, "restored": found}

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self._means.finish().items()})

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self._means.finish().items()})


def check_degradation(degradation: Mapping[str, Any]) -> dict[str, Any]:
    """The degradation with its defaults filled in. Raises UserError for a mistake in it."""
    for key in degradation:
        if key not in DEGRADATION:
            raise unknown("key of regularizer.degradation", str(key), DEGRADATION)
    full = DEGRADATION | dict(degradation)
    if full["kind"] not in KINDS:
        raise unknown("regularizer.degradation.kind", str(full["kind"]), KINDS)
    if not 0 < full["missing"] < 1 or full["noise"] < 0:
        raise UserError(
            f"regularizer.degradation.missing={full['missing']} must lie in (0, 1), noise={full['noise']} be 0 or more."
        )
    if full["blur_std"] <= 0 or full["taps"] < 1 or full["taps"] % 2 == 0:
        raise UserError(
            f"regularizer.degradation.blur_std={full['blur_std']} must be positive, and taps={full['taps']} odd."
        )
    return full


def gaussian_kernel(std: float, taps: int) -> Tensor:
    """(1, 1, taps, taps), float64, with the sum 1: proportional to exp(−(i² + j²) / (2 std²)) from the middle.

    >>> round(gaussian_kernel(1.0, 5)[0, 0, 2, 2].item(), 7)
    0.1621028
    """
    place = torch.arange(taps, dtype=torch.float64) - taps // 2
    weight = torch.exp(-place.square() / (2 * std**2))
    kernel = torch.outer(weight, weight)
    return (kernel / kernel.sum())[None, None]


def operator(degradation: Mapping[str, Any], shape: tuple[int, ...], masks: Tensor) -> Any:
    """deepinv's operator A in float64, with |A| ≤ 1: of a blur (circular at the border), or of missing pixels.

    Args:
        degradation: of `check_degradation`.
        shape: (C, H, W) of the images.
        masks: uniform numbers (B, 1, H, W); pixels where they are below `missing` are lost.
    """
    from deepinv.physics import BlurFFT, Inpainting

    if degradation["kind"] == "inpainting":
        physics = Inpainting(img_size=shape, mask=(masks >= degradation["missing"]).double())
    else:
        if degradation["taps"] > min(shape[1:]):  # deepinv would cut the kernel off
            raise UserError(
                f"regularizer.degradation.taps={degradation['taps']}: the kernel must not be wider than the images of "
                f"{shape[1]} × {shape[2]} pixels."
            )
        physics = BlurFFT(
            img_size=shape, filter=gaussian_kernel(degradation["blur_std"], degradation["taps"])
        )
    return physics.to(masks.device)


class PlugAndPlayMethod(Method):
    """Degrades each test picture, y = A x + noise eps, and restores it by a solver with a proximal operator in it.

    Nothing is trained; steps are computed in float64. Measured over the pictures: PSNR and SSIM;
    `psnr_start`, the PSNR of Aᵀ y, from which the solvers start; `step`, the mean
    length of the last step |x_k − x_(k−1)|; and with a prior that can be evaluated and solver=pgd `rise`, the largest
    change of the objective |A x − y|² / 2 + R(x) / eta in a step, over all pictures and all steps but the first: below
    0 where each lowered it.

    Args:
        degradation: see the comments of configs/regularizer/plug_and_play.yaml.
        solver: pgd or admm.
        eta: step of pgd.
        rho: penalty of admm.
        steps: of the solver, from Aᵀ y.
    """

    trains: ClassVar[bool] = False
    restores: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        degradation: Mapping[str, Any] = DEGRADATION,
        solver: str = "pgd",
        eta: float = 0.9,
        rho: float = 1.1,
        steps: int = 20,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        need("deepinv", "restoration", "Plug-and-play restoration needs deepinv")
        self.degradation = check_degradation(degradation)
        check_solver(solver, eta, rho, steps)
        self.solver, self.eta, self.rho, self.steps = solver, eta, rho, steps
        self._means = Means()
        self._rise: MaxMetric | None = None

    def prox(self, v: Tensor) -> Tensor:
        """The proximal operator, or the denoiser in its place, on pictures (B, C, H, W) in float64."""
        raise NotImplementedError(f"{type(self).__name__} defines no prox")

    def prior(self, v: Tensor, x: Tensor) -> Tensor | None:
        """R(x) where x = prox(v), (B,); None where it is not known."""
        return None

    def test_step(self, batch, batch_idx: int) -> dict[str, Tensor]:
        image, index = batch_fields(batch, ("image", "index"))
        if image.ndim != 4 or image.min() < 0 or image.max() > 1:
            raise UserError(
                "Plug-and-play restoration takes pictures with pixels in [0, 1]: dataset=mnist5k_pictures."
            )
        with torch.inference_mode(False), torch.no_grad():
            image = image.clone().double()
            seed = noise_seed(self)
            uniform = _drawn(torch.rand, (1, *image.shape[2:]), seed, "mask", index)
            physics = operator(self.degradation, tuple(image.shape[1:]), uniform.to(image))
            clean = physics.A(image)
            y = clean + self.degradation["noise"] * noise_like(clean, seed, "measurement", index)
            start = physics.A_adjoint(y)
            x, step = self._solve(physics, y, start)
        values = {"step": step.mean(), "psnr_start": psnr(start, image)}
        self._means.add(picture_quality(x, image) | values, len(image))
        return {"image": image, "degraded": start, "restored": x}

    def _solve(self, physics: Any, y: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """(x, length of the last step (B,)); notes the rise of the objective."""
        x = start
        if self.solver == "pgd":
            iterates = proximal_gradient(self.prox, physics, y, start, eta=self.eta, steps=self.steps)
        else:
            iterates = alternating_directions(self.prox, physics, y, start, rho=self.rho, steps=self.steps)
        before = None
        for found in iterates:
            step, x = (found.x - x).flatten(1).norm(dim=1), found.x
            if self.solver == "pgd" and (prior := self.prior(found.v, x)) is not None:
                value = (physics.A(x) - y).flatten(1).square().sum(1) / 2 + prior / self.eta
                if before is not None:
                    if self._rise is None:
                        self._rise = MaxMetric(nan_strategy="disable").set_dtype(torch.float32).to(x.device)
                    self._rise.update(value - before)
                before = value
        return x, step

    def on_test_epoch_start(self) -> None:
        self._rise = None

    def on_test_epoch_end(self) -> None:
        values = self._means.finish()
        if self._rise is not None:
            values["rise"] = self._rise.compute()
        self.log_dict({f"test/{name}": value.float() for name, value in values.items()})


def known_prior(network: nn.Module, v: Tensor, x: Tensor) -> Tensor | None:
    """R(x) of a learned proximal network with x = f(v), (B,); None of any other network."""
    return prior_of_output(network.potential, v, x) if hasattr(network, "potential") else None
