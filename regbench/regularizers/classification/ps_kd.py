"""PS-KD: the targets are softened by what the network itself predicted an epoch ago, more and more."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional.distributed import gather_rows
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod

TEACHERS = ("table", "previous_epoch_weights")
SCHEDULES = ("linear", "constant")


def mixing_weight(alpha: float, epoch: int, epochs: int, schedule: str = "linear") -> float:
    """alpha_t = alpha_T (t + 1) / T, the same for a whole epoch; or alpha_T throughout (`schedule` constant).

    Args:
        alpha: alpha_T, the weight in the last epoch.
        epoch: t, counted from 0.
        epochs: T.
        schedule: linear, as in the paper, or constant.

    >>> [round(mixing_weight(0.8, t, 300), 7) for t in (0, 149, 299)]
    [0.0026667, 0.4, 0.8]
    """
    return alpha * (epoch + 1) / epochs if schedule == "linear" else alpha


def refined_target(label: Tensor, past: Tensor, alpha: float) -> Tensor:
    """y~ = (1 - alpha_t) onehot(y) + alpha_t P.

    A row of `past` that holds only zeros stands for an image that was never seen: its target is onehot(y).

    Args:
        label: y, int64 (B,).
        past: P, (B, C), what the network predicted before; not differentiated.
        alpha: alpha_t.

    Returns:
        (B, C); each row sums to 1.

    >>> refined_target(torch.tensor([0, 2]), torch.tensor([[0.6, 0.3, 0.1], [0.0, 0.0, 0.0]]), 0.5)
    tensor([[0.8000, 0.1500, 0.0500],
            [0.0000, 0.0000, 1.0000]])
    """
    hard = F.one_hot(label, past.shape[1]).to(past.dtype)
    seen = past.sum(dim=1, keepdim=True) > 0
    return torch.where(seen, (1 - alpha) * hard + alpha * past, hard)


@register(
    "ps_kd",
    task="classification",
    paper=Paper(
        title="Self-Knowledge Distillation with Progressive Refinement of Targets",
        authors="Kyungyul Kim, ByeongMoon Ji, Doyoung Yoon, Sangheum Hwang",
        year=2021,
        venue="ICCV",
        arxiv="2006.12000",
        code="https://github.com/lgcnsai/PS-KD-Pytorch",
    ),
)
class PSKD(ClassificationMethod):
    """Mixing the network's own prediction of the last epoch into the target, with a weight that grows over training,
    lowers the error against cross entropy and improves calibration and the ranking by confidence.

    With `teacher` table the predictions of the training pass itself are kept, one row for each training image; the
    batches must say which image is which. An image that is not yet in the table has its label as target, so the first
    epoch is cross entropy.

    Args:
        alpha: alpha_T, weight of the prediction in the last epoch, in [0, 1].
        teacher: table; or previous_epoch_weights: the network as it was at the end of the last epoch predicts again,
            one more pass and no table.
        schedule: linear, or constant: alpha_T from the second epoch on.
    """

    objective_takes_mixed = False
    why_not_mixed = "its targets are predictions for unmixed images, and mixing policies mix every batch"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        alpha: float = 0.8,
        teacher: str = "table",
        schedule: str = "linear",
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not 0 <= alpha <= 1:
            raise UserError(
                f"regularizer.alpha={alpha}: the weight of the past prediction must lie in [0, 1]."
            )
        if teacher not in TEACHERS:
            raise unknown("teacher of ps_kd", teacher, TEACHERS)
        if schedule not in SCHEDULES:
            raise unknown("schedule of ps_kd", schedule, SCHEDULES)
        self.alpha, self.teacher, self.schedule = alpha, teacher, schedule
        # The frozen network of the last epoch is no submodule: it is neither trained nor kept in checkpoints, which are
        # written at the ends of epochs, when it equals the network itself.
        self._frozen: list[nn.Module] = []
        self._frozen_epoch = 0

    def on_data(self, train_size: int) -> None:
        if self.teacher == "table":
            self.keep_table("predictions", train_size)

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        if self.alpha == 0:
            return super().objective(logits, batch)
        alpha = mixing_weight(self.alpha, self.current_epoch, self.max_epochs, self.schedule)
        if self.teacher == "table":
            target = self._target_from_table(logits, batch, alpha)
        else:
            target = self._target_from_weights(logits, batch, alpha)
        dtype = torch.promote_types(logits.dtype, target.dtype)
        return F.cross_entropy(logits.to(dtype), target.to(dtype))

    @torch.no_grad()
    def _target_from_table(self, logits: Tensor, batch: Batch, alpha: float) -> Tensor:
        if "predictions" not in self._buffers:
            raise UserError(
                "ps_kd keeps a prediction for each training image: call method.on_data(number of training images) "
                "for each of method.members before training."
            )
        if batch.index is None:
            raise UserError(
                "ps_kd with teacher=table needs the position of each image in the training split: let batches be "
                "(image, label, index), or set regularizer.teacher=previous_epoch_weights."
            )
        target = refined_target(batch.label, self.predictions[batch.index], alpha)
        # Written here, not after the step: this step reads the rows no more. All processes get all rows.
        index, prediction = gather_rows(batch.index), gather_rows(logits.float().softmax(dim=1))
        self.predictions[index] = prediction.to(self.predictions.dtype)  # bf16-true makes the table bfloat16
        return target

    @torch.no_grad()
    def _target_from_weights(self, logits: Tensor, batch: Batch, alpha: float) -> Tensor:
        past = torch.zeros_like(logits, dtype=torch.float32)
        if self.current_epoch > 0:
            # In the first batch of an epoch, whose pass batch norm's averages have seen by now; the weights have not.
            if self._frozen_epoch != self.current_epoch:
                self._frozen = [copy.deepcopy(self.backbone).eval()]
                self._frozen_epoch = self.current_epoch
            past = self._frozen[0](batch.image).float().softmax(dim=1)
        return refined_target(batch.label, past, alpha)
