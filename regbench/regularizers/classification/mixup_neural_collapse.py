"""Mixup as Fisher et al. study it: a bias-free head, learnt or a fixed simplex ETF; cross entropy or squared error."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench import seeding
from regbench.errors import UserError, unknown
from regbench.functional import mixing
from regbench.functional.losses import mixup_cross_entropy
from regbench.functional.mixing import Draw
from regbench.functional.neural_collapse import simplex_etf
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod

LOSSES = ("ce", "mse")
HEADS = ("learnt", "etf")


def same_class_partner(label: Tensor, generator: torch.Generator) -> Tensor:
    """A random permutation (B,) that maps every sample to one of its own class, uniform among those.

    >>> label = torch.tensor([2, 0, 2, 0, 1])
    >>> partner = same_class_partner(label, torch.Generator().manual_seed(0))
    >>> label[partner].tolist(), sorted(partner.tolist())
    ([2, 0, 2, 0, 1], [0, 1, 2, 3, 4])
    """
    shuffled = torch.randperm(len(label), generator=generator).to(label.device, non_blocking=True)
    by_class = label.argsort(stable=True)
    partner = torch.empty_like(by_class)
    partner[by_class] = shuffled[label[shuffled].argsort(stable=True)]
    return partner


def mixup_squared_error(logits: Tensor, label_a: Tensor, label_b: Tensor, lam: float) -> Tensor:
    """λ MSE(z, e_a) + (1 − λ) MSE(z, e_b), MSE the mean over batch and classes. A scalar.

    Up to a term without z it is the squared error to the mixed target λ e_a + (1 − λ) e_b.

    Args: as for `regbench.functional.losses.mixup_cross_entropy`.

    >>> z, a, b = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0]), torch.tensor([1])
    >>> round(mixup_squared_error(z, a, b, 0.7).item(), 4)  # 0.7 · (1 + 1 + 0 + 1) / 4 + 0.3 · (4 + 0 + 0 + 1) / 4
    0.9
    """
    target_a, target_b = (F.one_hot(y, logits.shape[1]).to(logits.dtype) for y in (label_a, label_b))
    return lam * F.mse_loss(logits, target_a) + (1 - lam) * F.mse_loss(logits, target_b)


@register(
    "mixup_neural_collapse",
    task="classification",
    paper=Paper(
        title="Pushing Boundaries: Mixup's Influence on Neural Collapse",
        authors="Quinn LeBlanc Fisher, Haoming Meng, Vardan Papyan",
        year=2024,
        venue="ICLR",
        arxiv="2402.06171",
    ),
)
class MixupNeuralCollapse(ClassificationMethod):
    """Mixup with cross entropy makes the last-layer features of same-class mixtures collapse onto the classifier's
    rows, a simplex ETF, while those of different classes form channels along the decision boundary instead of straight
    chords; this lowers the calibration error, and a classifier fixed to an ETF brings the features nearer to theory.

    A study rather than a new regularizer: measure with `callbacks=[default,neural_collapse]`. The head has no bias (it
    stays at 0), as in the theory; the paper's own heads were not seen.

    Args:
        alpha: the share of the image is drawn from Beta(alpha, alpha); 0 mixes nothing: empirical risk minimisation.
        same_class: whether an image is mixed with images of its own class only.
        loss: ce (cross entropy), or mse (squared error of the logits to one-hot targets).
        head: learnt, or etf (the classifier stays a simplex ETF in a random orientation).
        etf_scale: norm of the rows of that ETF.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        alpha: float = 1.0,
        same_class: bool = False,
        loss: str = "ce",
        head: str = "learnt",
        etf_scale: float = 1.0,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if alpha < 0:
            raise UserError(f"regularizer.alpha={alpha} must be at least 0; 0 mixes nothing.")
        if loss not in LOSSES:
            raise unknown("loss of mixup_neural_collapse", loss, LOSSES)
        if head not in HEADS:
            raise unknown("head of mixup_neural_collapse", head, HEADS)
        self.alpha, self.same_class, self.loss = alpha, same_class, loss
        classifier = self.backbone.classifier
        # What is fixed stays a parameter, so that checkpoints and exports are those of the network as it was, but it
        # has no gradient: the optimiser, and its weight decay with it, never gets it.
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)
            classifier.bias.requires_grad_(False)
        if head == "etf":
            generator = seeding.generator(self.seed, "etf")
            etf = simplex_etf(num_classes, self.backbone.num_features, etf_scale, generator)
            with torch.no_grad():
                classifier.weight.copy_(etf.view_as(classifier.weight))
            classifier.weight.requires_grad_(False)

    def mix(self, image: Tensor, label: Tensor) -> Draw | None:
        if self.alpha == 0:
            return None
        generator = self.generator("mix")
        if not self.same_class:
            return mixing.mixup(image, generator, alpha=self.alpha)
        lam, partner = mixing.beta(self.alpha, generator), same_class_partner(label, generator)
        return Draw(partner, lam, partial(mixing.interpolate, partner=partner, lam=lam))

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        label_b, lam = (batch.label, 1.0) if batch.partner is None else batch.partner[:2]
        loss = mixup_cross_entropy if self.loss == "ce" else mixup_squared_error
        return loss(logits, batch.label, label_b, lam)
