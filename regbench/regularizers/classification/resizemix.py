"""ResizeMix: paste another image, resized as a whole."""

from collections.abc import Sequence

from torch import Tensor, nn

from regbench.functional import mixing
from regbench.functional.mixing import Draw
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod


@register(
    "resizemix",
    task="classification",
    paper=Paper(
        title="ResizeMix: Mixing Data with Preserved Object Information and True Labels",
        authors="Jie Qin, Jiemin Fang, Qian Zhang, Wenyu Liu, Xingang Wang, Xinggang Wang",
        year=2020,
        venue="arXiv",
        arxiv="2012.11101",
        code="https://github.com/Westlake-AI/openmixup",
    ),
)
class ResizeMix(ClassificationMethod):
    """Pasting the whole of another image, shrunk, beats pasting a box cut from it: the pasted part always
    shows the object that its label names, and no saliency has to be computed.

    Args:
        scope: lowest and highest scale of the pasted image, as a fraction of the image's side.
        use_alpha: draw the scale from Beta(alpha, alpha), and from U(scope) only where that falls outside.
        alpha: used with `use_alpha` only.
        interpolation: nearest or bilinear.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        scope: Sequence[float] = (0.1, 0.8),
        use_alpha: bool = False,
        alpha: float = 1.0,
        interpolation: str = "nearest",
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        self.draw = mixing.bind(
            "resizemix",
            {"scope": tuple(scope), "use_alpha": use_alpha, "alpha": alpha, "interpolation": interpolation},
        )

    def mix(self, image: Tensor, label: Tensor) -> Draw:
        return self.draw(image, self.generator("mix"))
