"""Training and evaluation on samples of whatever fields: classifiers and regressions. A method overrides `objective`.

The first field of the method's task is what the network reads, the second the class or the target (`registry.TASKS`).
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from regbench.registry import TASKS
from regbench.regularizers.base import Method, batch_fields

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1


class SampleMethod(Method):
    """What is common to both kinds: the fields, the loss, and when metrics are updated and logged. A kind gives
    `metrics`, `objective` and `_measure`.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, **base):
        super().__init__(backbone, num_classes, **base)
        self.val_metrics, self.test_metrics = (
            MetricCollection(self.metrics(), prefix=prefix, compute_groups=False)
            for prefix in ("val/", "test/")
        )

    def metrics(self) -> dict[str, Metric]:
        """New metrics of a set, by their names."""
        raise NotImplementedError(f"{type(self).__name__} defines no metrics")

    def fields(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the network reads, (B, …), and the classes or targets, (B, …)."""
        sample, label = batch_fields(batch, TASKS[self.task][:2])
        return sample, label

    def objective(self, output: Tensor, label: Tensor) -> Tensor:
        """The loss (scalar), a mean over the batch."""
        raise NotImplementedError(f"{type(self).__name__} defines no objective")

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        sample, label = self.fields(batch)
        return self.objective(self.backbone(sample), label)

    # -- evaluation ------------------------------------------------------------------------------------------------

    def validation_step(self, batch, batch_idx: int) -> None:
        self._measure(self.val_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    def test_step(self, batch, batch_idx: int) -> None:
        self._measure(self.test_metrics, batch)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute())
        self.test_metrics.reset()

    def _measure(self, metrics: MetricCollection, batch: Mapping[str, Tensor]) -> None:
        """Adds a batch to the metrics of its set."""
        raise NotImplementedError(f"{type(self).__name__} defines no _measure")


class SampleClassifier(SampleMethod):
    """Cross entropy on samples (B, …) with classes int64 (B,); measured are top-1 accuracy and the objective itself.

    Args:
        backbone: maps samples (B, …) to logits (B, num_classes).
    """

    def metrics(self) -> dict[str, Metric]:
        accuracy = MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)
        return {"accuracy": accuracy, "loss": MeanMetric()}

    def objective(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss (scalar) of logits (B, C), a mean over the batch; `label` int64 (B,)."""
        return F.cross_entropy(logits, label)

    def _measure(self, metrics: MetricCollection, batch: Mapping[str, Tensor]) -> None:
        sample, label = self.fields(batch)
        logits = self(sample)
        metrics.update(
            preds=logits, target=label, value=self.objective(logits, label), weight=float(len(label))
        )


class SampleRegression(SampleMethod):
    """Squared error on samples (B, …) with targets (B, outputs), of which the mean over rows and outputs is measured.

    Args:
        backbone: maps samples (B, …) to (B, num_classes): as many numbers as a target has.
    """

    def metrics(self) -> dict[str, Metric]:
        return {"mse": MeanSquaredError()}

    def objective(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss (scalar) of outputs (B, outputs), a mean over the batch and the outputs."""
        return F.mse_loss(output, target.to(output.dtype))

    def _measure(self, metrics: MetricCollection, batch: Mapping[str, Tensor]) -> None:
        sample, target = self.fields(batch)
        metrics.update(self(sample), target)
