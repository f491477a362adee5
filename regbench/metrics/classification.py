"""The metrics of a classifier, right under DDP: torchmetrics sums their states over the processes."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

ECE_BINS = 15  # Guo et al. 2017, On Calibration of Modern Neural Networks


class NegativeLogLikelihood(Metric):
    """Mean of -log softmax(logits)[label], in nats.

    >>> nll = NegativeLogLikelihood()
    >>> nll.update(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    >>> round(nll.compute().item(), 4)  # ln 4
    1.3863
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """logits (B, C), label (B,)."""
        self.total += F.cross_entropy(logits.float(), label, reduction="sum")
        self.count += label.numel()

    def compute(self) -> Tensor:
        return (self.total / self.count).float()


def classification_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Top-1 and top-5 accuracy (fractions), negative log-likelihood (nats), expected calibration error (fraction).

    With fewer than six classes top-5 is always 1 and is left out.
    """
    metrics = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "nll": NegativeLogLikelihood(),
        "ece": _CalibrationError(num_classes, n_bins=ECE_BINS, norm="l1", validate_args=False),
    }
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(
            num_classes, top_k=5, average="micro", validate_args=False
        )
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


class _CalibrationError(MulticlassCalibrationError):
    """torchmetrics decides from the values whether they are probabilities; logits can happen to lie in [0, 1]."""

    def update(self, logits: Tensor, label: Tensor) -> None:
        super().update(logits.float().softmax(dim=1), label)
