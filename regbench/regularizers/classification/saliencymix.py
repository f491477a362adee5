"""SaliencyMix: CutMix with the box around the most salient pixel."""

from torch import Tensor, nn

from regbench.functional import mixing
from regbench.functional.mixing import Draw
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod


@register(
    "saliencymix",
    task="classification",
    paper=Paper(
        title="SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better Regularization",
        authors="A. F. M. Shahab Uddin, Mst. Sirazam Monira, Wheemyung Shin, TaeChoong Chung, Sung-Ho Bae",
        year=2021,
        venue="ICLR",
        arxiv="2006.01791",
        code="https://github.com/SaliencyMix/SaliencyMix",
    ),
)
class SaliencyMix(ClassificationMethod):
    """Cutting the pasted box around the most salient pixel of its image, instead of anywhere, classifies
    better than CutMix: the pasted part then shows the object rather than background.

    Args:
        alpha: the share of the image, before the box is clipped, is drawn from Beta(alpha, alpha).
        saliency: spectral_residual, or fine_grained (OpenCV's; needs `pip install regbench[saliency]`).
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        alpha: float = 1.0,
        saliency: str = "spectral_residual",
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        self.draw = mixing.bind("saliencymix", {"alpha": alpha, "saliency": saliency})

    def mix(self, image: Tensor, label: Tensor) -> Draw:
        return self.draw(image, self.generator("mix"))
