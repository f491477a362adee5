"""CS-KD: an image's prediction follows that of another image of the same class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.distillation import tempered_kl
from regbench.functional.distributed import gather_rows, own_rows
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod


def same_class_partner(label: Tensor, chance: Tensor) -> Tensor:
    """For each image another one of the same class, itself where there is none.

    The images of a class are put in the order of their chance, and each gets the next one, the last one the first: a
    random cycle, so each other image of the class is as likely.

    Args:
        label: int64 (B,).
        chance: (B,), in [0, 1), of each image.

    Returns:
        int64 (B,), positions in the batch.

    >>> label, chance = torch.tensor([3, 0, 3, 1, 3]), torch.tensor([0.5, 0.1, 0.9, 0.3, 0.2])
    >>> same_class_partner(label, chance)  # the cycle of class 3 is 4, 0, 2
    tensor([2, 1, 4, 3, 0])
    """
    order = (label + chance.double()).argsort()
    ranked = label[order]
    position = torch.arange(len(label), device=label.device)
    first = torch.searchsorted(ranked, ranked)
    last = torch.searchsorted(ranked, ranked, right=True) - 1
    following = torch.where(position == last, first, position + 1)
    return torch.empty_like(order).scatter_(0, order, order[following])


@register(
    "cs_kd",
    task="classification",
    paper=Paper(
        title="Regularizing Class-wise Predictions via Self-knowledge Distillation",
        authors="Sukmin Yun, Jongjin Park, Kimin Lee, Jinwoo Shin",
        year=2020,
        venue="CVPR",
        arxiv="2003.13964",
        code="https://github.com/alinlab/cs-kd",
    ),
)
class CSKD(ClassificationMethod):
    """Pulling an image's tempered prediction towards that of another image of its class makes the predictions within a
    class alike, which lowers the error and the overconfidence.

    The other image is one of the same batch (of all processes together); the released code draws one for each image
    instead, which doubles the batch. Images that are alone in their class get no term.

    Args:
        weight: lambda, of the term, at least 0.
        temperature: T, above 0.
    """

    objective_takes_mixed = False
    why_not_mixed = "a mixed image has no single class whose other images it could follow"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        weight: float = 1.0,
        temperature: float = 4.0,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not (weight >= 0 and temperature > 0):
            raise UserError(
                f"cs_kd needs weight >= 0 and temperature > 0; it got weight={weight}, temperature={temperature}."
            )
        self.weight, self.temperature = weight, temperature

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        label, whole = gather_rows(batch.label), gather_rows(logits.detach())
        chance = torch.rand(len(label), generator=self.generator("pairs")).to(label.device)
        partner = own_rows(same_class_partner(label, chance))
        # Where an image is its own partner the term and its gradient are 0.
        term = tempered_kl(logits.float(), whole.float()[partner], self.temperature).mean()
        return F.cross_entropy(logits, batch.label) + self.weight * term
