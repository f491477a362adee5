"""Neural SDEs fitted to paths, regularised by their solver's own estimates (Pal et al. 2021, toy problem)."""

from torch import Tensor, nn

from regbench.functional.solver_heuristics import SolverPenalty
from regbench.registry import Paper, register
from regbench.regularizers.differential_equations.base import PathMethod
from regbench.solvers.solution import Solution


@register(
    "neural_sde_regularization",
    task="neural_sde",
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
class NeuralSDERegularization(PathMethod):
    """Adding the solver's own estimates of its local error, or of stiffness, to the loss makes a neural SDE that takes
    fewer evaluations to solve and fits the means and variances of the data's paths as well.

    The loss is the squared error of the means plus that of the variances + λ(epoch) R, R as
    `neural_de_regularization` has it.

    Args:
        error: weight of E_j |h_j| in R; 0: none.
        stiffness: weight of S_j / s in R; 0: none. With both 0 there is no R, and λ is not used.
        weight_start: λ_0, in the first epoch.
        weight_end: λ_1, which the exponential decay would reach after the last epoch.
        aggregate: mean, sum or max over the steps.
        trajectories: paths of the process in a training step.
        test_trajectories: at an evaluation.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        error: float = 1.0,
        stiffness: float = 0.0,
        weight_start: float = 0.2,
        weight_end: float = 0.2,
        aggregate: str = "sum",
        trajectories: int = 100,
        test_trajectories: int = 1000,
        **base,
    ):
        super().__init__(
            backbone, num_classes, trajectories=trajectories, test_trajectories=test_trajectories, **base
        )
        self.solver_penalty = SolverPenalty(error, stiffness, weight_start, weight_end, aggregate)

    def penalty(self, solution: Solution) -> Tensor | None:
        return self.solver_penalty.of(solution, **self.progress)
