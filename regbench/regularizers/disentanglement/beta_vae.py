"""β-VAE: a variational autoencoder with more weight on the divergence from the prior (Higgins et al. 2017)."""

from torch import Tensor

from regbench.registry import Paper, register
from regbench.regularizers.disentanglement.base import Latent
from regbench.regularizers.disentanglement.gaussian import GaussianAutoencoder


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = −log σ + (μ² + σ² − 1) / 2, summed over the latents: (B,), in nats.

    >>> import torch
    >>> divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))  # 1/2 + (−log 2 + 3/2)
    tensor([1.3069])
    """
    return (-deviation.log() + (mean**2 + deviation**2 - 1) / 2).sum(1)


@register(
    "beta_vae",
    task="disentanglement",
    paper=Paper(
        title="beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework",
        authors="Irina Higgins, Loic Matthey, Arka Pal, Christopher Burgess, Xavier Glorot, Matthew Botvinick, "
        "Shakir Mohamed, Alexander Lerchner",
        year=2017,
        venue="ICLR",
    ),
)
class BetaVAE(GaussianAutoencoder):
    """A variational autoencoder whose divergence from an independent prior has a weight β above 1 learns latents that
    each follow one factor.

    Args:
        latents: number of latents.
        beta: β, weight of the divergence against the sum of the pixels' cross entropies.
        weight_decay: of weights, decoupled.
        clip_value: largest size of an entry of the weights' gradients; None clips none.
    """

    def penalty(self, latent: Latent, image: Tensor) -> Tensor:
        # The cross entropy is the mean over the pixels, so the divergence is divided by their number.
        kl = divergence(latent.measured, latent.parts["deviation"]).mean()
        return self.beta * kl / image[0].numel()
