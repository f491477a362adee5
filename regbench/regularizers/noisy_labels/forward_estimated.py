"""Forward correction with an estimated transition matrix (Patrini et al. 2017)."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.noise_losses import anchor_matrix, forward_loss, of_batch
from regbench.registry import Paper, register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import Batch, ClassificationMethod


@register(
    "forward_estimated",
    task="noisy_labels",
    paper=Paper(
        title="Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
        authors="Giorgio Patrini, Alessandro Rozza, Aditya Krishna Menon, Richard Nock, Lizhen Qu",
        year=2017,
        venue="CVPR",
        arxiv="1609.03683",
        code="https://github.com/giorgiop/loss-correction",
    ),
)
class ForwardEstimated(ClassificationMethod):
    """The rates at which classes turn into each other can be read off a network that was trained on the wrong labels,
    well enough for the forward correction.

    Before the first step the trained network predicts the training images as they are; its predictions for the anchor
    of each class are the rows of T. In a loop of one's own call `estimate` with such batches.

    Args:
        warmup: a network trained with cross entropy on the same labels; `artifacts.warmup` says which run makes it.
        percentile: anchors are the most likely images below this percentile; None takes the most likely ones.
    """

    artifacts = ("warmup",)

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        warmup: nn.Module,
        percentile: float | None = 97.0,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if percentile is not None and not 0 < percentile < 100:
            raise UserError(
                f"regularizer.percentile={percentile}: it lies between 0 and 100; null takes the largest."
            )
        self.percentile = percentile
        self.warmup = warmup.requires_grad_(False)
        self.register_buffer("log_matrix", torch.zeros(0, num_classes), persistent=False)

    @torch.no_grad()
    def estimate(self, batches: Iterable[Mapping[str, Tensor] | tuple[Tensor, ...]]) -> Tensor:
        """Estimates T from batches of training images that are not augmented; returns it (C, C), in float64."""
        self.warmup.eval()
        p = [self.warmup(batch_fields(batch, ("image",))[0]).double().softmax(dim=1) for batch in batches]
        matrix = anchor_matrix(torch.cat(p), self.percentile)
        self.log_matrix = matrix.log().to(self.log_matrix)
        return matrix

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        if not len(self.log_matrix):
            if self._trainer is None or self.trainer.datamodule is None:
                raise UserError(
                    "forward_estimated has no transition matrix yet; call estimate(<batches of training images>)."
                )
            # Each process reads all images: the estimate is then the same everywhere.
            self.estimate(self.trainer.datamodule.plain_train_loader(logits.device))
        return of_batch(partial(forward_loss, log_matrix=self.log_matrix), logits, batch)
