"""β-TCVAE: a variational autoencoder that weights the dependence between latents only (Chen et al. 2018)."""

import math

from torch import Tensor
from torch.distributions import Normal

from regbench.errors import UserError
from regbench.functional.distributed import gather_rows
from regbench.registry import Paper, register
from regbench.regularizers.disentanglement.base import Latent
from regbench.regularizers.disentanglement.gaussian import GaussianAutoencoder


def decomposed_divergence(
    z: Tensor, mean: Tensor, deviation: Tensor, train_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(index-code mutual information, total correlation, dimension-wise KL), scalars in nats.

    Their sum is E KL(q(z|x) ‖ p(z)), with p(z) standard normal.

    q(z) and its marginals are estimated on the batch by minibatch weighted sampling (models/tcvae.py of
    kylehkhsu/latent_quantization):
    log q(z_i) ≈ logsumexp_j Σ_k log q(z_ik | x_j) − log(B N), and log Π_k q(z_ik) ≈ Σ_k [logsumexp_j … − log(B N)].

    Args:
        z: (B, n), drawn from N(mean, deviation²).
        train_size: N, number of training samples.

    >>> import torch
    >>> z = torch.zeros(1, 2)
    >>> [round(t.item(), 4) for t in decomposed_divergence(z, z, torch.ones(1, 2), 10)]  # log 10, log 10, −2 log 10
    [2.3026, 2.3026, -4.6052]
    """
    pairs = Normal(mean, deviation).log_prob(z[:, None])  # (i, j, k): log q(z_ik | x_j)
    own = Normal(mean, deviation).log_prob(z).sum(1)
    prior = Normal(0.0, 1.0).log_prob(z).sum(1)
    offset = math.log(len(z) * train_size)
    joint = pairs.sum(2).logsumexp(1) - offset
    marginals = (pairs.logsumexp(1) - offset).sum(1)
    return (own - joint).mean(), (joint - marginals).mean(), (marginals - prior).mean()


@register(
    "beta_tcvae",
    task="disentanglement",
    paper=Paper(
        title="Isolating Sources of Disentanglement in Variational Autoencoders",
        authors="Ricky T. Q. Chen, Xuechen Li, Roger Grosse, David Duvenaud",
        year=2018,
        venue="NeurIPS",
        arxiv="1802.04942",
    ),
)
class BetaTCVAE(GaussianAutoencoder):
    """A weight β on the total correlation alone disentangles as β-VAE does and reconstructs better.

    Args:
        latents: number of latents.
        beta: β, weight of the total correlation; the other two parts of the divergence have weight 1.
        weight_decay: of weights, decoupled.
        clip_value: largest size of an entry of the weights' gradients; None clips none.
    """

    train_size = 0  # number of training images; `on_data` sets it

    def on_data(self, train_size: int) -> None:
        self.train_size = train_size

    def penalty(self, latent: Latent, image: Tensor) -> Tensor:
        if not self.train_size:
            raise UserError("beta_tcvae needs the number of training images: call on_data(number) first.")
        # q(z) is estimated on the batch of all processes together.
        rows = latent.z, latent.measured, latent.parts["deviation"]
        information, correlation, kl = decomposed_divergence(*map(gather_rows, rows), self.train_size)
        self.watch("total_correlation", correlation)
        return (information + self.beta * correlation + kl) / image[0].numel()
