"""Optimal transport with at most k entries a column (Liu et al. 2023), and its neighbours: linear, entropic, quadratic.

The equations are those of `regbench.functional.optimal_transport`.
"""

import torch
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.extras import need
from regbench.functional.optimal_transport import Solution, check_options, solve, unregularised_plan
from regbench.registry import Paper, register
from regbench.regularizers.optimal_transport.base import TransportMethod

KINDS = ("sparse", "quadratic", "kl", "lp")


def linear(cost: Tensor, a: Tensor, b: Tensor, max_iterations: int) -> Solution:
    """Unregularised transport by POT's network simplex; it does not say how many iterations it took: 0 is shown.

    Args:
        cost: (m, n); a: (m,); b: (n,).
    """
    from ot import emd

    plan, log = emd(a.numpy(), b.numpy(), cost.numpy(), numItermax=max_iterations, log=True)
    plan, alpha, beta = (torch.from_numpy(x) for x in (plan, log["u"], log["v"]))
    return Solution(plan, (plan * cost).sum(), alpha, beta, 0, log["warning"] is None)


def entropic(
    cost: Tensor, a: Tensor, b: Tensor, gamma: float, tolerance: float, max_iterations: int
) -> Solution:
    """Transport with Ω(t) = γ Σ_i t_i log t_i by POT's Sinkhorn algorithm in logarithms.

    Args:
        cost: (m, n); a: (m,); b: (n,).
        tolerance: largest norm of the target marginal's error.
    """
    from ot.bregman import sinkhorn_log

    plan, log = sinkhorn_log(
        a.numpy(),
        b.numpy(),
        cost.numpy(),
        gamma,
        numItermax=max_iterations,
        stopThr=tolerance,
        log=True,
        warn=False,
    )
    plan = torch.from_numpy(plan)
    value = (plan * cost).sum() + gamma * torch.special.xlogy(plan, plan).sum()
    # POT's scalings are exp of these; the constant of Ω's derivative, γ (log t + 1), goes to the source.
    alpha, beta = gamma * torch.from_numpy(log["log_u"]) + gamma, gamma * torch.from_numpy(log["log_v"])
    return Solution(plan, value, alpha, beta, int(log["niter"]), bool(log["err"][-1] <= tolerance))


@register(
    "sparse_ot",
    task="optimal_transport",
    paper=Paper(
        title="Sparsity-Constrained Optimal Transport",
        authors="Tianlin Liu, Joan Puigcerver, Mathieu Blondel",
        year=2023,
        venue="ICLR",
        arxiv="2209.15466",
        code="https://github.com/google-research/vmoe",
    ),
)
class SparseTransport(TransportMethod):
    """A bound of k on the entries in each column of a transport plan keeps dual and semi-dual tractable, and leads from
    unregularised transport (k = 1) to quadratically regularised (large k): smoother, and faster to solve, as k grows.

    The (semi-)dual is maximised by L-BFGS from potentials of zero; the plan is its maximiser there.

    Args:
        method: sparse; or a neighbour: quadratic (any number of entries), kl (entropic, by Sinkhorn), lp
            (unregularised). The last two need POT.
        k: entries that a column may have; for sparse only.
        gamma: weight of the quadratic or entropic term, in units of cost / weight; lp has none.
        formulation: semi_dual or dual; of sparse and quadratic.
        tolerance: where the solver stops, see `regbench.functional.optimal_transport.solve`; of kl: the norm of the
            target marginal's error.
        max_iterations: of the solver.
        recover: None, or for sparse with k = 1 the tolerance, in units of the cost, with which a plan that meets both
            marginals is recovered from the potentials by complementary slackness.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        method: str = "sparse",
        k: int = 2,
        gamma: float = 1.0,
        formulation: str = "semi_dual",
        tolerance: float = 1e-10,
        max_iterations: int = 2000,
        recover: float | None = None,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if method not in KINDS:
            raise unknown("regularizer.method", str(method), KINDS)
        check_options(k, gamma, formulation, tolerance, max_iterations)
        if recover is not None and (method != "sparse" or k != 1 or recover <= 0):
            raise UserError(
                f"regularizer.recover={recover} is a tolerance above 0, and only potentials of method=sparse with k=1 "
                "give a plan of unregularised transport; set it to null."
            )
        if method in ("kl", "lp"):
            need("ot", "transport", f"regularizer.method={method} needs POT")
        self.method, self.k, self.gamma, self.formulation = method, k, gamma, formulation
        self.tolerance, self.max_iterations, self.recover = tolerance, max_iterations, recover

    def solve(self, cost: Tensor, source: Tensor, target: Tensor) -> Solution:
        if self.method == "lp":
            return linear(cost, source, target, self.max_iterations)
        if self.method == "kl":
            return entropic(cost, source, target, self.gamma, self.tolerance, self.max_iterations)
        solution = solve(
            cost,
            source,
            target,
            self.k if self.method == "sparse" else None,
            self.gamma,
            formulation=self.formulation,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        if self.recover is None:
            return solution
        plan = unregularised_plan(solution.alpha, cost, source, target, self.recover)
        return solution._replace(plan=plan)

    def measure(self, solution: Solution, cost: Tensor, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Adds value_less_offset, the value less γ/2 |b|², what k = 1 adds to unregularised transport: its limit is
        the linear programme's value. Without a quadratic term it is the value."""
        offset = self.gamma / 2 * (target**2).sum() if self.method in ("sparse", "quadratic") else 0.0
        return super().measure(solution, cost, source, target) | {
            "value_less_offset": solution.value - offset
        }
