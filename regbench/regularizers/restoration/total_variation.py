"""Restoration with total variation as the prior."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regbench.errors import UserError
from regbench.registry import register
from regbench.regularizers.restoration.base import DEGRADATION, PlugAndPlayMethod

INNER = 50  # steps of the dual for one proximal operator; it starts from the last one's dual


@register("total_variation", task="restoration", paper=None)
class TotalVariation(PlugAndPlayMethod):
    """Proximal gradient descent, or ADMM, with the proximal operator of `weight` times the total variation.

    Args:
        weight: of the sum over pixels of the length of the gradient. With admm rho multiplies it.
        degradation, solver, eta, rho, steps: see `PlugAndPlayMethod`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        weight: float = 0.02,
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
        if weight <= 0:
            raise UserError(f"regularizer.weight={weight} must be positive.")
        self.weight = weight

    def on_test_start(self) -> None:
        from deepinv.models import TVDenoiser

        self._operator = TVDenoiser(n_it_max=INNER, crit=0.0, ths=self.weight)

    def on_test_batch_start(self, batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._operator.restart = True

    def prox(self, v: Tensor) -> Tensor:
        return self._operator(v)
