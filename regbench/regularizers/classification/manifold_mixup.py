"""Manifold mixup: interpolate hidden representations at a random layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from regbench.functional import mixing
from regbench.functional.mixing import Draw
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod


@register(
    "manifold_mixup",
    task="classification",
    paper=Paper(
        title="Manifold Mixup: Better Representations by Interpolating Hidden States",
        authors="Vikas Verma, Alex Lamb, Christopher Beckham, Amir Najafi, Ioannis Mitliagkas, "
        "David Lopez-Paz, Yoshua Bengio",
        year=2019,
        venue="ICML",
        arxiv="1806.05236",
        code="https://github.com/vikasverma1077/manifold_mixup",
    ),
)
class ManifoldMixup(ClassificationMethod):
    """Interpolating the hidden representations of two images at a random layer, with their labels, gives
    smoother decision boundaries and a lower test error than interpolating the images.

    Args:
        alpha: the share of the image is drawn from Beta(alpha, alpha).
        layers: where to mix, one drawn for each batch: 0 = the image, k = after stage k of the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        alpha: float = 2.0,
        layers: Sequence[int] = (0, 1, 2),
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        self.draw = mixing.bind(
            "manifold_mixup", {"alpha": alpha, "layers": tuple(layers)}, stages=len(self.backbone.stages)
        )

    def mix(self, image: Tensor, label: Tensor) -> Draw:
        return self.draw(image, self.generator("mix"))
