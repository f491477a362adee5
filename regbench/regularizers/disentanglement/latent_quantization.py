"""QLAE: an autoencoder whose latents each take one of few learned values, with high weight decay (Hsu et al. 2023).

Source of every equation: the released code, https://github.com/kylehkhsu/latent_quantization (models/quantized_ae.py,
models/ae.py). The quantisation itself is in functional/quantisation.py.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional.quantisation import first_codebook, quantise, straight_through
from regbench.registry import Paper, register
from regbench.regularizers.disentanglement.base import AutoencoderMethod, Latent

CODEBOOKS = ("latent", "global")
DECAYS = ("weights", "all")


@register(
    "latent_quantization",
    task="disentanglement",
    paper=Paper(
        title="Disentanglement via Latent Quantization",
        authors="Kyle Hsu, Will Dorrell, James C. R. Whittington, Jiajun Wu, Chelsea Finn",
        year=2023,
        venue="NeurIPS",
        arxiv="2305.18378",
        code="https://github.com/kylehkhsu/latent_quantization",
    ),
)
class LatentQuantization(AutoencoderMethod):
    """Latents that each take one of ten learned values, together with high weight decay, are more modular and explicit
    (InfoM, InfoE) than those of autoencoders, β-VAE, β-TCVAE and BioAE, at no loss of PSNR.

    With q the quantised code and c the encoder's, the decoder gets c + stopgrad(q − c), and the loss is
    BCE + quantisation · mean (stopgrad(c) − q)² + commitment · mean (c − stopgrad(q))². Measured are the
    values' places.

    Args:
        latents: number of latents; twice the number of factors in the paper.
        values: values of each latent.
        codebook: latent: each latent has its own values; global: all share one row (an ablation).
        learn_codebook: false: the values stay evenly spaced from −1/2 to 1/2.
        quantisation: weight of the term that moves the values to the codes.
        commitment: weight of the term that moves the codes to the values.
        weight_decay: of weights, decoupled; 0: an ablation.
        decay: weights: biases and codebook are neither decayed nor clipped (released code); all: they are.
        clip_value: largest size of an entry of the weights' gradients; None clips none.
    """

    discrete = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        latents: int = 8,
        values: int = 10,
        codebook: str = "latent",
        learn_codebook: bool = True,
        quantisation: float = 0.01,
        commitment: float = 0.01,
        weight_decay: float = 0.1,
        decay: str = "weights",
        clip_value: float | None = 1.0,
        **base,
    ):
        super().__init__(
            backbone, num_classes, latents=latents, weight_decay=weight_decay, clip_value=clip_value, **base
        )
        for name, value, known in (("codebook", codebook, CODEBOOKS), ("decay", decay, DECAYS)):
            if value not in known:
                raise unknown(f"regularizer.{name}", str(value), known)
        if values < 2 or min(quantisation, commitment) < 0:
            raise UserError(
                f"regularizer.values={values} must be at least 2, regularizer.quantisation={quantisation} and "
                f"regularizer.commitment={commitment} at least 0."
            )
        self.quantisation, self.commitment, self.decay = quantisation, commitment, decay
        rows = latents if codebook == "latent" else 1
        self.codebook = nn.Parameter(first_codebook(rows, values), requires_grad=learn_codebook)

    def latent(self, code: Tensor) -> Latent:
        q, index = quantise(code, self.codebook)
        return Latent(straight_through(code, q), index, {"continuous": code, "quantised": q})

    def penalty(self, latent: Latent, image: Tensor) -> Tensor:
        c, q = latent.parts["continuous"], latent.parts["quantised"]
        return self.quantisation * F.mse_loss(q, c.detach()) + self.commitment * F.mse_loss(c, q.detach())

    def is_weight(self, name: str) -> bool:
        return super().is_weight(name) if self.decay == "weights" else True
