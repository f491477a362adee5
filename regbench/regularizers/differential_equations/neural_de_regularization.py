"""Neural ODEs and SDEs regularised by their solver's own estimates of error and stiffness (Pal et al. 2021).

R_E and R_S are from the abstract and an excerpt of the paper (arXiv:2105.03918), the rest is the released code's
(avik-pal/RegNeuralDE.jl). Beside them stand the baselines that the paper compares with, STEER and TayNODE, and local
regularization of the same authors (ICML 2023, avik-pal/LocalRegNeuralDE.jl).
"""

import torch
from torch import Tensor, nn

from regbench.backbones.differential_equations import NeuralODE
from regbench.errors import UserError, unknown
from regbench.functional.solver_heuristics import Field, SolverPenalty, taylor_penalty
from regbench.registry import Paper, register
from regbench.regularizers.differential_equations.base import PointMethod
from regbench.solvers import tsit5
from regbench.solvers.solution import Solution, scaled_error

LOCAL = ("unbiased", "biased")


def local_step(
    f: Field, solution: Solution, tolerance: float, variant: str, generator: torch.Generator
) -> Solution:
    """One Tsit5 step from a random time of a solution, whose state there is a constant of the graph.

    Local regularization (Pal et al. 2023). The step's size is what the solver would start with there. The times are 0
    and that size: they count from the step's start. Evaluations are not counted.

    Args:
        variant: unbiased: the time is uniform on the interval; biased: it is the start of an accepted step.
    """
    with torch.no_grad():
        if variant == "biased":
            chosen = int(torch.randint(len(solution.steps), (), generator=generator))
            t, z = solution.times[chosen], solution.states[chosen].detach()
            slope = f(t, z)
        else:
            start, end = solution.times[0], solution.times[-1]
            t = start + (end - start) * float(torch.rand((), generator=generator, dtype=torch.float64))
            before = max(i for i, time in enumerate(solution.times[:-1]) if time <= t)
            z = solution.states[before].detach()
            slope = f(solution.times[before], z)
            if (
                h := t - solution.times[before]
            ) > 0:  # shorter than the accepted step, so at least as accurate
                z, slope, *_ = tsit5.step(f, solution.times[before], z, slope, h)
        h = tsit5.first_step(f, t, z, slope, solution.times[-1] - t, tolerance)
    step = tsit5.step(f, t, z, f(t, z), h)
    error = scaled_error(step.error, z, step.state, tolerance)
    return Solution([0.0, h], [z, step.state], tsit5.STABILITY, [error], [step.stiffness])


@register(
    "neural_de_regularization",
    task="neural_ode",
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
class NeuralDERegularization(PointMethod):
    """Adding the solver's own estimates of its local error, or of stiffness, to the loss makes neural differential
    equations that take fewer evaluations to solve, at almost the same accuracy, and that train faster.

    The loss is the cross entropy + λ(epoch) R, R = agg_j( error E_j |h_j| + stiffness S_j / s ) over the accepted steps
    of the training solve. Gradients go through the steps; their sizes are constants.

    Args:
        error: weight of E_j |h_j| in R; 0: none.
        stiffness: weight of S_j / s in R; 0: none. With both 0 there is no R, and λ is not used.
        weight_start: λ_0, in the first epoch.
        weight_end: λ_1, which the exponential decay would reach after the last epoch.
        aggregate: mean, sum or max over the steps.
        steer: b; a training step ends at T ~ U(T − b, T + b) (STEER, Ghosh et al. 2020); 0: at T.
        taylor: weight of ∫ ‖d^K z / dt^K‖² dt (TayNODE, Kelly et al. 2020), of ODEs; 0: none.
        taylor_order: K.
        local: unbiased or biased: R is of one step from a random time (Pal et al. 2023), of ODEs; None: of all steps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        error: float = 1.0,
        stiffness: float = 0.0,
        weight_start: float = 100.0,
        weight_end: float = 10.0,
        aggregate: str = "mean",
        steer: float = 0.0,
        taylor: float = 0.0,
        taylor_order: int = 3,
        local: str | None = None,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        self.solver_penalty = SolverPenalty(error, stiffness, weight_start, weight_end, aggregate)
        if not 0 <= steer <= self.flow.end or taylor < 0 or taylor_order < 1:
            raise UserError(
                f"regularizer.steer={steer} is from 0 to backbone.end={self.flow.end}, regularizer.taylor={taylor} a "
                f"weight, at least 0, regularizer.taylor_order={taylor_order} at least 1."
            )
        if local is not None and local not in LOCAL:
            raise unknown("regularizer.local", local, LOCAL)
        if (taylor or local) and not isinstance(self.flow, NeuralODE):
            raise UserError(
                "regularizer.taylor and regularizer.local are for ODEs: take backbone=neural_ode."
            )
        if local and not self.solver_penalty.wanted:
            raise UserError(
                f"regularizer.local={local} says of which step R is, and with regularizer.error=0 and "
                "regularizer.stiffness=0 there is no R: set one of the two, or regularizer.local=null."
            )
        self.steer, self.taylor, self.taylor_order, self.local = steer, taylor, taylor_order, local

    def end_time(self) -> float | None:
        if not self.steer:
            return None
        uniform = float(torch.rand((), generator=self.generator("steer"), dtype=torch.float64))
        return self.flow.end + (2 * uniform - 1) * self.steer

    def penalty(self, solution: Solution) -> Tensor | None:
        if not solution.errors:
            return None
        steps = solution
        if self.local:
            steps = local_step(
                self.flow.field, solution, self.flow.tolerance, self.local, self.generator("local")
            )
        penalty = self.solver_penalty.of(steps, **self.progress)
        if not self.taylor:
            return penalty
        value = taylor_penalty(self.flow.field, solution.times, solution.states, self.taylor_order)
        return self.taylor * value if penalty is None else penalty + self.taylor * value
