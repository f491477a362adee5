"""TF-KD with a virtual teacher: a hand-made soft distribution takes the place of a teacher's prediction."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod


def virtual_teacher(label: Tensor, num_classes: int, correct: float, temperature: float) -> Tensor:
    """softmax(u / T), where u is `correct` for the class of the image and (1 - correct) / (C - 1) for each other.

    As in the released code the softmax is of the probabilities u, not of their logarithms, and so nearly uniform.

    Args:
        label: int64 (B,).
        num_classes: C.
        correct: u of the right class.
        temperature: T > 0.

    Returns:
        (B, C).

    >>> import torch
    >>> virtual_teacher(torch.tensor([1]), 2, correct=1.0, temperature=1.0)  # e / (e + 1)
    tensor([[0.2689, 0.7311]])
    """
    other = (1 - correct) / (num_classes - 1)
    ratio = math.exp((correct - other) / temperature)  # of the right class's share to another's
    share = 1 / (num_classes - 1 + ratio)
    return (F.one_hot(label, num_classes) * (ratio - 1) + 1) * share


def virtual_teacher_loss(
    logits: Tensor, label: Tensor, *, alpha: float, correct: float, temperature: float, multiplier: float
) -> Tensor:
    """(1 - a) CE + a m KL(virtual teacher || softmax(logits)), averaged over the batch; the student is not tempered.

    Args:
        logits: (B, C).
        label: int64 (B,).
        alpha: a.
        correct, temperature: of `virtual_teacher`.
        multiplier: m.

    Returns:
        scalar.
    """
    log_p = F.log_softmax(logits, dim=1)
    teacher = virtual_teacher(label, logits.shape[1], correct, temperature).to(log_p.dtype)
    divergence = F.kl_div(log_p, teacher, reduction="batchmean")
    return (1 - alpha) * F.nll_loss(log_p, label) + alpha * multiplier * divergence


@register(
    "tf_kd",
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
class TFKD(ClassificationMethod):
    """Distilling from a hand-made teacher that is always right lowers the error as a trained teacher does.

    Args:
        alpha: a, weight of the teacher's term, in [0, 1].
        temperature: T of the virtual teacher, above 0.
        correct: the virtual teacher's probability of the right class, in (0, 1].
        multiplier: factor of the divergence, at least 0.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        alpha: float = 0.1,
        temperature: float = 20.0,
        correct: float = 0.99,
        multiplier: float = 1.0,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not (0 <= alpha <= 1 and temperature > 0 and 0 < correct <= 1 and multiplier >= 0):
            raise UserError(
                "tf_kd needs alpha in [0, 1], temperature > 0, correct in (0, 1] and multiplier >= 0; it got "
                f"alpha={alpha}, temperature={temperature}, correct={correct}, multiplier={multiplier}."
            )
        self.options = {
            "alpha": alpha, "temperature": temperature, "correct": correct, "multiplier": multiplier
        }  # fmt: skip

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        loss = virtual_teacher_loss(logits, batch.label, **self.options)
        if batch.partner is None:
            return loss
        other = virtual_teacher_loss(logits, batch.partner.label, **self.options)
        return batch.partner.lam * loss + (1 - batch.partner.lam) * other
