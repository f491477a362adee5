"""Latent ODEs of time series, regularised by their solver's own estimates (Pal et al. 2021, PhysioNet)."""

import torch
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.solver_heuristics import SolverPenalty, taylor_penalty
from regbench.registry import Paper, register
from regbench.regularizers.differential_equations.base import SeriesMethod
from regbench.solvers.solution import Solution


def moved_times(time: Tensor, reach: float, uniform: Tensor, end: float) -> Tensor:
    """Times t_i of observations → U(t_i − b δ_i, t_i + b δ_i), δ_i = t_i − t_(i−1), within [0, end]; t_0 stays.

    The released code's STEER. Evenly spaced times keep their order; others that would fall behind one before them are
    taken to be at its time.

    Args:
        time: (T,), ascending.
        reach: b, at most 1/2.
        uniform: (T − 1,), draws from U(0, 1).

    >>> moved_times(torch.tensor([0.0, 0.4, 1.0]), 0.5, torch.tensor([0.25, 1.0]), 1.0)  # 0.4 − 0.1; 1 + 0.3
    tensor([0.0000, 0.3000, 1.0000])
    """
    moved = time[1:] + (2 * uniform - 1) * reach * time.diff()
    return torch.cat([time[:1], moved.clamp(0, end)]).cummax(0).values


@register(
    "latent_ode_regularization",
    task="time_series",
    paper=Paper(
        title="Opening the Blackbox: Accelerating Neural Differential Equations by Regularizing Internal Solver "
        "Heuristics",
        authors="Avik Pal, Yingbo Ma, Viral Shah, Christopher Rackauckas",
        year=2021,
        venue="ICML",
        arxiv="2105.03918",
        code="https://github.com/avik-pal/RegNeuralDE.jl",
    ),
)
class LatentODERegularization(SeriesMethod):
    """Adding the solver's own estimates of its local error, or of stiffness, to the loss makes a latent ODE that takes
    fewer evaluations to solve and interpolates time series as well.

    The loss is minus the evidence lower bound + λ(epoch) R, R as `neural_de_regularization` has it.

    Args:
        error: weight of E_j |h_j| in R; 0: none.
        stiffness: weight of S_j / s in R; 0: none. With both 0 there is no R, and λ is not used.
        weight_start: λ_0, in the first epoch.
        weight_end: λ_1, which the exponential decay would reach after the last epoch.
        aggregate: mean, sum or max over the steps.
        steer: b; a training step takes the observations to be at other times, see `moved_times`; 0: at their own.
        taylor: weight of ∫ ‖d^K z / dt^K‖² dt (TayNODE, Kelly et al. 2020); 0: none.
        taylor_order: K.
        deviation: σ, of the observations.
        kl_start, kl_rate: the KL's weight is max(0, 1 − kl_rate^(e − kl_start)) in epoch e, counted from 0.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        error: float = 1.0,
        stiffness: float = 0.0,
        weight_start: float = 1000.0,
        weight_end: float = 100.0,
        aggregate: str = "mean",
        steer: float = 0.0,
        taylor: float = 0.0,
        taylor_order: int = 3,
        deviation: float = 0.01,
        kl_start: int = 10,
        kl_rate: float = 0.99,
        **base,
    ):
        super().__init__(
            backbone, num_classes, deviation=deviation, kl_start=kl_start, kl_rate=kl_rate, **base
        )
        self.solver_penalty = SolverPenalty(error, stiffness, weight_start, weight_end, aggregate)
        if not 0 <= steer <= 0.5 or taylor < 0 or taylor_order < 1:
            raise UserError(
                f"regularizer.steer={steer} is from 0 to 0.5, regularizer.taylor={taylor} a weight, at least 0, "
                f"regularizer.taylor_order={taylor_order} at least 1."
            )
        if steer and not self.flow.end:
            raise UserError(
                f"regularizer.steer={steer} moves observations within the time that is solved, and backbone.end=0 "
                "solves none: set regularizer.steer=0, or another backbone.end."
            )
        self.steer, self.taylor, self.taylor_order = steer, taylor, taylor_order

    def training_time(self, time: Tensor) -> Tensor:
        if not self.steer:
            return time
        uniform = torch.rand(len(time) - 1, generator=self.generator("steer"), dtype=torch.float64)
        return moved_times(time, self.steer, uniform.to(time.device), self.flow.end)

    def penalty(self, solution: Solution) -> Tensor | None:
        penalty = self.solver_penalty.of(solution, **self.progress)
        if not solution.errors or not self.taylor:
            return penalty
        value = taylor_penalty(self.flow.field, solution.times, solution.states, self.taylor_order)
        return self.taylor * value if penalty is None else penalty + self.taylor * value
