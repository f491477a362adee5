"""Generalized cross entropy (Zhang & Sabuncu 2018): between cross entropy and the absolute error."""

from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.noise_losses import generalized_cross_entropy, of_batch
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod


@register(
    "gce",
    task="noisy_labels",
    paper=Paper(
        title="Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
        authors="Zhilu Zhang, Mert R. Sabuncu",
        year=2018,
        venue="NeurIPS",
        arxiv="1805.07836",
    ),
)
class GCE(ClassificationMethod):
    """A loss between cross entropy, which learns fast, and the absolute error, which wrong labels mislead little.

    Truncation leaves out the samples whose label is unlikely. The paper fixes which ones for some epochs, by the best
    network so far; here the current prediction of each batch decides, as the truncated loss is defined.

    Args:
        q: exponent, in (0, 1]; towards 0 cross entropy, 1 the absolute error.
        k: samples whose label has a probability of k or less have no gradient; None truncates nothing.
        truncate_from: epoch, from 0, with which truncation starts: with a network's first predictions, p_y = 1/C, every
            sample would be left out.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        q: float = 0.7,
        k: float | None = None,
        truncate_from: int = 40,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not 0 < q <= 1:
            raise UserError(
                f"regularizer.q={q}: it lies above 0 (cross entropy) and up to 1 (absolute error)."
            )
        if k is not None and not 0 < k < 1:
            raise UserError(
                f"regularizer.k={k}: it is a probability between 0 and 1; null truncates nothing."
            )
        if truncate_from < 0:
            raise UserError(f"regularizer.truncate_from={truncate_from}: a number of epochs, 0 or more.")
        self.q, self.k, self.truncate_from = q, k, truncate_from

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        k = self.k if self.current_epoch >= self.truncate_from else None
        return of_batch(lambda z, y: generalized_cross_entropy(z, y, self.q, k), logits, batch)
