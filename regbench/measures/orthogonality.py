"""How near the convolutions of a network are to orthogonal (callback `orthogonality`)."""

import pytorch_lightning as pl
import torch
from torch import nn

from regbench.errors import UserError
from regbench.functional.orthogonality import conv_orthogonality, singular_values, why_undefined


class Orthogonality(pl.Callback):
    """Logs at the test, over the convolutions with one group, no dilation and an odd square kernel:

    - test/orth_sum, test/orth_max: the sum and the largest of L_orth;
    - test/sigma_min, test/sigma_max: the smallest and the largest singular value of a layer's matrix, with circular
      padding and `size` output pixels a side;
    - test/err_f_max, test/err_s_max: the largest Frobenius and spectral norm of A Aᵀ − I (Aᵀ A − I).

    The weights are those that the layers use, i.e. with any reparameterisation, in float64.

    Args:
        size: N, output pixels a side; the input then has N · stride.
    """

    def __init__(self, size: int = 8):
        if size < 5:
            raise UserError(
                f"callbacks.orthogonality.size={size}: take 5 or more, 2k − 1 pixels for 3 × 3 kernels."
            )
        self.size = size

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        terms, spectra, errors_f, errors_s = [], [], [], []
        for layer in module.backbone.modules():
            if not isinstance(layer, nn.Conv2d) or why_undefined(layer) is not None:
                continue
            kernel, stride = layer.weight.detach().double().cpu(), layer.stride[0]
            terms.append(conv_orthogonality(kernel, stride))
            sigma = singular_values(kernel, stride, self.size)
            spectra.append(sigma.flatten())
            difference = (sigma.square() - 1).abs()
            errors_f.append(difference.square().sum().sqrt())
            errors_s.append(difference.max())
        if not terms:
            raise UserError(
                "callbacks=orthogonality measures convolutions, and this network has none that it can."
            )
        terms, spectrum = torch.stack(terms), torch.cat(spectra)
        values = {
            "orth_sum": terms.sum(),
            "orth_max": terms.max(),
            "sigma_min": spectrum.min(),
            "sigma_max": spectrum.max(),
            "err_f_max": max(errors_f),
            "err_s_max": max(errors_s),
        }
        module.log_dict({f"test/{name}": value.float() for name, value in values.items()})
