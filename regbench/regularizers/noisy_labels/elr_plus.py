"""ELR+: early-learning regularization with two networks, their moving averages and mixup (Liu et al. 2020, section 5).

"code" is the released code, https://github.com/shengliu66/ELR, folder ELR_plus; it decides where the paper is silent.
"""

import copy

import torch
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional import mixing
from regbench.functional.distributed import gather_rows, own_rows
from regbench.functional.early_learning import elr_penalty, sigmoid_ramp, update_targets
from regbench.functional.moving_average import step_average
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch
from regbench.regularizers.noisy_labels.base import TwoNetworks, check_targets

CLAMP = 1e-4  # predictions are kept this far from 0 and 1 in the penalty; code
STATISTICS = ("average", "batch")


def average_decay(step: int, decay: float, ramp_steps: int) -> float:
    """Decay of the average after `step` optimiser steps (from 1): decay · sigmoid_ramp, or, without a ramp, at most
    1 − 1 / (step + 1), so that the first steps do not weigh the initial weights (code).

    >>> [round(average_decay(s, 0.997, 40_000), 6) for s in (0, 10_000, 20_000, 30_000, 40_000)]
    [0.006718, 0.059875, 0.285645, 0.729421, 0.997]
    >>> [average_decay(s, 0.997, 0) for s in (1, 3, 1000)]
    [0.5, 0.75, 0.997]
    """
    if ramp_steps:
        return decay * sigmoid_ramp(step, ramp_steps)
    return min(1 - 1 / (step + 1), decay)


def rewritten(label: Tensor, q: Tensor) -> Tensor:
    """Soft labels times targets, normalised: y ← y · q / Σ_c y_c q_c; rows without any overlap stay as they are.

    >>> rewritten(torch.tensor([[0.7, 0.3, 0.0]]), torch.tensor([[0.2, 0.6, 0.2]]))
    tensor([[0.4375, 0.5625, 0.0000]])
    """
    product = label * q
    total = product.sum(dim=1, keepdim=True)
    return torch.where(total > 0, product / total.clamp(min=torch.finfo(q.dtype).tiny), label)


@register(
    "elr_plus",
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
class ELRPlus(TwoNetworks):
    """ELR with two networks, each of which takes its targets from the moving average of the other one, and mixup: on a
    par with methods that select samples and change labels.

    Of one batch each network sees a mixture of its own. The code trains them on epochs in turn, each with an order, a
    split and label noise of its own; here both take a step on each batch. Tested is the mean of both networks' logits
    (code, with one GPU).

    Args:
        beta: β, decay of the targets for each visit of a sample, in [0, 1).
        weight: λ, weight of the penalty.
        alpha: of mixup; the larger of the share and its complement belongs to the image itself. 0 mixes nothing.
        penalty_ramp_steps: steps over which the penalty's weight rises from e⁻⁵ λ to λ; 0: λ at once.
        rewrite: whether the mixed labels are multiplied by the targets and normalised (code, with 100 classes only).
        decay: of the moving averages, for each step.
        decay_ramp_steps: steps over which that decay rises; see `average_decay`.
        statistics: what the averages normalise by: average (of the networks' running statistics, in evaluation mode) or
            batch (the batch's, in training mode; code).
        pretrained: whether the network's weights are pretrained; then both start from them but for the classifier.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        beta: float = 0.7,
        weight: float = 3.0,
        alpha: float = 1.0,
        penalty_ramp_steps: int = 0,
        rewrite: bool = False,
        decay: float = 0.997,
        decay_ramp_steps: int = 40_000,
        statistics: str = "average",
        pretrained: bool = False,
        **base,
    ):
        super().__init__(backbone, num_classes, pretrained=pretrained, **base)
        if not 0 <= beta < 1:
            raise UserError(
                f"regularizer.beta={beta}: it is the share of the old target, 0 or more and below 1."
            )
        if not weight >= 0 or not alpha >= 0:
            raise UserError(f"regularizer.weight={weight} and alpha={alpha} must be at least 0.")
        if not 0 <= decay < 1:
            raise UserError(f"regularizer.decay={decay} of the averages lies from 0 to below 1.")
        for name, steps in (("penalty", penalty_ramp_steps), ("decay", decay_ramp_steps)):
            if steps < 0:
                raise UserError(f"regularizer.{name}_ramp_steps={steps} is a number of steps, 0 or more.")
        if statistics not in STATISTICS:
            raise unknown("regularizer.statistics", statistics, STATISTICS)
        self.beta, self.weight, self.alpha, self.rewrite = beta, weight, alpha, rewrite
        self.penalty_ramp_steps, self.decay_ramp_steps = penalty_ramp_steps, decay_ramp_steps
        self.decay, self.statistics = decay, statistics
        self.averages = nn.ModuleList(copy.deepcopy(network.network) for network in self.pair).requires_grad_(
            False
        )
        self.steps = 0  # outside a trainer, which counts itself

    def on_data(self, train_size: int) -> None:
        for name in ("targets", "second_targets"):
            self.keep_table(name, train_size)

    def train(self, mode: bool = True) -> "ELRPlus":
        super().train(mode)
        self.averages.train(mode and self.statistics == "batch")
        return self

    @property
    def step(self) -> int:
        """Number of the current optimiser step, from 1."""
        return 1 + (self.steps if self._trainer is None else self.global_step)

    def pair_loss(self, batch: Batch) -> Tensor:
        check_targets(self, batch.index)
        image, label, index = gather_rows(batch.image), gather_rows(batch.label), gather_rows(batch.index)
        one_hot = nn.functional.one_hot(label, self.num_classes).to(image.dtype)
        weight = self.weight * sigmoid_ramp(self.step, self.penalty_ramp_steps)
        loss = 0.0
        for k, targets in enumerate((self.targets, self.second_targets)):
            generator = self.generator(f"mix {k}")
            lam = mixing.beta(self.alpha, generator) if self.alpha else 1.0
            lam = max(lam, 1 - lam)
            other = torch.randperm(len(image), generator=generator).to(image.device)
            mixed = own_rows(mixing.interpolate(image, other, lam))
            with torch.no_grad():  # the other network's average, on the images as they are
                seen = self.averages[1 - k](batch.image).float().softmax(dim=1)
            update_targets(targets, index, gather_rows(seen), self.beta)
            q = own_rows(torch.lerp(targets[index[other]], targets[index], lam))
            y = own_rows(torch.lerp(one_hot[other], one_hot, lam))
            if self.rewrite:
                y = rewritten(y, q)
            log_p = self.pair[k](mixed).float().log_softmax(dim=1)
            ce = -(y * log_p).sum(dim=1).mean()
            loss = loss + ce + weight * elr_penalty(log_p.exp().clamp(CLAMP, 1 - CLAMP), q)
        return loss

    def after_step(self) -> None:
        decay = average_decay(self.step, self.decay, self.decay_ramp_steps)
        for average, network in zip(self.averages, self.pair, strict=True):
            step_average(average, network.network, decay)
        self.steps += 1
