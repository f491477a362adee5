"""A plain autoencoder."""

from torch import nn

from regbench.registry import register
from regbench.regularizers.disentanglement.base import AutoencoderMethod


@register("ae", task="disentanglement")
class PlainAutoencoder(AutoencoderMethod):
    """A plain autoencoder: what the latents of the other methods are compared with.

    Args:
        latents: number of latents.
        weight_decay: of weights, decoupled.
        clip_value: largest size of an entry of the weights' gradients; None clips none.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        latents: int = 8,
        weight_decay: float = 0.001,
        clip_value: float | None = 1.0,
        **base,
    ):
        super().__init__(
            backbone, num_classes, latents=latents, weight_decay=weight_decay, clip_value=clip_value, **base
        )
