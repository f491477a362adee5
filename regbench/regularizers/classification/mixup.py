"""Mixup: train on convex combinations of pairs of images and of their labels."""

from torch import Tensor, nn

from regbench.functional import mixing
from regbench.functional.mixing import Draw
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod


@register(
    "mixup",
    task="classification",
    paper=Paper(
        title="mixup: Beyond Empirical Risk Minimization",
        authors="Hongyi Zhang, Moustapha Cisse, Yann N. Dauphin, David Lopez-Paz",
        year=2018,
        venue="ICLR",
        arxiv="1710.09412",
        code="https://github.com/facebookresearch/mixup-cifar10",
    ),
)
class Mixup(ClassificationMethod):
    """Training on convex combinations of pairs of images and of their labels lowers the test error and makes
    the network behave more linearly between the training images.

    Args:
        alpha: the share of the image is drawn from Beta(alpha, alpha).
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, alpha: float = 1.0, **base):
        super().__init__(backbone, num_classes, **base)
        self.draw = mixing.bind("mixup", {"alpha": alpha})

    def mix(self, image: Tensor, label: Tensor) -> Draw:
        return self.draw(image, self.generator("mix"))
