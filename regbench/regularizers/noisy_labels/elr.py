"""Early-learning regularization (Liu et al. 2020).

Source of every equation: arXiv:2007.00151 ("paper"). "code" is the released code, https://github.com/shengliu66/ELR.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional.distributed import gather_rows
from regbench.functional.early_learning import elr_penalty, kl_penalty, update_targets
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod
from regbench.regularizers.noisy_labels.base import check_targets

FORMS = ("elr", "kl")


@register(
    "elr",
    task="noisy_labels",
    paper=Paper(
        title="Early-Learning Regularization Prevents Memorization of Noisy Labels",
        authors="Sheng Liu, Jonathan Niles-Weed, Narges Razavian, Carlos Fernandez-Granda",
        year=2020,
        venue="NeurIPS",
        arxiv="2007.00151",
        code="https://github.com/shengliu66/ELR",
    ),
)
class ELR(ClassificationMethod):
    """A network first predicts the true class of many wrongly labelled samples and memorises the wrong labels later;
    cross entropy + λ log(1 − ⟨p, t⟩), t a running average of the model's own predictions, nearly stops the latter.

    The targets are a table with a row for each training sample, which `on_data` makes; they start at zero, so that the
    penalty switches itself on over the first epochs. A batch needs the samples' index.

    A batch that another method mixes at share λ with the samples j (`stack=[mixup]`) is pulled towards
    λ t_i + (1 − λ) t_j, as in ELR+. The targets then come from one more pass, of the unmixed images, without gradients
    and with the statistics of evaluation.

    Args:
        beta: β, decay of the targets for each visit of a sample, in [0, 1).
        weight: λ, weight of the penalty.
        form: elr, or kl: −Σ t log p, the penalty that does not prevent memorization (paper, appendix C).
        clamp: predictions are kept in [clamp, 1 − clamp] for the penalty and the targets (code); 0 keeps them (paper).
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        beta: float = 0.7,
        weight: float = 3.0,
        form: str = "elr",
        clamp: float = 1e-4,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not 0 <= beta < 1:
            raise UserError(
                f"regularizer.beta={beta}: it is the share of the old target, 0 or more and below 1."
            )
        if not weight >= 0:
            raise UserError(f"regularizer.weight={weight} must be at least 0.")
        if form not in FORMS:
            raise unknown("regularizer.form", form, FORMS)
        if not 0 <= clamp < 0.5:
            raise UserError(f"regularizer.clamp={clamp}: it lies from 0 to below 0.5.")
        self.beta, self.weight, self.form, self.clamp = beta, weight, form, clamp

    def on_data(self, train_size: int) -> None:
        self.keep_table("targets", train_size)

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        check_targets(self, batch.index)
        ce = super().objective(logits, batch)
        log_p = F.log_softmax(logits.float(), dim=1)
        p = self._kept(log_p.exp())
        seen = p if batch.partner is None else self._kept(self._predict(batch.original))
        # The update comes before the loss, so that the current prediction is part of the target (code).
        update_targets(self.targets, gather_rows(batch.index), gather_rows(seen.detach()), self.beta)
        t = self.targets[batch.index]
        if batch.partner is not None:
            t = torch.lerp(self.targets[batch.partner.index], t, batch.partner.lam)
        return ce + self.weight * (elr_penalty(p, t) if self.form == "elr" else kl_penalty(log_p, t))

    def _kept(self, p: Tensor) -> Tensor:
        return p.clamp(self.clamp, 1 - self.clamp) if self.clamp else p

    @torch.no_grad()
    def _predict(self, image: Tensor) -> Tensor:
        """Probabilities (B, C) of unmixed images; batch norm keeps its statistics."""
        training = self.backbone.training
        self.backbone.eval()
        p = self.backbone(image).float().softmax(dim=1)
        self.backbone.train(training)
        return p
