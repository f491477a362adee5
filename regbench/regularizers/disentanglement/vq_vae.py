"""VQ-VAE: latents that are vectors of one shared codebook (van den Oord et al. 2017), a slot of the code for each."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.registry import Paper, register
from regbench.regularizers.disentanglement.base import AutoencoderMethod, Latent


def nearest(c: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of `vectors` (K, d) to each of c (B, n, d): (vectors (B, n, d), their places int64 (B, n)).

    >>> nearest(torch.tensor([[[0.9, 0.2]]]), torch.eye(2))
    (tensor([[[1., 0.]]]), tensor([[0]]))
    """
    # |c − v|² less |c|², which all v share; in half precision the product would mistake one vector for another.
    with torch.no_grad(), torch.autocast(c.device.type, enabled=False):
        dtype = torch.promote_types(c.dtype, torch.float32)
        v = vectors.to(dtype)
        index = (v.square().sum(1) - 2 * c.to(dtype) @ v.T).argmin(-1)
    return vectors[index], index


@register(
    "vq_vae",
    task="disentanglement",
    paper=Paper(
        title="Neural Discrete Representation Learning",
        authors="Aaron van den Oord, Oriol Vinyals, Koray Kavukcuoglu",
        year=2017,
        venue="NeurIPS",
        arxiv="1711.00937",
    ),
)
class VQVAE(AutoencoderMethod):
    """Codes of vectors from one shared codebook reconstruct as well as continuous ones.

    Each latent is one of `vectors` vectors of `size` numbers; the gradient passes straight through, and the codebook
    learns by gradient. Measured are the vectors' places. Source: latents/vector_quantized.py and models/vqvae.py of
    kylehkhsu/latent_quantization.

    Args:
        latents: number of latents, each a vector.
        vectors: of the codebook, which all latents share.
        size: numbers of a vector.
        quantisation: weight of the mean of (stopgrad(c) − q)².
        commitment: weight of the mean of (c − stopgrad(q))².
        weight_decay: of weights, decoupled.
        clip_value: largest size of an entry of the weights' gradients; None clips none.
    """

    discrete = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        latents: int = 8,
        vectors: int = 512,
        size: int = 64,
        quantisation: float = 1.0,
        commitment: float = 0.25,
        weight_decay: float = 0.01,
        clip_value: float | None = 1.0,
        **base,
    ):
        if min(vectors, size) < 1 or min(quantisation, commitment) < 0:
            raise UserError(
                f"regularizer.vectors={vectors} and regularizer.size={size} must be at least 1, "
                f"regularizer.quantisation={quantisation} and regularizer.commitment={commitment} at least 0."
            )
        self.outputs_per_latent = self.inputs_per_latent = size
        super().__init__(
            backbone, num_classes, latents=latents, weight_decay=weight_decay, clip_value=clip_value, **base
        )
        self.quantisation, self.commitment = quantisation, commitment
        limit = math.sqrt(3 / size)  # a vector's expected squared length is then 1
        self.vectors = nn.Parameter(torch.empty(vectors, size).uniform_(-limit, limit))

    def latent(self, code: Tensor) -> Latent:
        c = code.unflatten(1, (self.latents, -1))
        q, index = nearest(c, self.vectors)
        z = (c + (q - c).detach()).flatten(1)
        return Latent(z, index, {"continuous": c, "quantised": q})

    def penalty(self, latent: Latent, image: Tensor) -> Tensor:
        c, q = latent.parts["continuous"], latent.parts["quantised"]
        return self.quantisation * F.mse_loss(q, c.detach()) + self.commitment * F.mse_loss(c, q.detach())
