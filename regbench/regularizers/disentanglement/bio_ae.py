"""BioAE: an autoencoder whose latents are non-negative and frugal, as firing rates are (Whittington et al. 2023)."""

import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.registry import Paper, register
from regbench.regularizers.disentanglement.base import AutoencoderMethod, Latent


def biological_cost(z: Tensor, nonnegative: float, activity: float) -> Tensor:
    """nonnegative · mean max(−z, 0) + activity · mean z², over batch and latents.

    Source: models/bio_ae.py of kylehkhsu/latent_quantization.

    >>> import torch
    >>> biological_cost(torch.tensor([[-1.0, 3.0]]), 1.0, 0.1)  # 1/2 + 0.1 · 10/2
    tensor(1.)
    """
    return nonnegative * F.relu(-z).mean() + activity * z.square().mean()


@register(
    "bio_ae",
    task="disentanglement",
    paper=Paper(
        title="Disentanglement with Biological Constraints: A Theory of Functional Cell Types",
        authors="James C. R. Whittington, Will Dorrell, Surya Ganguli, Timothy E. J. Behrens",
        year=2023,
        venue="ICLR",
        arxiv="2210.01768",
    ),
)
class BioAE(AutoencoderMethod):
    """Latents that pay for being negative and for being active each come to follow one factor.

    Args:
        latents: number of latents.
        nonnegative: weight of the mean of max(−z, 0).
        activity: weight of the mean of z².
        weight_decay: of weights, decoupled.
        clip_value: largest size of an entry of the weights' gradients; None clips none.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        latents: int = 8,
        nonnegative: float = 1.0,
        activity: float = 0.01,
        weight_decay: float = 1e-4,
        clip_value: float | None = 1.0,
        **base,
    ):
        super().__init__(
            backbone, num_classes, latents=latents, weight_decay=weight_decay, clip_value=clip_value, **base
        )
        if min(nonnegative, activity) < 0:
            raise UserError(
                f"regularizer.nonnegative={nonnegative} and regularizer.activity={activity} must be at least 0."
            )
        self.nonnegative, self.activity = nonnegative, activity

    def penalty(self, latent: Latent, image: Tensor) -> Tensor:
        return biological_cost(latent.z, self.nonnegative, self.activity)
