"""Decoupled mixup on top of FixMatch: labelled images are mixed with each other and with unlabelled ones."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional import mixing
from regbench.functional.decoupled import decoupled_mixup_cross_entropy
from regbench.functional.distributed import gather_rows, own_rows
from regbench.functional.mixing import Draw
from regbench.registry import Paper, register
from regbench.regularizers.semi_supervised.base import SemiSupervisedMethod

VIEWS = ("strong", "weak")


def mix_with_unlabelled(labelled: Tensor, unlabelled: Tensor, draw: Draw) -> tuple[Tensor, float]:
    """Mixes labelled image i with unlabelled image i so that the labelled one has the larger share.

    Args:
        labelled: (B, C, H, W).
        unlabelled: (B, C, H, W).
        draw: how both together, (2B, C, H, W), are mixed; its partners are replaced.

    Returns:
        The mixed images (B, C, H, W), and the share max(λ, 1 − λ) ≥ 0.5 of the labelled ones.

    >>> draw = mixing.mixup(torch.zeros(2, 1, 1, 1), torch.Generator().manual_seed(0))
    >>> mixed, share = mix_with_unlabelled(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), draw)
    >>> share >= 0.5, abs(mixed.item() - share) < 1e-6
    (True, True)
    """
    count = len(labelled)
    rows = torch.arange(2 * count, device=labelled.device)
    # Every policy's `mix` is a partial with the keyword `partner`: here the other half, in place of a permutation.
    mixed = draw.mix(torch.cat((labelled, unlabelled)), partner=rows.roll(count))
    if draw.lam >= 0.5:
        return mixed[:count], draw.lam
    return mixed[count:], 1 - draw.lam  # the unlabelled image, with the labelled one as its partner


def rise(progress: float) -> float:
    """(1 − cos(π · progress)) / 2: from 0 to 1 over training.

    >>> [round(rise(p), 4) for p in (0.0, 0.5, 1.0)]
    [0.0, 0.5, 1.0]
    """
    return (1 - math.cos(math.pi * progress)) / 2


@register(
    "decoupled_mixup_ssl",
    task="semi_supervised",
    paper=Paper(
        title="Harnessing Hard Mixed Samples with Decoupled Regularizer",
        authors="Zicheng Liu, Siyuan Li, Ge Wang, Cheng Tan, Lirong Wu, Stan Z. Li",
        year=2023,
        venue="NeurIPS",
        arxiv="2203.10761",
        code="https://github.com/Westlake-AI/openmixup",
    ),
)
class DecoupledMixupSSL(SemiSupervisedMethod):
    """In semi-supervised learning, decoupled mixup of labelled images with each other and, in a larger share, with
    unlabelled images raises the accuracy over FixMatch.

    After openmixup's class DMixMatch; the paper's text was not seen. The mixed images go through a second linear
    layer, which is not used at test time.

    Args:
        threshold: confidence from which a pseudo label counts.
        weight: of FixMatch's loss on unlabelled images; above 0.
        teacher: what gives the pseudo labels: network or average.
        decay: of the moving average that is tested, for each step.
        decay_end: that it rises to; null: it stays.
        policy: mixup, cutmix, resizemix, fmix or saliencymix.
        alpha: the mixing share is drawn from Beta(alpha, alpha).
        policy_options: the policy's other hyperparameters by name, e.g. {"decay": 3} for fmix.
        eta: weight η of the decoupled terms.
        labelled_term_only: in a mix with an unlabelled image only the labelled one's class gets a decoupled term.
        weight_labelled: of the loss on labelled images mixed with each other.
        weight_unlabelled: of the loss on labelled images mixed with unlabelled ones, at the end of training; it rises
            from 0 as 1 − cosine.
        mix_threshold: lower confidence that suffices where the unlabelled image's share is smaller than it; at most
            `threshold`.
        view: of the unlabelled image that is mixed: strong or weak.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        threshold: float = 0.95,
        weight: float = 1.0,
        teacher: str = "average",
        decay: float = 0.999,
        decay_end: float | None = 0.99999,
        policy: str = "mixup",
        alpha: float = 1.0,
        policy_options: Mapping[str, Any] | None = None,
        eta: float = 1.0,
        labelled_term_only: bool = False,
        weight_labelled: float = 1.0,
        weight_unlabelled: float = 1.0,
        mix_threshold: float = 0.95,
        view: str = "strong",
        **base,
    ):
        super().__init__(
            backbone,
            num_classes,
            threshold=threshold,
            weight=weight,
            teacher=teacher,
            decay=decay,
            decay_end=decay_end,
            **base,
        )
        if policy == "manifold_mixup":
            raise UserError(
                "decoupled_mixup_ssl mixes images, and manifold_mixup mixes layers; choose another policy."
            )
        self.draw = mixing.bind(policy, {"alpha": alpha, **(policy_options or {})})
        if not weight:
            raise UserError("decoupled_mixup_ssl needs pseudo labels: regularizer.weight must be above 0.")
        if not (eta >= 0 and weight_labelled >= 0 and weight_unlabelled >= 0):
            raise UserError(
                f"regularizer.eta={eta}, weight_labelled={weight_labelled} and weight_unlabelled={weight_unlabelled} "
                "must be at least 0."
            )
        if not 0 <= mix_threshold <= threshold:
            raise UserError(
                f"regularizer.mix_threshold={mix_threshold}: it lies between 0 and threshold={threshold}."
            )
        if view not in VIEWS:
            raise unknown("view of decoupled_mixup_ssl", view, VIEWS)
        self.eta, self.labelled_term_only = eta, labelled_term_only
        self.weight_labelled, self.weight_unlabelled = weight_labelled, weight_unlabelled
        self.mix_threshold, self.view = mix_threshold, view
        self.mix_head = nn.Linear(self.student.num_features, num_classes)

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        frame = self.consistency(batch)
        image, label, unlabelled = batch["image"], batch["label"], batch[f"unlabelled_{self.view}"]
        count = len(image)
        # With several processes the global batch is mixed, so that together they do what one process does.
        whole, whole_label = gather_rows(image), gather_rows(label)
        pairs = self.draw(whole, self.generator("mix"))
        other = gather_rows(unlabelled[:count])
        across = self.draw(torch.cat((whole, other)), self.generator("mix with unlabelled"))
        with_unlabelled, share = mix_with_unlabelled(whole, other, across)
        mixed = torch.cat((own_rows(pairs.mix(whole)), own_rows(with_unlabelled)))
        on_labelled, on_both = self.mix_head(self.student.outputs(mixed).features).split(count)

        partner = own_rows(whole_label[pairs.partner])
        labelled = decoupled_mixup_cross_entropy(on_labelled, label, partner, pairs.lam, eta=self.eta)
        keep = frame.confidence[:count] >= min(self.threshold, max(self.mix_threshold, 1 - share))
        both = decoupled_mixup_cross_entropy(
            on_both,
            label,
            frame.label[:count],
            share,
            eta=self.eta,
            mode="more" if self.labelled_term_only else "both",  # the labelled image has the larger share
            keep=keep,
        )
        return (
            frame.loss + self.weight_labelled * labelled + self.weight_unlabelled * rise(self.progress) * both
        )
