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

    The risk at coverage j / n is the share of errors among the j most confident samples; AURC is its mean over j.
    E-AURC is AURC less that of the best ranking, (1/n) Σ_{i=1..m} i / (n − m + i), m the number of errors. Samples of
    equal confidence have no order: AURC is the mean over all, so it does not depend on the order of the rows.

    Args:
        confidence: (n,), e.g. the largest probability.
        correct: bool (n,).

    >>> confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.55])
    >>> aurc, excess = area_under_risk_coverage(confidence, torch.tensor([True, False, True, True, False]))
    >>> round(aurc.item(), 4), round(excess.item(), 4)  # (0 + 1/2 + 1/3 + 1/4 + 2/5) / 5; the best is (1/4 + 2/5) / 5
    (0.2967, 0.1667)
    """
    n = len(confidence)
    order = confidence.argsort(descending=True)
    errors = (~correct[order]).double().cumsum(0)
    _, size = confidence[order].unique_consecutive(return_counts=True)
    end = size.cumsum(0)
    # Within a group of equal confidence the expected number of errors grows evenly.
    before = F.pad(errors[end - 1], (1, 0))
    start, before, slope = (
        values.repeat_interleave(size, output_size=n)
        for values in (end - size, before[:-1], before.diff() / size)
    )
    count = torch.arange(1, n + 1, device=confidence.device)
    aurc = ((before + slope * (count - start)) / count).mean()
    best = (count - n + errors[-1]).clamp(
        min=0
    ) / count  # no error among the first n - m, then one more at each place
    return aurc, aurc - best.mean()


def calibration_error(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    """Expected calibration error with equal bins (lo, hi] (Guo et al. 2017, arXiv:1706.04599, eq. 3), a fraction.

    ECE = Σ_b n_b / n |accuracy of bin b − mean confidence of bin b|. torchmetrics has bins [lo, hi), and one more for a
    confidence of exactly 1, which overconfident networks reach.

    Args:
        confidence: (n,), the largest probability, in [0, 1].
        correct: bool (n,), whether the class with it is the right one.

    >>> calibration_error(torch.tensor([1.0, 0.95, 0.55]), torch.tensor([False, True, True]), 10)  # (0.95 + 0.45) / 3
    tensor(0.4667)
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)[1:-1]
    gap = correct.to(confidence.dtype) - confidence
    sums = gap.new_zeros(bins).index_add_(0, torch.bucketize(confidence, edges), gap)
    return sums.abs().sum() / len(confidence)


class SelectiveRisk(Metric):
    """AURC and E-AURC of the largest probability, and the calibration error with ten bins: aurc, eaurc, ece10.

    See `area_under_risk_coverage` and `calibration_error`. Keeps two numbers of each sample.
    """

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
        confidence, correct = dim_zero_cat(self.confidence), dim_zero_cat(self.correct)
        aurc, excess = area_under_risk_coverage(confidence, correct)
        ece = calibration_error(confidence.double(), correct, 10)
        return {"aurc": aurc.float(), "eaurc": excess.float(), "ece10": ece.float()}


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
        metrics["selective"] = SelectiveRisk()
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


class _CalibrationError(MulticlassCalibrationError):
    """torchmetrics decides from the values whether they are probabilities; logits can happen to lie in [0, 1]."""

    def update(self, logits: Tensor, label: Tensor) -> None:
        super().update(logits.float().softmax(dim=1), label)
