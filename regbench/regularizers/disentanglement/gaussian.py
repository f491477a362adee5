"""What the variational methods share: Gaussian latents."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.distributed import own_draw
from regbench.regularizers.disentanglement.base import AutoencoderMethod, Latent


class GaussianAutoencoder(AutoencoderMethod):
    """Latents N(μ, σ²) with σ = softplus of the encoder's second half: drawn in training, μ in evaluation.

    Args:
        beta: a method's weight of the divergence from the prior, or of a part of it, at least 0.
    """

    outputs_per_latent = 2

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        latents: int = 8,
        beta: float = 3.0,
        weight_decay: float = 0.0,
        clip_value: float | None = 1.0,
        **base,
    ):
        super().__init__(
            backbone, num_classes, latents=latents, weight_decay=weight_decay, clip_value=clip_value, **base
        )
        if beta < 0:
            raise UserError(f"regularizer.beta={beta} must be at least 0.")
        self.beta = beta

    def latent(self, code: Tensor) -> Latent:
        mean, deviation = code.chunk(2, dim=1)
        deviation = F.softplus(deviation)
        z = mean
        if self.training:
            options = {"generator": self.generator("latent"), "dtype": mean.dtype}
            noise = own_draw(lambda n: torch.randn(n, mean.shape[1], **options), len(mean))
            z = mean + deviation * noise.to(mean.device)
        return Latent(z, mean, {"deviation": deviation})
