"""Orthogonal convolutions: a penalty that is, up to a factor N², how far a convolution's matrix is from orthogonal.

Of the paper only the abstract was seen. The formulas are those of deel-lip (`LorthRegularizer`, by the authors' group)
and were checked against the layers' own matrices.
"""

import logging

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from regbench.errors import UserError, unknown
from regbench.functional.orthogonality import (
    conv_orthogonality,
    matrix_orthogonality,
    orthogonal_exists,
    orthogonality_norm,
    why_undefined,
)
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod

log = logging.getLogger("regbench")

FORMS = ("conv", "kernel", "ocnn")


def why_left_out(layer: _ConvNd) -> str | None:
    """Why a convolution gets no penalty, or None where it gets one. Padding is not looked at.

    >>> why_left_out(nn.Conv2d(8, 8, 3, groups=2))
    'its channels are grouped'
    """
    if not isinstance(layer, nn.Conv2d):
        return f"it is a {type(layer).__name__}, not a Conv2d"
    if (why := why_undefined(layer)) is not None:
        return why
    height, stride = layer.kernel_size[0], layer.stride[0]
    if not orthogonal_exists(layer.out_channels, layer.in_channels, height, stride):
        return "no orthogonal convolution of its sizes exists"
    return None


@register(
    "orthogonal_conv",
    task="classification",
    paper=Paper(
        title="Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks",
        authors="El Mehdi Achour, François Malgouyres, Franck Mamalet",
        year=2022,
        venue="JMLR",
        arxiv="2108.05623",
        code="https://github.com/deel-ai/deel-lip",
    ),
)
class OrthogonalConv(ClassificationMethod):
    """A penalty on kernels that is exactly the distance of a convolution from orthogonality, for images of any size,
    brings all singular values near 1 and makes the network more robust at little cost in accuracy.

    Convolutions that can't be orthogonal, and those for which the term is not defined (grouped, dilated, transposed,
    even or not square kernels), are left out and named in the log.

    Args:
        weight: λ, of the sum over the layers.
        form: conv (L_orth), kernel (the reshaped kernel's Gram matrix) or ocnn (Wang et al. 2020: norm, not squared).
        dense: whether linear layers but the classifier get ‖W Wᵀ − I‖² (of the smaller Gram matrix) too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        weight: float = 0.01,
        form: str = "conv",
        dense: bool = True,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if form not in FORMS:
            raise unknown("form of orthogonal_conv", form, FORMS)
        if weight < 0:
            raise UserError(
                f"orthogonal_conv needs weight >= 0 (0 is plain training); it got weight={weight}."
            )
        self.weight, self.form = weight, form
        network, head = self.backbone.network, self.backbone.classifier
        convolutions = {
            name: m for name, m in network.named_modules() if isinstance(m, _ConvNd) and m is not head
        }
        reasons = {name: why_left_out(layer) for name, layer in convolutions.items()}
        self.left_out = {name: why for name, why in reasons.items() if why}
        # Tuples, so that the layers are not registered here a second time.
        self._convolutions = tuple(
            (layer, layer.stride[0]) for name, layer in convolutions.items() if name not in self.left_out
        )
        self._linear = tuple(
            m for m in network.modules() if dense and isinstance(m, nn.Linear) and m is not head
        )
        listed = "; ".join(f"{name}: {why}" for name, why in self.left_out.items())
        if not self._convolutions and not self._linear:
            raise UserError(
                "orthogonal_conv finds no layer for its penalty in this network"
                + (f" ({listed})" if listed else "")
                + ". Take a backbone with convolutions (small_cnn, lipschitz_cnn, resnet18_cifar), or, for hidden "
                "linear layers, set dense=true."
            )
        if listed:
            log.info("orthogonal_conv leaves out convolutions: %s.", listed)

    def penalty(self) -> Tensor:
        device = self.backbone.classifier.weight.device
        with torch.autocast(device.type, enabled=False):  # a difference from I needs the digits of float32
            terms = [self._term(_single(layer.weight), stride) for layer, stride in self._convolutions]
            terms += [matrix_orthogonality(_single(layer.weight)) for layer in self._linear]
            return self.weight * torch.stack(terms).sum()

    def _term(self, kernel: Tensor, stride: int) -> Tensor:
        if self.form == "conv":
            return conv_orthogonality(kernel, stride)
        return matrix_orthogonality(kernel) if self.form == "kernel" else orthogonality_norm(kernel, stride)


def _single(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
