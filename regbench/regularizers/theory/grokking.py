"""Modular arithmetic with corrupted labels: which regularization makes a network unlearn them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError, unknown
from regbench.registry import Paper, register
from regbench.regularizers.theory.base import SampleClassifier


def one_hot_squared_error(f: Tensor, label: Tensor) -> Tensor:
    """Mean over the batch and over the p outputs of (f_q − [q = y])².

    Args:
        f: outputs, (B, p).
        label: y, int64 (B,).

    Returns:
        A scalar; 1/p for outputs of 0.

    >>> f = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    >>> one_hot_squared_error(f, torch.tensor([1, 0])).item()  # (0 + 1 + 1 + 1) / 4
    0.75
    """
    return F.mse_loss(f, F.one_hot(label, f.shape[1]).to(f.dtype))


LOSSES = {"mse": one_hot_squared_error, "cross_entropy": F.cross_entropy}


@register(
    "grokking",
    task="modular_arithmetic",
    paper=Paper(
        title="To grok or not to grok: Disentangling generalization and memorization on corrupted algorithmic datasets",
        authors="Darshil Doshi, Aritra Das, Tianyu He, Andrey Gromov",
        year=2024,
        venue="ICLR",
        arxiv="2310.13061",
        code="https://github.com/d-doshi/Grokking",
    ),
)
class Grokking(SampleClassifier):
    """On modular arithmetic a network learns corrupted labels and the rule at the same time; with strong weight decay,
    dropout or batch normalisation it first fits the corrupted labels, and then unlearns them: the training accuracy
    falls to the share of right labels, and the test accuracy is 100 %.

    Weight decay is the optimiser's, dropout and batch normalisation are the backbone's, corrupted labels the data's.

    Args:
        loss: mse (on one-hot targets) | cross_entropy.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, loss: str = "mse", **base):
        super().__init__(backbone, num_classes, **base)
        if loss not in LOSSES:
            raise unknown("regularizer.loss", loss, LOSSES)
        self.loss = LOSSES[loss]
        _try_on_pairs(self.backbone)

    def objective(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.loss(logits, label)


@torch.no_grad()
def _try_on_pairs(backbone: Backbone) -> None:
    """Raises UserError for a network that takes no pairs of integers: it was tried on floating-point numbers only."""
    training = backbone.training
    try:
        backbone.eval()(torch.zeros(1, 2, dtype=torch.long))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            "regularizer=grokking needs a network that reads pairs of residues, int64 (B, 2): backbone=modular_mlp."
        ) from error
    backbone.train(training)
