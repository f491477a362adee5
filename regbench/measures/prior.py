"""The prior R that a learned proximal network stands for, evaluated at the test."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from regbench import seeding
from regbench.backbones.lpn import ProximalNetwork
from regbench.errors import UserError
from regbench.functional.proximal import invert, prior_of_output
from regbench.measures.pictures import log_picture

GRID = 301  # points on [0, 3]
MIX = [0.0, 0.25, 0.5, 0.75, 1.0]  # shares of the second image


class _Measure(pl.Callback):
    """What both measures of this file share; `samples` says of which data they are, `fits` knows their shape."""

    name = samples = ""

    def fits(self, shape: tuple[int, ...]) -> bool:
        raise NotImplementedError

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if not isinstance(module.backbone.network, ProximalNetwork):
            raise UserError(
                f"callbacks={self.name} measures learned proximal networks (backbone=lpn, lpn_128, lpn_vector); "
                "leave it out for others."
            )
        if not self.fits(trainer.datamodule.shape):
            raise UserError(f"callbacks={self.name} is for {self.samples}.")


class LaplacePrior(_Measure):
    """Compares f and R of a network of numbers with those of the Laplace distribution, whose −log p is |x| / scale.

    Logs `test/prox_at_1`, f(1); `test/soft_error`, the mean over y in [0, 3] of |f(y) − soft(y)| with soft(y) =
    max(y − sigma² / scale, 0); `test/prior_at_3`, R(3) − R(0), which is 3 sigma² / scale for the Laplace density; and
    `test/inversion_error`, the largest |f(v) − x| of the inversion over 301 points x of [0, 3].

    Args:
        steps: of L-BFGS.
        figures: draws f and R to figures/laplace_prior.png.
    """

    name = "laplace_prior"
    samples = "numbers: dataset=laplace"

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape == (1,)

    def __init__(self, *, steps: int = 500, figures: bool = True):
        if steps < 1:
            raise UserError(f"callbacks.laplace_prior.steps={steps} must be at least 1.")
        self.steps, self.figures = steps, figures

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        data = trainer.datamodule
        threshold = module.sigma**2 / data.node["scale"]
        with torch.inference_mode(False), torch.no_grad():
            network = in_double(module.backbone.network)
            grid = torch.linspace(0, 3, GRID, dtype=torch.float64, device=module.device)[:, None]
            soft = (grid - threshold).clamp(min=0)
            found = network(grid)
            at_one = network(torch.ones_like(grid[:1])).item()
            values, misfit = prior(network, grid, self.steps)
        values = values - values[0]
        metrics = {
            "prox_at_1": at_one,
            "soft_error": (found - soft).abs().mean(),
            "prior_at_3": values[-1],
            "inversion_error": misfit.max(),
        }
        module.log_dict({f"test/{name}": float(value) for name, value in metrics.items()})
        if self.figures:
            curves = [
                ("f(y)", found[:, 0], soft[:, 0], "soft thresholding"),
                ("R(x)", values, threshold * grid[:, 0], "Laplace"),
            ]
            log_picture(
                trainer,
                "laplace_prior",
                "test/laplace_prior",
                lambda path: draw_curves(path, grid[:, 0].cpu(), curves),
            )


class ImagePrior(_Measure):
    """R of test images, clean and disturbed: whether it grows with noise and with blur, and along lines between images.

    Logs `test/prior_noise` and `test/prior_blur`, the shares of images whose R grows with each level;
    `test/prior_midpoint`, the share of pairs whose mean has a higher R than both; `test/noise_<i>`, `test/blur_<i>` and
    `test/mix_<i>`, the mean of R at level i from 0, less that of the clean images; and `test/inversion_error`, the
    largest over all of these images of the root mean square of f(v) − x over the pixels. Levels, blur and clipping are
    the released code's; image i is mixed with the last but i, in shares of 0, 1/4, 1/2, 3/4 and 1.

    Args:
        images: how many, the first of the test split; an even number.
        noise: standard deviations, rising; noisy images are clipped to [0, 1].
        blur: standard deviations in pixels, rising; 0: none.
        steps: of L-BFGS.
        figures: draws the mean of R at each level to figures/image_prior.png.
    """

    name = "image_prior"
    samples = "pictures: dataset=mnist5k_pictures"

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 3

    def __init__(
        self,
        *,
        images: int = 50,
        noise: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3),
        blur: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0),
        steps: int = 500,
        figures: bool = True,
    ):
        noise, blur = list(noise), list(blur)
        if images < 2 or images % 2 or steps < 1:
            raise UserError(
                f"callbacks.image_prior.images={images} must be even, and steps={steps} at least 1."
            )
        for name, levels in (("noise", noise), ("blur", blur)):
            if len(levels) < 3 or levels != sorted(set(levels)) or levels[0] != 0:
                raise UserError(
                    f"callbacks.image_prior.{name}={levels}: three or more rising numbers from 0."
                )
        self.images, self.noise, self.blur = images, noise, blur
        self.steps, self.figures = steps, figures

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        clean = trainer.datamodule.sets.test.fields["image"][: self.images]
        clean = clean[: len(clean) // 2 * 2].double().to(module.device)
        noise = torch.randn(clean.shape, generator=seeding.generator(0, "prior noise"), dtype=torch.float64)
        noise = noise.to(clean)
        pairs = len(clean) // 2
        one, other = clean[:pairs], clean.flip(0)[:pairs]
        sets = {
            "noise": [(clean + level * noise).clamp(0, 1) for level in self.noise],
            "blur": [blurred(clean, level) for level in self.blur],
            "mix": [(1 - share) * one + share * other for share in MIX],
        }
        with torch.inference_mode(False), torch.no_grad():
            network = in_double(module.backbone.network)
            found = {
                name: [prior(network, x.clone(), self.steps) for x in levels] for name, levels in sets.items()
            }
        values = {name: torch.stack([value for value, _ in levels]) for name, levels in found.items()}
        misfit = torch.cat([misfit for levels in found.values() for _, misfit in levels])
        mix = values["mix"]
        metrics = {
            "prior_noise": rising(values["noise"]),
            "prior_blur": rising(values["blur"]),
            "prior_midpoint": (mix[2] > torch.maximum(mix[0], mix[-1])).double().mean(),
            "inversion_error": misfit.max(),
        }
        zero = values["noise"][0].mean()
        for kind, levels in values.items():
            metrics |= {f"{kind}_{i}": value.mean() - zero for i, value in enumerate(levels)}
        module.log_dict({f"test/{name}": float(value) for name, value in metrics.items()})
        if self.figures:
            lowest = min(value.min() for value in values.values())
            levels = {"noise": self.noise, "blur": self.blur, "mix": MIX}
            means = [
                (name, levels[name], (value - lowest).mean(1).cpu().tolist())
                for name, value in values.items()
            ]
            log_picture(trainer, "image_prior", "test/image_prior", lambda path: draw_levels(path, means))


def in_double(network: nn.Module) -> nn.Module:
    """A copy in float64 in evaluation mode."""
    return copy.deepcopy(network).double().eval()


def prior(network: ProximalNetwork, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(R(x), root mean square of f(v) − x), each (B,), by inversion."""
    v = invert(network.potential, x, steps=steps)
    misfit = (network(v) - x).flatten(1).square().mean(1).sqrt()
    return prior_of_output(network.potential, v, x), misfit


