"""What the variational methods share: Gaussian latents."""

import torch
import torch.nn.functional as F
from torch import Tensor

from regbench.regularizers.disentanglement.base import AutoencoderMethod, Latent


class GaussianAutoencoder(AutoencoderMethod):
    """Latents N(μ, σ²) with σ = softplus of the encoder's second half: drawn in training, μ in evaluation."""

    outputs_per_latent = 2

    def latent(self, code: Tensor) -> Latent:
        mean, deviation = code.chunk(2, dim=1)
        deviation = F.softplus(deviation)
        z = mean
        if self.training:
            noise = torch.randn(mean.shape, generator=self.generator("latent"), dtype=mean.dtype)
            z = mean + deviation * noise.to(mean.device)
        return Latent(z, mean, {"deviation": deviation})
