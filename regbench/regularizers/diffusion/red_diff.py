"""RED-diff: restoring an image by optimisation, with a diffusion model's denoising residual (Mardani et al. 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regbench import seeding
from regbench.errors import UserError, unknown
from regbench.functional.diffusion import WEIGHTS, noised, prior_weight
from regbench.registry import Paper, register
from regbench.regularizers.diffusion.base import Draws, RestorationMethod
from regbench.regularizers.diffusion.operators import DEGRADATION

ORDERS = ("descending", "ascending", "random")
INITS = ("pinv", "noise")
REDUCTIONS = ("mean", "sum")
BETAS = (0.9, 0.99)  # of Adam, as in the released code


def red_diff_loss(
    x: Tensor,
    y: Tensor,
    measured: Tensor,
    residual: Tensor,
    weight: float,
    obs_weight: float,
    reduction: str = "mean",
) -> Tensor:
    """Sum over the images of obs_weight · mean((y − A(x))²) / 2 + weight · mean(sg(e − eps) · x).

    The second term's gradient with respect to x is weight (e − eps) / n: it stands for the score-matching term, whose
    own gradient would lead through the network. Each mean is over the entries of its own tensor, n of an image and m of
    its measurements, as in the released code: with fewer measurements than pixels one measurement weighs n / m times as
    much as with `sum`.

    Args:
        x: the image that is looked for, (B, C, H, W).
        y: its measurements, (B, …); measured: A(x).
        residual: e − eps, as x: predicted noise less the noise that was added. No gradient flows into it.

    >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> y, residual = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, -0.5]])
    >>> red_diff_loss(x, y, x, residual, weight=0.5, obs_weight=1.0).backward()
    >>> x.grad  # (x − y) / 2 + .5 (e − eps) / 2
    tensor([[0.1250, 0.8750]])
    """
    reduce = torch.mean if reduction == "mean" else torch.sum
    data = reduce((y - measured).pow(2).flatten(1), dim=1) / 2
    prior = reduce((residual.detach() * x).flatten(1), dim=1)
    return (obs_weight * data + weight * prior).sum()


@register(
    "red_diff",
    task="restoration",
    paper=Paper(
        title="A Variational Perspective on Solving Inverse Problems with Diffusion Models",
        authors="Morteza Mardani, Jiaming Song, Jan Kautz, Arash Vahdat",
        year=2024,
        venue="ICLR",
        arxiv="2305.04391",
        code="https://github.com/NVlabs/RED-diff",
    ),
)
class REDDiff(RestorationMethod):
    """Restoring an image by stochastic optimisation, with data fit and a diffusion model's weighted denoising residual
    as the regularizer, beats samplers of the posterior in fidelity, without a gradient through the network.

    mu starts at the pseudo-inverse. For each time t of the grid, from the last to the first: x_t = sqrt(ab_t) x_0 +
    sqrt(1 − ab_t) eps with x_0 = mu + sigma_x0 z and fresh eps, and a step of Adam on `red_diff_loss` with the weight
    strength · f(1 / SNR_t).

    Args:
        lr: of Adam; its betas are 0.9 and 0.99.
        strength: lambda, the weight of the regularizer.
        obs_weight: of the data fit.
        weight: f, how the regularizer's weight grows with r = 1 / SNR_t: linear r, sqrt, square, log (1 + r),
            trunc_linear min(r, 1), const 1, power2over3 r^(2/3).
        sigma_x0: standard deviation of the estimate's distribution, in units of pixels in [−1, 1].
        order: of the times: descending, ascending or random, each drawn from the grid anew.
        init: pinv, the pseudo-inverse of y, or noise, N(0, 1).
        reduction: of the two terms, see `red_diff_loss`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        prior: nn.Module,
        degradation: Mapping[str, Any] = DEGRADATION,
        steps: int = 100,
        lr: float = 0.1,
        strength: float = 0.25,
        obs_weight: float = 1.0,
        weight: str = "linear",
        sigma_x0: float = 0.0,
        order: str = "descending",
        init: str = "pinv",
        reduction: str = "mean",
        **base,
    ):
        super().__init__(backbone, num_classes, prior=prior, degradation=degradation, steps=steps, **base)
        choices = (("weight", weight, WEIGHTS), ("order", order, ORDERS), ("init", init, INITS),
                   ("reduction", reduction, REDUCTIONS))  # fmt: skip
        for key, value, known in choices:
            if value not in known:
                raise unknown(f"regularizer.{key}", str(value), known)
        if lr <= 0 or min(strength, obs_weight, sigma_x0) < 0:
            raise UserError(
                f"regularizer.lr={lr} must be positive, strength={strength}, obs_weight={obs_weight} and "
                f"sigma_x0={sigma_x0} at least 0."
            )
        self.lr, self.strength, self.obs_weight, self.weight = lr, strength, obs_weight, weight
        self.sigma_x0, self.order, self.init, self.reduction = sigma_x0, order, init, reduction

    def schedule(self) -> list[int]:
        """The times in the order of the steps."""
        if self.order == "random":
            draws = seeding.generator(self.seed, "times")
            chosen = torch.randint(len(self.times), (len(self.times),), generator=draws)
            return [self.times[i] for i in chosen.tolist()]
        return list(reversed(self.times)) if self.order == "descending" else self.times

    def restore(self, y: Tensor, operator: Any, draws: Draws) -> Tensor:
        start = operator.A_dagger(y) if self.init == "pinv" else draws.normal()
        mu = start.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([mu], lr=self.lr, betas=BETAS)
        for t in self.schedule():
            x = mu + self.sigma_x0 * draws.normal() if self.sigma_x0 else mu
            noise, ab = draws.normal(), self.bar(t)
            with torch.no_grad():
                residual = self.predict(noised(x, noise, ab), t) - noise
            weight = self.strength * prior_weight(self.weight, ab)
            loss = red_diff_loss(x, y, operator.A(x), residual, weight, self.obs_weight, self.reduction)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return mu.detach()
