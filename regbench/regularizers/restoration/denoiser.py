"""A denoiser trained by the squared error."""

import torch.nn.functional as F
from torch import Tensor

from regbench.registry import register
from regbench.regularizers.restoration.base import DenoisingMethod


@register("denoiser", task="restoration", paper=None)
class Denoiser(DenoisingMethod):
    """A network of any kind that removes Gaussian noise, trained by the squared error: the posterior mean."""

    def denoising_loss(self, found: Tensor, image: Tensor) -> Tensor:
        return F.mse_loss(found, image)
