"""CutMix: paste a box of another image and mix the labels by area."""

from torch import Tensor, nn

from regbench.functional import mixing
from regbench.functional.mixing import Draw
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod


@register(
    "cutmix",
    task="classification",
    paper=Paper(
        title="CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
        authors="Sangdoo Yun, Dongyoon Han, Seong Joon Oh, Sanghyuk Chun, Junsuk Choe, Youngjoon Yoo",
        year=2019,
        venue="ICCV",
        arxiv="1905.04899",
        code="https://github.com/clovaai/CutMix-PyTorch",
    ),
)
class CutMix(ClassificationMethod):
    """Pasting a box of another training image, with labels mixed by area, classifies better than cutting the
    box out or interpolating whole images: no pixel is wasted, and the network must look at all of an object.

    Args:
        alpha: the share of the image, before the box is clipped, is drawn from Beta(alpha, alpha).
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, alpha: float = 1.0, **base):
        super().__init__(backbone, num_classes, **base)
        self.draw = mixing.bind("cutmix", {"alpha": alpha})

    def mix(self, image: Tensor, label: Tensor) -> Draw:
        return self.draw(image, self.generator("mix"))
