"""Training and evaluation of a classifier. A method overrides the hooks that its paper changes.

`mix` replaces the batch by mixtures of its images, `objective` makes the loss from the logits.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from regbench.functional.distributed import gather_rows, own_rows
from regbench.functional.losses import mixup_cross_entropy
from regbench.functional.mixing import Draw
from regbench.metrics.classification import classification_metrics
from regbench.regularizers.base import Method, batch_fields

VERSION = (
    1  # raised when a change in this file changes numbers: the family's finished runs are then run again
)


class Partner(NamedTuple):
    """What the images of a batch were mixed with.

    Attributes:
        label: (B,), the classes of the images that were mixed in.
        lam: share of the image itself, in [0, 1].
    """

    label: Tensor
    lam: float


class ClassificationMethod(Method):
    """Cross entropy on labelled images: batches (image (B, C, H, W), label (B,)), logits (B, num_classes)."""

    def __init__(self, backbone: nn.Module, num_classes: int, **base):
        super().__init__(backbone, num_classes, **base)
        self.val_metrics = classification_metrics(num_classes, "val/")
        self.test_metrics = classification_metrics(num_classes, "test/")
        self.test_confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.samples_wanted = (
            0  # a logger sets it to see this many images of the next batch, mixed, in `samples`
        )
        self.samples: Tensor | None = None
        self.confusion: Tensor | None = None  # (C, C) counts of the last test; rows are the true classes

    def mix(self, image: Tensor) -> Draw | None:
        """How the images (B, C, H, W), of all processes together, are mixed; None where they are not.

        It has to draw the same on every process, as `self.generator(...)` does.
        """
        return None

    def objective(self, logits: Tensor, label: Tensor, partner: Partner | None) -> Tensor:
        """The loss (scalar) of logits (B, C) for labels (B,); `partner` is None where nothing was mixed."""
        if partner is None:
            return F.cross_entropy(logits, label)
        return mixup_cross_entropy(logits, label, partner.label, partner.lam)

    def training_loss(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        image, label = batch_fields(batch, ("image", "label"))
        # With several processes the global batch is mixed, so that together they do what one process does.
        whole = gather_rows(image)
        draw = self.mix(whole)
        if draw is not None and draw.layer == 0:
            image = own_rows(draw.mix(whole))
        if self.samples_wanted:
            self.samples, self.samples_wanted = image[: self.samples_wanted].detach().clone(), 0
        if draw is None:
            return self.objective(self.backbone(image), label, None)
        if draw.layer == 0:
            logits = self.backbone(image)
        else:
            # Not through __call__: a compiled graph can't hold a mixture that differs at each step.
            stage = self.backbone.stages[draw.layer - 1]
            logits = self.backbone.forward(
                image, at=stage, apply=lambda x: own_rows(draw.mix(gather_rows(x)))
            )
        partner_label = own_rows(gather_rows(label)[draw.partner])
        return self.objective(logits, label, Partner(partner_label, draw.lam))

    def validation_step(self, batch, batch_idx: int) -> None:
        image, label = batch_fields(batch, ("image", "label"))
        self.val_metrics.update(self(image), label)

    def on_validation_epoch_end(self) -> None:
        for name, value in self.val_metrics.compute().items():
            self.log(name, value, prog_bar=name == "val/accuracy")
        self.val_metrics.reset()

    def test_step(self, batch, batch_idx: int) -> None:
        image, label = batch_fields(batch, ("image", "label"))
        logits = self(image)
        self.test_metrics.update(logits, label)
        self.test_confusion.update(logits, label)

    def on_test_epoch_start(self) -> None:
        self.test_confusion.reset()

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute())
        self.test_metrics.reset()
        self.confusion = self.test_confusion.compute()  # here, where every process takes part in the sum
