"""Symmetric cross entropy (Wang et al. 2019): cross entropy and the same with label and prediction exchanged."""

from functools import partial

from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.noise_losses import of_batch, symmetric_cross_entropy
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod


@register(
    "sce",
    task="noisy_labels",
    paper=Paper(
        title="Symmetric Cross Entropy for Robust Learning with Noisy Labels",
        authors="Yisen Wang, Xingjun Ma, Zaiyi Chen, Yuan Luo, Jinfeng Yi, James Bailey",
        year=2019,
        venue="ICCV",
        arxiv="1908.06112",
        code="https://github.com/YisenWang/symmetric_cross_entropy_for_noisy_labels",
    ),
)
class SCE(ClassificationMethod):
    """A reverse cross entropy term, which wrong labels mislead little, beside a small share of cross entropy learns
    hard classes without fitting wrong labels.

    Args:
        alpha: weight of cross entropy, at least 0.
        beta: weight of the reverse cross entropy, at least 0.
        log_zero: A, what stands for the logarithm of 0 there; below 0.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        alpha: float = 0.1,
        beta: float = 1.0,
        log_zero: float = -4.0,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not (alpha >= 0 and beta >= 0 and log_zero < 0):
            raise UserError(
                "sce needs alpha >= 0, beta >= 0 and log_zero < 0; it got "
                f"alpha={alpha}, beta={beta}, log_zero={log_zero}."
            )
        self._loss = partial(symmetric_cross_entropy, alpha=alpha, beta=beta, log_zero=log_zero)

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        return of_batch(self._loss, logits, batch)
