"""TF-KD by self-training: the teacher is the same network, trained before."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.distillation import tempered_kl
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod


@register(
    "tf_kd_self",
    task="classification",
    paper=Paper(
        title="Revisiting Knowledge Distillation via Label Smoothing Regularization",
        authors="Li Yuan, Francis E. H. Tay, Guilin Li, Tao Wang, Jiashi Feng",
        year=2020,
        venue="CVPR",
        arxiv="1909.11723",
        code="https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation",
    ),
)
class TFKDSelf(ClassificationMethod):
    """A network that learns from a trained copy of itself beats that copy.

    Args:
        teacher: a trained network of the same images and classes; `artifacts.teacher` says which run makes it.
        alpha: a, weight of the teacher's term, in [0, 1].
        temperature: T of both, above 0.
        multiplier: factor of the divergence, at least 0.
    """

    artifacts = ("teacher",)
    objective_takes_mixed = False
    why_not_mixed = "where a layer inside the network mixes, the teacher would not see the same mixture"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        teacher: nn.Module,
        alpha: float = 0.95,
        temperature: float = 6.0,
        multiplier: float = 0.5,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not (0 <= alpha <= 1 and temperature > 0 and multiplier >= 0):
            raise UserError(
                "tf_kd_self needs alpha in [0, 1], temperature > 0 and multiplier >= 0; it got "
                f"alpha={alpha}, temperature={temperature}, multiplier={multiplier}."
            )
        self.alpha, self.temperature, self.multiplier = alpha, temperature, multiplier
        self.teacher = teacher.requires_grad_(False)

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        self.teacher.eval()  # a loop of one's own puts it into training mode with the method
        with torch.no_grad():
            guide = self.teacher(batch.image)
        term = tempered_kl(logits.float(), guide.float(), self.temperature).mean()
        return (1 - self.alpha) * F.cross_entropy(logits, batch.label) + self.alpha * self.multiplier * term
