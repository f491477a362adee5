"""DDRM: sampling the posterior in the spectral space of a linear degradation (Kawar et al. 2022)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.diffusion import denoised, inverse_snr
from regbench.registry import Paper, register
from regbench.regularizers.diffusion.base import Draws, RestorationMethod, backwards
from regbench.regularizers.diffusion.operators import DEGRADATION


def spectral_step(
    clean: Tensor,
    noise: Tensor,
    measured: Tensor,
    values: Tensor,
    sigma: float,
    sigma_y: float,
    fresh: Tensor,
    eta: float,
    eta_b: float,
) -> Tensor:
    """The next x_t / sqrt(ab_t) in spectral space, at the noise level sigma (equations 7 and 8 of Kawar et al.):

    - not measured, s = 0:      clean + sqrt(1 − eta²) sigma noise + eta sigma z
    - sigma < sigma_y / s:      clean + sqrt(1 − eta²) sigma (measured − clean) s / sigma_y + eta sigma z
    - sigma ≥ sigma_y / s:      (1 − eta_b) clean + eta_b measured + sqrt(sigma² − (sigma_y / s)² eta_b²) z

    Args:
        clean: Vᵀ x_0, (B, C, H, W); noise: Vᵀ eps.
        measured: Uᵀ y / s, as clean; 0 where s is 0.
        values: s, broadcasts with clean.
        sigma_y: of the measurements' noise, in units of pixels in [−1, 1].
        fresh: z, standard normal, as clean.

    >>> s, at = torch.tensor([0.0, 1.0, 0.5]), torch.ones(3)
    >>> spectral_step(2 * at, at, 4 * at, s, 0.5, 0.4, at, eta=0.6, eta_b=1.0)
    tensor([2.7000, 4.3000, 3.3000])
    """
    level = torch.where(values > 0, sigma_y / values, torch.inf)
    kept = math.sqrt(1 - eta**2) * sigma
    unknown = clean + kept * noise + eta * sigma * fresh
    less = clean + (kept * (measured - clean) / level if sigma_y else 0.0) + eta * sigma * fresh
    spread = (sigma**2 - (level * eta_b) ** 2).clamp(min=0).sqrt()
    more = (1 - eta_b) * clean + eta_b * measured + spread * fresh
    return torch.where(values == 0, unknown, torch.where(sigma < level, less, more))


@register(
    "ddrm",
    task="restoration",
    paper=Paper(
        title="Denoising Diffusion Restoration Models",
        authors="Bahjat Kawar, Michael Elad, Stefano Ermon, Jiaming Song",
        year=2022,
        venue="NeurIPS",
        arxiv="2201.11793",
        code="https://github.com/bahjat-kawar/ddrm",
    ),
)
class DDRM(RestorationMethod):
    """In the spectral space of a linear degradation a diffusion model restores images in twenty steps, without a
    gradient through the network.

    Degradations that are not linear are refused.

    Args:
        eta: share of fresh noise in a step where the measurements are noisier than the image (sigma < sigma_y / s), or
            nothing is measured.
        eta_b: weight of the measurements where the image is noisier than they are.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        prior: nn.Module,
        degradation: Mapping[str, Any] = DEGRADATION,
        steps: int = 20,
        eta: float = 0.85,
        eta_b: float = 1.0,
        **base,
    ):
        super().__init__(backbone, num_classes, prior=prior, degradation=degradation, steps=steps, **base)
        if not 0 <= eta <= 1 or not 0 <= eta_b <= 1:
            raise UserError(f"regularizer.eta={eta} and regularizer.eta_b={eta_b} must lie in [0, 1].")
        if self.degradation["kind"] == "hdr":
            raise UserError(
                "ddrm needs a linear degradation; regularizer.degradation.kind=hdr is none. Take red_diff, "
                "dps or pigdm."
            )
        self.eta, self.eta_b = eta, eta_b

    def restore(self, y: Tensor, operator: Any, draws: Draws) -> Tensor:
        values, sigma_y = operator.mask, 2 * self.degradation["sigma_y"]
        measured = operator.U_adjoint(y)
        measured = torch.where(values > 0, measured / values, 0.0)
        sigma = inverse_snr(self.bar(self.times[-1]))
        # At the start nothing is denoised yet: what is measured is y with noise, the rest is noise.
        level = torch.where(values > 0, sigma_y / values, torch.inf)
        spread = torch.where(level < sigma, (sigma**2 - level**2).clamp(min=0).sqrt(), sigma)
        x = operator.V(torch.where(level < sigma, measured, 0.0) + spread * draws.normal())
        with torch.no_grad():
            for t, s in backwards(self.times):
                xt = math.sqrt(self.bar(t)) * x
                noise = self.predict(xt, t)
                clean = operator.V_adjoint(denoised(xt, noise, self.bar(t)))
                sigma = inverse_snr(self.bar(s))
                x = operator.V(
                    spectral_step(clean, operator.V_adjoint(noise), measured, values, sigma, sigma_y,
                                  draws.normal(), self.eta, self.eta_b)
                )  # fmt: skip
        return x
