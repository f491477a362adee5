"""The metrics of a classifier, right under DDP: torchmetrics sums their states over the processes."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchmetrics.utilities import dim_zero_cat

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


def area_under_risk_coverage(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """AURC and E-AURC (Geifman et al. 2019, arXiv:1805.08206), as fractions: how well confidence ranks the errors.

    The risk at coverage j / n is the share of errors among the j most confident samples; AURC is its mean over j. E-AURC
    is AURC less that of the best ranking, (1/n) Σ_{i=1..m} i / (n − m + i), m the number of errors.

    Args:
        confidence: (n,), e.g. the largest probability.
        correct: bool (n,).

    >>> confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.55])
    >>> aurc, excess = area_under_risk_coverage(confidence, torch.tensor([True, False, True, True, False]))
    >>> round(aurc.item(), 4), round(excess.item(), 4)  # (0 + 1/2 + 1/3 + 1/4 + 2/5) / 5; the best is (1/4 + 2/5) / 5
    (0.2967, 0.1667)
    """
    wrong = ~correct[confidence.argsort(descending=True, stable=True)]
    count = torch.arange(1, len(wrong) + 1, device=wrong.device, dtype=torch.float64)
    aurc = (wrong.cumsum(0) / count).mean()
    errors = int(wrong.sum())
    i = count[:errors]
    return aurc, aurc - (i / (len(wrong) - errors + i)).sum() / len(wrong)


class SelectiveRisk(Metric):
    """AURC and E-AURC of the largest probability, see `area_under_risk_coverage`."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """logits (B, C), label (B,)."""
        confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
        self.confidence.append(confidence)
        self.correct.append(predicted == label)

    def compute(self) -> dict[str, Tensor]:
        both = dim_zero_cat(self.confidence), dim_zero_cat(self.correct)
        aurc, excess = area_under_risk_coverage(*both)
        return {"aurc": aurc.float(), "eaurc": excess.float()}


def classification_metrics(num_classes: int, prefix: str, *, ranking: bool = False) -> MetricCollection:
    """Top-1 and top-5 accuracy (fractions), negative log-likelihood (nats), expected calibration error (fraction).

    With fewer than six classes top-5 is always 1 and is left out.

    Args:
        ranking: also the calibration error with ten bins (ece10), and AURC and E-AURC (aurc, eaurc).
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
    if ranking:
        metrics["ece10"] = _CalibrationError(num_classes, n_bins=10, norm="l1", validate_args=False)
        metrics["selective"] = SelectiveRisk()
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


class _CalibrationError(MulticlassCalibrationError):
    """torchmetrics decides from the values whether they are probabilities; logits can happen to lie in [0, 1]."""

    def update(self, logits: Tensor, label: Tensor) -> None:
        super().update(logits.float().softmax(dim=1), label)