def rising(values: Tensor) -> Tensor:
    """Share of the images (columns) whose values grow with each level (row).

    >>> rising(torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])).item()
    0.5
    """
    return (values.diff(dim=0) > 0).all(dim=0).double().mean()


def blurred(image: Tensor, std: float) -> Tensor:
    """Images (B, C, H, W) after a Gaussian blur of this standard deviation in pixels; 0: as they are."""
    if std == 0:
        return image
    from scipy.ndimage import gaussian_filter

    found = gaussian_filter(image.cpu().numpy(), (0, 0, std, std))  # mirrored at the edges
    return torch.from_numpy(found).to(image)


def draw_curves(path: Path, grid: Tensor, curves: list[tuple[str, Tensor, Tensor, str]]) -> None:
    """Writes the picture: of each curve what was learned and what is exact."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, (name, found, exact, label) in zip(figure.subplots(1, len(curves)), curves, strict=True):
        axes.plot(grid, exact, "k--", label=label)
        axes.plot(grid, found.cpu(), label="learned")
        axes.set_title(name)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def draw_levels(path: Path, means: list[tuple[str, list[float], list[float]]]) -> None:
    """Writes the picture: the mean of R, less the least R of any image, at each level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, levels, values) in zip(figure.subplots(1, len(means)), means, strict=True):
        axes.plot(levels, values, "o-")
        axes.set(xlabel=name, ylabel="mean R")
    figure.savefig(path, dpi=150)
