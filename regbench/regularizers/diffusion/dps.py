"""DPS: sampling the posterior with the gradient of the data fit, taken through the network (Chung et al. 2023)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.diffusion import ddim_shares, denoised
from regbench.registry import Paper, register
from regbench.regularizers.diffusion.base import Draws, RestorationMethod, backwards
from regbench.regularizers.diffusion.operators import DEGRADATION


def guidance(xt: Tensor, y: Tensor, measured: Tensor) -> Tensor:
    """∇_xt |y − A(x_0)|² / |y − A(x_0)| of each image, where x_0 is a function of x_t. So RED-diff's code has it:
    twice the gradient of the norm, which DPS's own code takes.

    Args:
        xt: (B, …), what `measured` depends on.
        y, measured: (B, …), the measurements and A(x_0).

    >>> xt = torch.tensor([[0.0, 0.0]], requires_grad=True)
    >>> guidance(xt, torch.tensor([[3.0, 4.0]]), xt)  # −2 (3, 4) / 5
    tensor([[-1.2000, -1.6000]])
    """
    squared = (y - measured).pow(2).flatten(1).sum(1)
    (gradient,) = torch.autograd.grad(squared.sum(), xt)
    norm = squared.detach().sqrt().clamp(min=torch.finfo(xt.dtype).tiny)
    return gradient / norm.view(-1, *[1] * (xt.ndim - 1))


@register(
    "dps",
    task="restoration",
    paper=Paper(
        title="Diffusion Posterior Sampling for General Noisy Inverse Problems",
        authors="Hyungjin Chung, Jeongsol Kim, Michael T. McCann, Marc L. Klasky, Jong Chul Ye",
        year=2023,
        venue="ICLR",
        arxiv="2209.14687",
        code="https://github.com/DPS2022/diffusion-posterior-sampling",
    ),
)
class DPS(RestorationMethod):
    """A diffusion model samples images that explain given measurements, linear or not, when each step is moved along
    the gradient of the data fit of the denoised image.

    As RED-diff's code has it: the start is the pseudo-inverse brought to the last time, the steps are DDIM's.

    Args:
        zeta: length of the guidance's step, see `guidance`: half of what DPS's own code calls the scale.
        eta: share of fresh noise in a step, from 0 to 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        prior: nn.Module,
        degradation: Mapping[str, Any] = DEGRADATION,
        steps: int = 100,
        zeta: float = 0.5,
        eta: float = 0.5,
        **base,
    ):
        super().__init__(backbone, num_classes, prior=prior, degradation=degradation, steps=steps, **base)
        if zeta < 0 or not 0 <= eta <= 1:
            raise UserError(f"regularizer.zeta={zeta} must be at least 0, regularizer.eta={eta} from 0 to 1.")
        self.zeta, self.eta = zeta, eta

    def restore(self, y: Tensor, operator: Any, draws: Draws) -> Tensor:
        xt = self.noisy_start(operator.A_dagger(y), draws)
        for t, s in backwards(self.times):
            xt = xt.detach().requires_grad_(True)
            noise = self.predict(xt, t)
            clean = denoised(xt, noise, self.bar(t))
            step = guidance(xt, y, operator.A(clean))
            fresh, kept = ddim_shares(self.bar(t), self.bar(s), self.eta)
            noise, clean = noise.detach(), clean.detach()
            xt = math.sqrt(self.bar(s)) * clean + fresh * draws.normal() + kept * noise - self.zeta * step
        return xt
