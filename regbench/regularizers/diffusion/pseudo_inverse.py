"""The pseudo-inverse of the measurements: what the other methods start from."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regbench.registry import register
from regbench.regularizers.diffusion.base import Draws, RestorationMethod
from regbench.regularizers.diffusion.operators import DEGRADATION


@register("pseudo_inverse", task="restoration", paper=None)
class PseudoInverse(RestorationMethod):
    """The image of least norm that fits the measurements: restoration without a prior."""

    artifacts = ()

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        degradation: Mapping[str, Any] = DEGRADATION,
        **base,
    ):
        super().__init__(backbone, num_classes, prior=nn.Identity(), degradation=degradation, **base)

    def restore(self, y: Tensor, operator: Any, draws: Draws) -> Tensor:
        return operator.A_dagger(y)
