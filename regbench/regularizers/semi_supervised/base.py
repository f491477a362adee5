"""Training on labelled and unlabelled images with pseudo labels; what is tested is a moving average of the network.

The frame is FixMatch's (Sohn et al. 2020, arXiv 2001.07685): a method adds its own losses to `consistency`.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional.moving_average import step_average
from regbench.functional.pseudo_labels import masked_cross_entropy, pseudo_labels
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod

VERSION = 1  # raised when a change in this file, or in classification's measuring, changes numbers

FIELDS = ("image", "label", "unlabelled_weak", "unlabelled_strong")
TEACHERS = ("network", "average")
DECAY_FROM = 0.1  # share of training up to which the average keeps its first decay


class Consistency(NamedTuple):
    """The loss of a step, and the labels that it gave to the unlabelled images.

    Attributes:
        loss: scalar.
        label: int64 (U,), the pseudo labels.
        confidence: (U,), the teacher's largest probability.
    """

    loss: Tensor
    label: Tensor
    confidence: Tensor


def decay_at(progress: float, first: float, last: float | None, step: int | None = None) -> float:
    """The decay m of the moving average: `first` in the first tenth of training, then
    m = last − (last − first) (cos(π · progress) + 1) / 2, as openmixup's CosineScheduleHook has it.

    At first it is at most (1 + step) / (10 + step), so that a short run does not test its initial weights: ours, after
    TensorFlow's moving average. With 0.999 it matters in the first 9000 steps.

    Args:
        progress: share of training that is done, in [0, 1].
        last: None: the decay stays as it is.
        step: steps that are done; None: no bound.

    >>> [round(decay_at(p, 0.9, 0.99), 4) for p in (0.0, 0.05, 0.5, 1.0)]
    [0.9, 0.9, 0.945, 0.99]
    """
    decay = first
    if last is not None and progress >= DECAY_FROM:
        decay = last - (last - first) * (math.cos(math.pi * progress) + 1) / 2
    return decay if step is None else min(decay, (1 + step) / (10 + step))


class SemiSupervisedMethod(ClassificationMethod):
    """Cross entropy on labelled images, and on strong views of unlabelled ones with pseudo labels of their weak views.

    Batches are mappings with image (B, C, H, W), label (B,), unlabelled_weak and unlabelled_strong (U, C, H, W). What
    is trained is `student`, a copy of the backbone; `backbone` is its moving average over the steps, parameters and
    buffers, which is validated, tested and exported, and takes no gradients. In a loop of one's own call
    `after_step()` after each step of the optimiser. Norms and biases get no weight decay, as in the released code.

    Args:
        threshold: confidence from which a pseudo label counts.
        weight: of the loss on unlabelled images; 0 trains on the labelled images alone.
        teacher: what gives the pseudo labels: network (the one that is trained) or average.
        decay: of the moving average, for each step.
        decay_end: that it rises to; see `decay_at`. None: it stays.
    """

    owns_loop: ClassVar[bool] = True  # its batches hold more than an image and a label

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        threshold: float,
        weight: float,
        teacher: str,
        decay: float,
        decay_end: float | None,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not 0 <= threshold <= 1:
            raise UserError(f"regularizer.threshold={threshold}: it is a probability, from 0 to 1.")
        if not weight >= 0:
            raise UserError(f"regularizer.weight={weight} must be at least 0.")
        if teacher not in TEACHERS:
            raise unknown("teacher of pseudo labels", teacher, TEACHERS)
        if not 0 <= decay <= (1 if decay_end is None else decay_end) <= 1:
            raise UserError(
                f"regularizer.decay={decay} and decay_end={decay_end}: they need 0 <= decay <= decay_end <= 1."
            )
        self.threshold, self.weight, self.teacher = threshold, weight, teacher
        self.decay, self.decay_end = decay, decay_end
        self.student = copy.deepcopy(self.backbone)
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "SemiSupervisedMethod":
        super().train(mode)
        self.backbone.eval()  # the average labels as it is tested, and its statistics come from the student
        return self

    @property
    def progress(self) -> float:
        """Share of the training steps that are done, in [0, 1]; 0 outside a trainer."""
        if self._trainer is None:
            return 0.0
        return min(self.global_step / max(self.trainer.estimated_stepping_batches, 1), 1.0)

    @property
    def networks(self) -> list[nn.Module]:
        return [self.student, self.backbone]

    def parameter_options(self) -> list[dict[str, Any]]:
        plain = [p for p in self.parameters() if p.requires_grad and p.ndim < 2]
        return [{"params": plain, "weight_decay": 0.0}] if plain else []

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.consistency(batch).loss

    def consistency(self, batch: Mapping[str, Tensor]) -> Consistency:
        """FixMatch's loss: CE(labelled) + weight · masked CE(strong views, pseudo labels of the weak views)."""
        image, label, weak, strong = batch_fields(batch, FIELDS)
        self.keep_samples(strong)
        if not self.weight:
            loss = F.cross_entropy(self.student(image), label)
            return Consistency(loss, label.new_zeros(len(weak)), loss.new_zeros(len(weak)))
        # One pass, so that batch norm sees labelled and unlabelled images together, as in the released code.
        parts = [image, strong, weak] if self.teacher == "network" else [image, strong]
        on_labelled, on_strong, *on_weak = self.student(torch.cat(parts)).split([len(part) for part in parts])
        if not on_weak:
            with torch.no_grad():
                on_weak = [self.backbone(weak)]
        pseudo, confidence = pseudo_labels(on_weak[0].float())
        keep = confidence >= self.threshold
        self.watch("confident", keep.float().mean())  # of the unlabelled images: their pseudo labels count
        unsupervised = masked_cross_entropy(on_strong, pseudo, keep)
        loss = F.cross_entropy(on_labelled, label) + self.weight * unsupervised
        return Consistency(loss, pseudo, confidence)

    def after_step(self) -> None:
        step = None if self._trainer is None else self.global_step
        decay = decay_at(self.progress, self.decay, self.decay_end, step)
        step_average(self.backbone, self.student, decay)
