"""FixMatch: confident pseudo labels of weak views are the targets of strong views of the same images.

The functions stand in `regbench/functional/pseudo_labels.py`, the frame in the family's base: other methods share both.
"""

from torch import nn

from regbench.registry import Paper, register
from regbench.regularizers.semi_supervised.base import SemiSupervisedMethod


@register(
    "fixmatch",
    task="semi_supervised",
    paper=Paper(
        title="FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
        authors="Kihyuk Sohn, David Berthelot, Chun-Liang Li, Zizhao Zhang, Nicholas Carlini, Ekin D. Cubuk, "
        "Alex Kurakin, Han Zhang, Colin Raffel",
        year=2020,
        venue="NeurIPS",
        arxiv="2001.07685",
        code="https://github.com/google-research/fixmatch",
    ),
)
class FixMatch(SemiSupervisedMethod):
    """Training on strong views of unlabelled images, with the confident predictions on their weak views as labels,
    raises the accuracy that few labels give.

    Args:
        threshold: confidence τ from which a pseudo label counts.
        weight: λ_u of the loss on unlabelled images; 0 trains on the labelled images alone.
        teacher: what gives the pseudo labels: network (the paper) or average (the moving average; openmixup).
        decay: of the moving average that is tested, for each step.
        decay_end: that it rises to; null: it stays (the paper).
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        threshold: float = 0.95,
        weight: float = 1.0,
        teacher: str = "network",
        decay: float = 0.999,
        decay_end: float | None = None,
        **base,
    ):
        super().__init__(
            backbone,
            num_classes,
            threshold=threshold,
            weight=weight,
            teacher=teacher,
            decay=decay,
            decay_end=decay_end,
            **base,
        )
