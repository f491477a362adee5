"""Restoration by plug and play: a trained denoiser in the place of the proximal operator."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from regbench.backbones.backbone import as_backbone
from regbench.registry import register
from regbench.regularizers.restoration.base import DEGRADATION, PlugAndPlayMethod, known_prior


@register("plug_and_play", task="restoration", paper=None)
class PlugAndPlay(PlugAndPlayMethod):
    """Proximal gradient descent, or ADMM, with a trained denoiser in the place of the proximal operator.

    Args:
        denoiser: the trained network; `artifacts.denoiser` says which run makes it.
        degradation, solver, eta, rho, steps: see `PlugAndPlayMethod`.
    """

    artifacts: ClassVar[tuple[str, ...]] = ("denoiser",)

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        denoiser: nn.Module,
        degradation: Mapping[str, Any] = DEGRADATION,
        solver: str = "pgd",
        eta: float = 0.9,
        rho: float = 1.1,
        steps: int = 20,
        **base,
    ):
        super().__init__(
            backbone,
            num_classes,
            degradation=degradation,
            solver=solver,
            eta=eta,
            rho=rho,
            steps=steps,
            **base,
        )
        # A copy: float64 is this method's own.
        self.denoiser = copy.deepcopy(as_backbone(denoiser)).double().eval().requires_grad_(False)

    def prox(self, v: Tensor) -> Tensor:
        return self.denoiser(v)

    def prior(self, v: Tensor, x: Tensor) -> Tensor | None:
        return known_prior(self.denoiser.network, v, x)
