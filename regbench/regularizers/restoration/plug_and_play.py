"""Restoration by plug and play: a trained denoiser in the place of the proximal operator."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regbench.backbones.backbone import as_backbone
from regbench.registry import register
from regbench.regularizers.restoration.base import DEGRADATION, PlugAndPlayMethod, known_prior


@register("plug_and_play", task="restoration", paper=None)
class PlugAndPlay(PlugAndPlayMethod):
    """Proximal gradient descent, or ADMM, with a trained denoiser in the place of the proximal operator.

    A learned proximal network works in float64, any other in float32, whatever accelerator.precision is.

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
        # A copy: it is changed here.
        self.denoiser = copy.deepcopy(as_backbone(denoiser)).eval().requires_grad_(False)
        # A prior is a difference of large numbers; convolutions in float64 take many times as long.
        self.precision = torch.float64 if hasattr(self.denoiser.network, "potential") else torch.float32
        self.denoiser.to(self.precision)

    def on_test_start(self) -> None:
        # Again: with accelerator.precision=bf16-true Lightning has converted all of the method.
        with torch.inference_mode(False):  # else no gradient could be taken, as a proximal network does
            self.denoiser.to(self.precision)

    def prox(self, v: Tensor) -> Tensor:
        return self.denoiser(v.to(self.precision)).to(v)

    def prior(self, v: Tensor, x: Tensor) -> Tensor | None:
        return known_prior(self.denoiser.network, v, x)
