"""FMix: mix two images by a random binary mask of low spatial frequencies."""

from torch import Tensor, nn

from regbench.functional import mixing
from regbench.functional.mixing import Draw
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod


@register(
    "fmix",
    task="classification",
    paper=Paper(
        title="FMix: Enhancing Mixed Sample Data Augmentation",
        authors="Ethan Harris, Antonia Marcu, Matthew Painter, Mahesan Niranjan, "
        "Adam Prügel-Bennett, Jonathon Hare",
        year=2020,
        venue="arXiv",
        arxiv="2002.12047",
        code="https://github.com/ecs-vlc/FMix",
    ),
)
class FMix(ClassificationMethod):
    """Mixing two images by a random binary mask of low spatial frequencies classifies better than mixup and
    CutMix: local structure stays as it is in the data, and the shapes vary more than boxes do.

    Args:
        alpha: the share of the image is drawn from Beta(alpha, alpha).
        decay: exponent of the frequency by which the mask's spectrum falls; larger gives rounder patches.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, *, alpha: float = 1.0, decay: float = 3.0, **base
    ):
        super().__init__(backbone, num_classes, **base)
        self.draw = mixing.bind("fmix", {"alpha": alpha, "decay": decay})

    def mix(self, image: Tensor, label: Tensor) -> Draw:
        return self.draw(image, self.generator("mix"))
