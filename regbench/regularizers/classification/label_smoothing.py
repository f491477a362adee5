"""Label smoothing: move a little of the target's weight from the true class to all classes."""

import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod


@register(
    "label_smoothing",
    task="classification",
    paper=Paper(
        title="Rethinking the Inception Architecture for Computer Vision",
        authors="Christian Szegedy, Vincent Vanhoucke, Sergey Ioffe, Jonathon Shlens, Zbigniew Wojna",
        year=2016,
        venue="CVPR",
        arxiv="1512.00567",
    ),
)
class LabelSmoothing(ClassificationMethod):
    """Replacing the one-hot target by (1 − ε) one-hot + ε / C keeps the network from becoming overconfident
    and lowers the test error a little.

    Args:
        smoothing: ε, in [0, 1].
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, smoothing: float = 0.1, **base):
        super().__init__(backbone, num_classes, **base)
        if not 0 <= smoothing <= 1:
            raise UserError(f"smoothing={smoothing}: the weight moved to all classes must lie in [0, 1].")
        self.smoothing = smoothing

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        loss = F.cross_entropy(logits, batch.label, label_smoothing=self.smoothing)
        if batch.partner is None:
            return loss
        other = F.cross_entropy(logits, batch.partner.label, label_smoothing=self.smoothing)
        return batch.partner.lam * loss + (1 - batch.partner.lam) * other
