"""PiGDM: sampling the posterior with guidance by the pseudo-inverse (Song et al. 2023)."""

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


def pseudo_inverse_guidance(xt: Tensor, clean: Tensor, gap: Tensor) -> Tensor:
    """g = (∂x_0 / ∂x_t)ᵀ (A⁺ y − A⁺ A x_0): the gap, taken back through the network.

    Args:
        xt: (B, …), what `clean`, x_0, depends on.
        gap: A⁺ y − A⁺ A x_0, as `clean`; no gradient flows into it.

    >>> xt = torch.tensor([[1.0, 1.0]], requires_grad=True)
    >>> pseudo_inverse_guidance(xt, 3 * xt, torch.tensor([[0.5, 0.0]]))
    tensor([[1.5000, 0.0000]])
    """
    (gradient,) = torch.autograd.grad((gap.detach() * clean).sum(), xt)
    return gradient


@register(
    "pigdm",
    task="restoration",
    paper=Paper(
        title="Pseudoinverse-Guided Diffusion Models for Inverse Problems",
        authors="Jiaming Song, Arash Vahdat, Morteza Mardani, Jan Kautz",
        year=2023,
        venue="ICLR",
        code="https://github.com/NVlabs/RED-diff",
    ),
)
class PiGDM(RestorationMethod):
    """Guidance by the pseudo-inverse lets a diffusion model solve inverse problems in few steps, also problems that
    can't be differentiated.

    As RED-diff's code has it: the start is the pseudo-inverse brought to the last time, the steps are DDIM's plus
    sqrt(ab_s ab_t) g. Of masked images the known pixels of x_0 are those of y, and g is 0 there. That code has no term
    for the measurements' noise, nor has this.

    Args:
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
        eta: float = 1.0,
        **base,
    ):
        super().__init__(backbone, num_classes, prior=prior, degradation=degradation, steps=steps, **base)
        if not 0 <= eta <= 1:
            raise UserError(f"regularizer.eta={eta} must lie in [0, 1].")
        self.eta = eta

    def restore(self, y: Tensor, operator: Any, draws: Draws) -> Tensor:
        start = operator.A_dagger(y)
        known = self.measured(operator)
        xt = self.noisy_start(start, draws)
        for t, s in backwards(self.times):
            xt = xt.detach().requires_grad_(True)
            noise = self.predict(xt, t)
            clean = denoised(xt, noise, self.bar(t))
            gap = start - operator.A_dagger(operator.A(clean.detach()))
            step = pseudo_inverse_guidance(xt, clean, gap)
            noise, clean = noise.detach(), clean.detach()
            if known is not None:
                clean, step = clean * (1 - known) + y * known, step * (1 - known)
            fresh, kept = ddim_shares(self.bar(t), self.bar(s), self.eta)
            guided = math.sqrt(self.bar(s) * self.bar(t)) * step
            xt = math.sqrt(self.bar(s)) * clean + fresh * draws.normal() + kept * noise + guided
        return xt
