"""Diffusion models (Ho et al. 2020, arXiv 2006.11239): training the network that predicts the
noise, and restoring images with it as the prior.

A method that restores overrides `restore`; one that trains a prior in another way derives from `NoisePredictor` and
overrides `training_loss`. Batches hold `image` with pixels in [0, 1]; inside they lie in [−1, 1].
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regbench import seeding
from regbench.backbones.backbone import as_backbone
from regbench.errors import UserError
from regbench.functional.diffusion import alpha_bars, ddim_shares, denoised, noised, time_grid
from regbench.metrics.pictures import Means, picture_quality
from regbench.regularizers.base import Method, batch_fields
from regbench.regularizers.diffusion import operators
from regbench.regularizers.restoring import noise_seed

# Raised when a change in this file, or in operators.py, changes numbers: the family's finished runs are then run again.
VERSION = 2
FIRST_BETA, LAST_BETA, TIMES = 1e-4, 0.02, 1000  # of the linear schedule that these models share
SLACK = 1e-3  # by which pixels may lie outside [0, 1]


def to_signed(image: Tensor) -> Tensor:
    """Pixels in [0, 1] → [−1, 1], float32. Raises UserError for others."""
    image = image.float()
    low, high = image.aminmax()
    if low < -SLACK or high > 1 + SLACK:
        raise UserError(
            f"Diffusion takes pixels in [0, 1]; these lie in [{low:.2f}, {high:.2f}]. Sets of pictures have them "
            "(dataset=mnist5k_pictures); of image sets that are normalised undo mean and std."
        )
    return 2 * image - 1


def noise_of(network: nn.Module, xt: Tensor, time: Tensor | int) -> Tensor:
    """The network's eps(x_t, t); of one that predicts variances too, the first half of its channels.

    A network with weights of another type than x_t's computes in its own (`accelerator.precision=bf16-true`).
    """
    if not isinstance(time, Tensor):
        time = torch.full((len(xt),), time, device=xt.device)
    weight = next(network.parameters(), xt)
    return network(xt.to(weight.dtype), time)[:, : xt.shape[1]].to(xt.dtype)


class Draws:
    """Normal and uniform numbers for the images of a batch, of each image from a generator of its own: what is drawn
    depends neither on the batch nor on the device.

    Args:
        index: (B,), places of the images in their split.
        shape: (C, H, W) of an image.
    """

    def __init__(
        self, seed: int, stream: str, index: Sequence[int], shape: tuple[int, ...], device: torch.device
    ):
        self.generators = [seeding.generator(seed, stream, int(i)) for i in index]
        self.shape, self.device = tuple(shape), device

    def normal(self, shape: Sequence[int] | None = None) -> Tensor:
        """(B, *shape), of N(0, 1); shape: that of an image unless given."""
        shape = self.shape if shape is None else tuple(shape)
        return self._stacked(torch.randn, shape)

    def uniform(self) -> Tensor:
        """(B, 1, H, W), of U[0, 1): one number a pixel."""
        return self._stacked(torch.rand, (1, *self.shape[1:]))

    def _stacked(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        # Under bf16-true the default type is bf16, in which a generator gives other numbers.
        drawn = [draw(shape, generator=g, dtype=torch.float32) for g in self.generators]
        return torch.stack(drawn).to(self.device)


class NoisePredictor(Method):
    """A network that predicts the noise in x_t; subclasses own `training_loss`.

    Measured is the mean squared error of the predicted noise, at times and with noise that are fixed for each image.
    """

    def __init__(self, backbone: nn.Module, num_classes: int = 0, **base):
        super().__init__(backbone, num_classes, **base)
        # No buffer: bf16-true would round it, to 1 at the first times.
        self.alpha_bar = torch.tensor(alpha_bars(TIMES, FIRST_BETA, LAST_BETA), dtype=torch.float32)
        self._means = Means()

    @torch.no_grad()
    def sample(
        self, count: int, shape: tuple[int, ...], times: Sequence[int], *, eta: float, seed: int
    ) -> Tensor:
        """Images (count, *shape) with pixels in [0, 1], not clipped, by DDIM's steps from pure noise.

        Args:
            times: rising, see `time_grid`.
            eta: 0: the noise at the start is all that is drawn; 1: DDPM's steps.
        """
        draws = Draws(seed, "samples", range(count), shape, self.device)
        bars = self.alpha_bar.tolist()
        xt = draws.normal()
        for t, s in backwards(times):
            noise = noise_of(self.backbone.network, xt, t)
            ab, ab_next = bars[t], 1.0 if s < 0 else bars[s]
            fresh, kept = ddim_shares(ab, ab_next, eta)
            xt = math.sqrt(ab_next) * denoised(xt, noise, ab) + fresh * draws.normal() + kept * noise
        return (xt + 1) / 2

    def validation_step(self, batch, batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch, batch_idx: int) -> None:
        self._measure("test", batch)

    def _measure(self, split: str, batch: Mapping[str, Tensor]) -> None:
        image, index = batch_fields(batch, ("image", "index"))
        x = to_signed(image)
        draws = Draws(
            0, f"{split} noise", index.tolist(), tuple(x.shape[1:]), x.device
        )  # the same for every seed
        time = (draws.uniform()[:, 0, 0, 0] * len(self.alpha_bar)).long()
        ab, noise = self.alpha_bar.to(x.device)[time].view(-1, 1, 1, 1), draws.normal()
        found = noise_of(self.backbone.network, noised(x, noise, ab), time)
        self._means.add({f"{split}/mse": (found - noise).pow(2).mean()}, len(x))

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._means.finish())

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._means.finish())


def backwards(times: Sequence[int]) -> list[tuple[int, int]]:
    """(t, the time before it) from the last time to the first; before the first −1 stands, where ab is 1.

    >>> backwards([0, 250, 500])
    [(500, 250), (250, 0), (0, -1)]
    """
    falling = list(reversed(times))
    return list(zip(falling, [*falling[1:], -1], strict=True))


def misfit(y: Tensor, found: Tensor, measured: Tensor | None = None) -> Tensor:
    """Root mean square of y − A(x) of each image, (B,), over the entries that are measured.

    Args:
        y, found: y and A(x), (B, …).
        measured: 1 or 0, broadcasts with y; all entries unless given.

    >>> misfit(torch.tensor([[3.0, 9.0]]), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor([3.])
    """
    kept = torch.ones_like(y) if measured is None else measured.expand_as(y)
    squared = ((y - found).pow(2) * kept).flatten(1).sum(1)
    count = kept.flatten(1).sum(1).clamp(min=1)  # of a small image random masks may leave nothing
    return (squared / count).sqrt()


class RestorationMethod(Method):
    """Degrades each test image, restores it with a trained diffusion model as the prior, and measures the result.

    y = A(x) + 2 sigma_y z: the 2 because x lies in [−1, 1]. The backbone is not used (`backbone=none`).

    Args:
        prior: the network that predicts the noise, (x_t, t) → eps; `artifacts.prior` says which run makes it.
        degradation: see `regbench.regularizers.diffusion.operators` and the comments of the config.
        steps: N: 0, 1000 // N, 2 (1000 // N) … are visited, N times where N divides 1,000, else more: with 300 it is
            every third, 334, and from 501 on all.
    """

    artifacts: ClassVar[tuple[str, ...]] = ("prior",)
    trains: ClassVar[bool] = False
    restores: ClassVar[bool] = True  # the test gives pictures, see regbench.measures.restored

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        prior: nn.Module,
        degradation: Mapping[str, Any] = operators.DEGRADATION,
        steps: int = 100,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        self.prior = as_backbone(prior).eval().requires_grad_(False)
        self.degradation = operators.check(degradation)
        self.bars = alpha_bars(TIMES, FIRST_BETA, LAST_BETA)
        self.times = time_grid(steps, TIMES)
        self._means = Means()

    # -- what a method overrides -----------------------------------------------------------------------------------

    def restore(self, y: Tensor, operator: Any, draws: Draws) -> Tensor:
        """x (B, C, H, W) in [−1, 1] from the measurements y. Gradients are on; the prior's weights take none."""
        raise NotImplementedError(f"{type(self).__name__} defines no restore")

    # -- what it may use -------------------------------------------------------------------------------------------

    def bar(self, t: int) -> float:
        """ab_t; 1 before the first time."""
        return 1.0 if t < 0 else self.bars[t]

    def predict(self, xt: Tensor, t: int) -> Tensor:
        """The prior's eps(x_t, t)."""
        return noise_of(self.prior.network, xt, t)

    def noisy_start(self, x: Tensor, draws: Draws) -> Tensor:
        """x brought to the last time."""
        return noised(x, draws.normal(), self.bar(self.times[-1]))

    @property
    def networks(self) -> list[nn.Module]:
        return [self.prior.network]

    # -- measuring -------------------------------------------------------------------------------------------------

    def degrade(self, x: Tensor, index: Tensor) -> tuple[Tensor, Any, Draws]:
        """(y, the operator, what the restoration draws from) of images in [−1, 1] at these places of their split."""
        draws = Draws(noise_seed(self), "degradation", index.tolist(), tuple(x.shape[1:]), x.device)
        operator = operators.build(self.degradation, tuple(x.shape[1:]), draws.uniform)
        if isinstance(operator, nn.Module):
            operator = operator.to(x.device)
        y = operator.A(x)
        if self.degradation["sigma_y"]:
            y = y + 2 * self.degradation["sigma_y"] * draws.normal(y.shape[1:])
        return y, operator, Draws(self.seed, "restoration", index.tolist(), tuple(x.shape[1:]), x.device)

    def measured(self, operator: Any) -> Tensor | None:
        """1 for the entries of y that are measured, else 0, broadcasts with y; None where all are."""
        return operator.mask if self.degradation["kind"] == "inpainting" else None

    def test_step(self, batch, batch_idx: int) -> dict[str, Tensor]:
        image, index = batch_fields(batch, ("image", "index"))
        with torch.inference_mode(False), torch.no_grad():
            x = to_signed(
                image.clone()
            )  # a clone: of a tensor made in inference mode no gradient can be taken
            y, operator, draws = self.degrade(x, index)
            with torch.enable_grad():
                found = self.restore(y, operator, draws).detach()
            residual = misfit(y, operator.A(found), self.measured(operator))
            start = operator.A_dagger(y)
            pictures = {"image": (x + 1) / 2, "degraded": (start + 1) / 2, "restored": (found + 1) / 2}
            values = picture_quality(pictures["restored"], pictures["image"]) | {"residual": residual.mean()}
        self._means.add(values, len(x))
        return pictures

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self._means.finish().items()})
