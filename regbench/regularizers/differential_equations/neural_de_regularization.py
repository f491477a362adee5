"""Neural ODEs and SDEs regularised by their solver's own estimates of error and stiffness (Pal et al. 2021).

R_E and R_S are from the abstract and an excerpt of the paper (arXiv:2105.03918), the rest is the released code's
(avik-pal/RegNeuralDE.jl). Beside them stand the baselines that the paper compares with, STEER and TayNODE, and local
regularization of the same authors (ICML 2023, avik-pal/LocalRegNeuralDE.jl).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jvp

from regbench.backbones.differential_equations import NeuralODE
from regbench.errors import UserError, unknown
from regbench.functional.solver_heuristics import AGGREGATES, decayed_weight, heuristic_penalty
from regbench.registry import Paper, register
from regbench.regularizers.differential_equations.base import PointMethod
from regbench.solvers import tsit5
from regbench.solvers.solution import Solution, scaled_error

LOCAL = ("unbiased", "biased")
Field = Callable[[Tensor, Tensor], Tensor]


def total_derivative(f: Field, order: int) -> Field:
    """(t, z) → d^order z / dt^order along solutions of z' = f(t, z), by nested forward-mode differentiation.

    Args:
        f: maps times (N, 1) and states (N, d) to slopes (N, d).
        order: at least 1; 1 is f.

    >>> square = total_derivative(lambda t, z: z**2, 3)  # z' = z², z'' = 2 z³, z''' = 6 z⁴
    >>> square(torch.zeros(1, 1), torch.full((1, 1), 2.0))
    tensor([[96.]])
    """
    if order == 1:
        return f
    below = total_derivative(f, order - 1)

    def derivative(t: Tensor, z: Tensor) -> Tensor:
        return jvp(below, (t, z), (torch.ones_like(t), f(t, z)))[1]

    return derivative


def taylor_penalty(f: Field, solution: Solution, order: int) -> Tensor:
    """∫ ‖d^K z / dt^K‖² dt (Kelly et al. 2020), mean over the samples, by the trapezoidal rule over the accepted steps.

    >>> solution = Solution([0.0, 0.5, 1.0], [torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[2.0]])], 1.0)
    >>> taylor_penalty(lambda t, z: z, solution, 1)  # 1/2 · (0 + 1) / 2 + 1/2 · (1 + 4) / 2
    tensor(1.5000)
    """
    states = torch.stack(solution.states)
    n, batch, _ = states.shape
    times = torch.tensor(solution.times, dtype=states.dtype, device=states.device)
    slope = total_derivative(f, order)(times.repeat_interleave(batch)[:, None], states.flatten(0, 1))
    return torch.trapezoid(slope.square().sum(1).view(n, batch).mean(1), times)


def local_step(
    f: Callable, solution: Solution, tolerance: float, variant: str, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """(E, S, h) of one Tsit5 step from a random time of a solution, whose state there is a constant of the graph.

    Local regularization (Pal et al. 2023). The step's size is what the solver would start with there.

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
    return scaled_error(step.error, z, step.state, tolerance), step.stiffness, h


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
        if min(error, stiffness, taylor) < 0 or min(weight_start, weight_end) <= 0:
            raise UserError(
                f"regularizer.error={error}, regularizer.stiffness={stiffness} and regularizer.taylor={taylor} are "
                f"weights, at least 0; regularizer.weight_start={weight_start} and regularizer.weight_end={weight_end} "
                "must be above 0."
            )
        if not 0 <= steer <= self.flow.end or taylor_order < 1:
            raise UserError(
                f"regularizer.steer={steer} is from 0 to backbone.end={self.flow.end}, "
                f"regularizer.taylor_order={taylor_order} at least 1."
            )
        if aggregate not in AGGREGATES:
            raise unknown("regularizer.aggregate", aggregate, AGGREGATES)
        if local is not None and local not in LOCAL:
            raise unknown("regularizer.local", local, LOCAL)
        if (taylor or local) and not isinstance(self.flow, NeuralODE):
            raise UserError(
                "regularizer.taylor and regularizer.local are for ODEs: take backbone=neural_ode."
            )
        self.error, self.stiffness = error, stiffness
        self.weight_start, self.weight_end, self.aggregate = weight_start, weight_end, aggregate
        self.steer, self.taylor, self.taylor_order, self.local = steer, taylor, taylor_order, local

    def end_time(self) -> float | None:
        if not self.steer:
            return None
        uniform = float(torch.rand((), generator=self.generator("steer"), dtype=torch.float64))
        return self.flow.end + (2 * uniform - 1) * self.steer

    def penalty(self, solution: Solution) -> Tensor | None:
        terms = []
        if solution.errors and (self.error or self.stiffness):
            errors, stiffness, steps = solution.errors, solution.stiffness, solution.steps
            if self.local:
                of_error, of_stiffness, h = local_step(
                    self.flow.field, solution, self.flow.tolerance, self.local, self.generator("local")
                )
                errors, stiffness, steps = [of_error], [of_stiffness], [h]
            value = heuristic_penalty(
                errors,
                stiffness,
                steps,
                solution.stability,
                error_weight=self.error,
                stiffness_weight=self.stiffness,
                aggregate=self.aggregate,
            )
            weight = decayed_weight(self.weight_start, self.weight_end, self.current_epoch, self.max_epochs)
            terms.append(weight * value)
        if solution.errors and self.taylor:
            terms.append(self.taylor * taylor_penalty(self.flow.field, solution, self.taylor_order))
        return sum(terms) if terms else None
