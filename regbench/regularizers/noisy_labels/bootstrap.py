"""Bootstrapping (Reed et al. 2015): the target is a mixture of the label and of what the network predicts itself."""

from functools import partial

from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional.noise_losses import hard_bootstrap, of_batch, soft_bootstrap
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod

LOSSES = {"soft": (soft_bootstrap, 0.95), "hard": (hard_bootstrap, 0.8)}  # the loss and its usual β


@register(
    "bootstrap",
    task="noisy_labels",
    paper=Paper(
        title="Training Deep Neural Networks on Noisy Labels with Bootstrapping",
        authors="Scott Reed, Honglak Lee, Dragomir Anguelov, Christian Szegedy, Dumitru Erhan, Andrew Rabinovich",
        year=2015,
        venue="ICLR workshop",
        arxiv="1412.6596",
    ),
)
class Bootstrap(ClassificationMethod):
    """A target that is partly the network's own prediction weakens the pull of labels that disagree with it.

    Args:
        form: soft, the predicted probabilities, or hard, the predicted class.
        beta: share of the label in the target, in [0, 1]; None: 0.95 soft and 0.8 hard, as is usual.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, *, form: str = "soft", beta: float | None = None, **base
    ):
        super().__init__(backbone, num_classes, **base)
        if form not in LOSSES:
            raise unknown("regularizer.form", form, LOSSES)
        loss, usual = LOSSES[form]
        beta = usual if beta is None else beta
        if not 0 <= beta <= 1:
            raise UserError(
                f"regularizer.beta={beta}: it is the share of the label in the target, from 0 to 1."
            )
        self._loss = partial(loss, beta=beta)

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        return of_batch(self._loss, logits, batch)
