"""Learned proximal networks: exact proximal operators, trained by proximal matching."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.registry import Paper, register
from regbench.regularizers.restoration.base import DenoisingMethod

LOSSES = ("l2", "l1", "pm")
STAGES = (
    {"loss": "l1", "share": 0.5, "lr": 1.0},
    {"loss": "pm", "gamma": 0.64, "share": 0.125, "lr": 0.1},
    {"loss": "pm", "gamma": 0.32, "share": 0.125, "lr": 0.1},
    {"loss": "pm", "gamma": 0.16, "share": 0.125, "lr": 0.1},
    {"loss": "pm", "gamma": 0.08, "share": 0.125, "lr": 0.1},
)


def proximal_matching(found: Tensor, image: Tensor, gamma: float) -> Tensor:
    """Mean over the batch of 1 − exp(−|f(y) − x|² / gamma²): the paper's loss without its factor, as in the code.

    Its minimum tends, as gamma → 0, to the mode of x given y, which is prox of −sigma² log p.

    Args:
        found: f(y), (B, ...).
        image: x, as found; |·| is the norm over all its entries.

    >>> round(proximal_matching(torch.full((1, 4), 1.0), torch.zeros(1, 4), 2.0).item(), 7)  # 1 − exp(−4 / 4)
    0.6321205
    """
    squared = (found - image).flatten(1).square().sum(1)
    return -torch.expm1(-squared / gamma**2).mean()


def stage_at(stages: Sequence[Mapping[str, Any]], step: int, total: int) -> Mapping[str, Any]:
    """The stage of a step of `total`, counted from 0; stages have shares of the steps, rounded to whole steps.

    >>> stages = [{"loss": "l1", "share": 0.5}, {"loss": "pm", "share": 0.5}]
    >>> [stage_at(stages, step, 4)["loss"] for step in range(4)]
    ['l1', 'l1', 'pm', 'pm']
    """
    end = 0.0
    for stage in stages:
        end += stage["share"]
        if step < round(end * total):
            return stage
    return stages[-1]


def check_stages(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The stages with lr 1 where it is left out. Raises UserError for a mistake in them."""
    found = []
    for number, stage in enumerate(stages):
        name = f"regularizer.stages[{number}]"
        for key in stage:
            if key not in ("loss", "gamma", "share", "lr"):
                raise unknown(f"key of {name}", str(key), ("loss", "gamma", "share", "lr"))
        full = {"lr": 1.0} | dict(stage)
        if full.get("loss") not in LOSSES:
            raise unknown(f"{name}.loss", str(full.get("loss")), LOSSES)
        if not full.get("share", 0) > 0 or not full["lr"] > 0:
            raise UserError(
                f"{name}: share and lr must be positive; it has {full.get('share')} and {full['lr']}."
            )
        if (full["loss"] == "pm") != ("gamma" in full) or not full.get("gamma", 1.0) > 0:
            raise UserError(f"{name}: a positive gamma belongs to loss pm, and to no other.")
        found.append(full)
    if not math.isclose(sum(stage["share"] for stage in found), 1.0, abs_tol=1e-6):
        raise UserError("The shares of regularizer.stages must add up to 1.")
    return found


@register(
    "learned_proximal",
    task="restoration",
    paper=Paper(
        title="What's in a Prior? Learned Proximal Networks for Inverse Problems",
        authors="Zhenghan Fang, Sam Buchanan, Jeremias Sulam",
        year=2024,
        venue="ICLR",
        arxiv="2310.14344",
        code="https://github.com/ZhenghanFang/learned-proximal-networks",
    ),
)
class LearnedProximal(DenoisingMethod):
    """The gradient of an input-convex network is exactly the proximal operator of a prior, which can be evaluated;
    trained by proximal matching it is that of the data's own negative log density, and plug-and-play solvers with it
    converge.

    The backbone is a `ProximalNetwork`.

    Args:
        sigma: standard deviation of the noise.
        stages: in their order: loss (l2, l1 or pm), share of all steps, lr (factor of the optimiser's) and for pm
            gamma, as a multiple of the square root of the number of entries of a sample.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        sigma: float = 0.1,
        stages: Sequence[Mapping[str, Any]] = STAGES,
        **base,
    ):
        super().__init__(backbone, num_classes, sigma=sigma, **base)
        self.stages = check_stages(stages)
        if not hasattr(self.backbone.network, "potential"):
            raise UserError(
                "regularizer=learned_proximal takes a convex network's gradient: backbone=lpn, lpn_128 or lpn_vector."
            )
        if self._schedule["name"] != "constant" or self._schedule.get("warmup_epochs"):
            raise UserError(
                "The learning rate follows regularizer.stages: scheduler=constant, without a warm-up."
            )

    @property
    def total_steps(self) -> int:
        """Steps that training takes; 1 outside a trainer."""
        return int(self.trainer.estimated_stepping_batches) if self._trainer is not None else 1

    def denoising_loss(self, found: Tensor, image: Tensor) -> Tensor:
        step = self.global_step if self._trainer is not None else 0
        stage = stage_at(self.stages, step, self.total_steps)
        if stage["loss"] == "l2":
            return (found - image).square().mean()
        if stage["loss"] == "l1":
            return (found - image).abs().mean()
        return proximal_matching(found, image, stage["gamma"] * math.sqrt(image[0].numel()))

    def configure_optimizers(self):
        optimizer, total = super().configure_optimizers(), self.total_steps
        factor = lambda step: stage_at(self.stages, step, total)["lr"]  # noqa: E731
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        self.backbone.network.clamp()
