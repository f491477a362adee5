"""Optimal transport with at most k entries in each column of the plan (Liu et al. 2023, arXiv:2209.15466).

Cost C (m, n), source weights a (m,), target weights b (n,) of equal sums; plan T (m, n) ≥ 0 with T 1 = a, Tᵀ 1 = b.

    min_T  <T, C> + Σ_j Ω(t_j),   Ω(t) = γ/2 |t|² where t has at most k entries, infinite elsewhere     (t_j: a column)

The constraint is not convex; what is solved is the dual or the semi-dual, which are concave. k = 1 is unregularised
transport up to γ/2 |b|², k = m quadratic regularisation. Equations as in the released code (google-research/vmoe,
projects/sparsity_constrained_ot); of the paper's text the abstract and introduction were seen. Every function but the
solvers takes leading batch dimensions.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from regbench.errors import UserError, unknown

FORMULATIONS = ("semi_dual", "dual")
BALANCE = 1e-6  # largest relative difference between the sums of the two weights


class Solution(NamedTuple):
    """What a solver found for one problem.

    Attributes:
        plan: (m, n).
        value: scalar, the regularised objective: of a (semi-)dual solver its maximum.
        alpha: (m,), the source's potentials, the value's gradient in a; fixed up to a constant.
        beta: (n,), the target's potentials, the value's gradient in b.
        iterations: of the solver.
        converged: whether the solver met its tolerance.
    """

    plan: Tensor
    value: Tensor
    alpha: Tensor
    beta: Tensor
    iterations: int
    converged: bool


# -- one column's conjugates -------------------------------------------------------------------------------------------


def conjugate(s: Tensor, k: int, gamma: float) -> Tensor:
    """δ(s) = max_{t ≥ 0} s·t − Ω(t) = 1/(2γ) Σ_{i ≤ k} max(s_(i), 0)², s_(i) the i-th largest; for each column.

    Args:
        s: (..., m, n).

    Returns:
        (..., n). Its gradient is the maximiser t: the k largest entries where they are positive, divided by γ.

    >>> s = torch.tensor([[2.0], [1.0], [-1.0], [0.5]])
    >>> [round(conjugate(s, k, 2.0).item(), 4) for k in (1, 2, 3, 4)]
    [1.0, 1.25, 1.3125, 1.3125]
    """
    return (s.topk(k, dim=-2).values.clamp(min=0) ** 2).sum(-2) / (2 * gamma)


def conjugate_plan(s: Tensor, k: int, gamma: float) -> Tensor:
    """The maximiser t in δ(s), for each column: (..., m, n) → (..., m, n) with at most k entries a column."""
    values, rows = s.topk(k, dim=-2)
    return torch.zeros_like(s).scatter(-2, rows, values.clamp(min=0) / gamma)


def project_sparse_simplex(s: Tensor, k: int) -> Tensor:
    """The nearest point of the simplex with at most k entries, for each column (Kyrillidis et al. 2013).

    The k largest entries u_1 ≥ … ≥ u_k are projected on the simplex, p = max(u − θ, 0) with θ = (u_1 + … + u_ρ − 1)/ρ
    and ρ the largest i for which u_i − (u_1 + … + u_i − 1)/i > 0; the others become 0.

    Args:
        s: (..., m, n).

    >>> project_sparse_simplex(torch.tensor([[0.3], [1.2], [-0.5], [0.9]]), 2).T
    tensor([[0.0000, 0.6500, 0.0000, 0.3500]])
    """
    values, rows = s.topk(k, dim=-2)
    values = values - values[..., :1, :]  # the projection is the same, and 1 is not lost beside large numbers
    excess = values.cumsum(-2) - 1
    rank = torch.arange(1, k + 1, device=s.device, dtype=s.dtype)[:, None]
    support = (values - excess / rank > 0).sum(-2, keepdim=True)
    theta = excess.gather(-2, support - 1) / support
    return torch.zeros_like(s).scatter(-2, rows, (values - theta).clamp(min=0))


def smoothed_maximum(s: Tensor, b: Tensor, k: int, gamma: float) -> tuple[Tensor, Tensor]:
    """M_j(s) = max p·s − γ b_j/2 |p|² over p in the simplex with at most k entries, for each column j.

    Args:
        s: (..., m, n).
        b: (..., n), above 0.

    Returns:
        M (..., n), and the maximisers p (..., m, n), which carry no gradient: M's gradient in s is p.

    >>> s = torch.tensor([[2.0], [1.0], [-1.0], [0.5]])
    >>> value, p = smoothed_maximum(s, torch.tensor([0.5]), 2, 4.0)
    >>> value, p.T
    (tensor([1.1250]), tensor([[0.7500, 0.2500, 0.0000, 0.0000]]))
    """
    scale = gamma * b
    with torch.no_grad():
        p = project_sparse_simplex(s / scale[..., None, :], k)
    return (p * s).sum(-2) - scale / 2 * (p**2).sum(-2), p


# -- objectives --------------------------------------------------------------------------------------------------------


def dual(alpha: Tensor, beta: Tensor, cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float) -> Tensor:
    """α·a + β·b − Σ_j δ(α + β_j − c_j), (...): concave in α (..., m) and β (..., n); autograd gives its gradient."""
    s = alpha[..., :, None] + beta[..., None, :] - cost
    return (alpha * a).sum(-1) + (beta * b).sum(-1) - conjugate(s, k, gamma).sum(-1)


def semi_dual(alpha: Tensor, cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float) -> Tensor:
    """α·a − Σ_j b_j M_j(α − c_j), (...): concave in α (..., m); autograd gives its gradient a − T 1.

    >>> a, b = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.6])
    >>> cost, alpha = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.2]]), torch.tensor([0.1, -0.2, 0.3])
    >>> [round(semi_dual(alpha, cost, a, b, k, 2.0).item(), 4) for k in (1, 2, 3)]
    [0.47, 0.3375, 0.3375]
    """
    value, _ = smoothed_maximum(alpha[..., :, None] - cost, b, k, gamma)
    return (alpha * a).sum(-1) - (b * value).sum(-1)


def semi_dual_plan(alpha: Tensor, cost: Tensor, b: Tensor, k: int, gamma: float) -> Tensor:
    """t_j = b_j p_j, (..., m, n): columns sum to b and have at most k entries; rows sum to a at an optimum without
    ties only."""
    return smoothed_maximum(alpha[..., :, None] - cost, b, k, gamma)[1] * b[..., None, :]


# -- solvers -----------------------------------------------------------------------------------------------------------


def solve(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    k: int | None,
    gamma: float,
    *,
    formulation: str = "semi_dual",
    tolerance: float = 1e-10,
    max_iterations: int = 2000,
) -> Solution:
    """Maximises the dual or the semi-dual of one problem by L-BFGS-B (scipy) in float64, from potentials of zero.

    Args:
        cost: (m, n).
        a: (m,), at least 0.
        b: (n,), above 0, of the same sum.
        k: entries that a column may have; None: any number, which is quadratic regularisation.
        gamma: weight γ of the quadratic term, in units of cost / weight.
        formulation: semi_dual (its plans have column sums b at every iterate), or dual (neither marginal is met before
            the optimum).
        tolerance: the solver stops where no entry of the gradient is larger, or where an iteration changes the value
            by less than this share of the larger of it and 1 (scipy's gtol and ftol).

    Raises:
        UserError: a problem that has no solution, or options outside their range.
    """
    check_problem(cost, a, b)
    check_options(k, gamma, formulation, tolerance, max_iterations)
    m, n = cost.shape
    k = m if k is None else min(k, m)
    cost, a, b = (x.detach().to("cpu", torch.float64) for x in (cost, a, b))
    a = a * (
        b.sum() / a.sum()
    )  # sums that differ by float32's rounding leave the (semi-)dual without a maximum

    def loss_and_gradient(potentials: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(potentials)
        if formulation == "semi_dual":
            value, p = smoothed_maximum(x[:, None] - cost, b, k, gamma)
            return float((b * value).sum() - x @ a), (p @ b - a).numpy()
        plan = conjugate_plan(x[:m, None] + x[m:] - cost, k, gamma)
        return -float(dual(x[:m], x[m:], cost, a, b, k, gamma)), torch.cat(
            [plan.sum(1) - a, plan.sum(0) - b]
        ).numpy()

    # At k = 1, and less so at other small k, the objective has kinks, at which L-BFGS may stop short of the maximum.
    start = np.zeros(m if formulation == "semi_dual" else m + n)
    options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "ftol": tolerance, "gtol": tolerance}
    found = minimize(loss_and_gradient, start, method="L-BFGS-B", jac=True, options=options)
    x = torch.from_numpy(found.x)
    alpha = x[:m]
    if formulation == "semi_dual":
        s = alpha[:, None] - cost
        plan = smoothed_maximum(s, b, k, gamma)[1] * b
        # The value's derivative in b_j: −M_j + γ b_j/2 |p_j|².
        beta = (gamma * plan**2 - plan * s).sum(0) / b
    else:
        beta = x[m:]
        plan = conjugate_plan(alpha[:, None] + beta - cost, k, gamma)
    value = torch.tensor(-float(found.fun), dtype=torch.float64)
    return Solution(plan, value, alpha, beta, int(found.nit), found.status == 0)


@torch.no_grad()
def adam_plan(
    cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float, *, steps: int = 20, lr: float = 0.01
) -> Tensor:
    """The plan after some steps of Adam on the semi-dual from α = 0: what the routers use. (..., m, n), no gradient."""
    alpha = torch.zeros_like(a)
    optimizer = torch.optim.Adam([alpha], lr=lr, maximize=True)
    for _ in range(steps):
        alpha.grad = a - semi_dual_plan(alpha, cost, b, k, gamma).sum(-1)
        optimizer.step()
    return semi_dual_plan(alpha, cost, b, k, gamma)


def unregularised_plan(alpha: Tensor, cost: Tensor, a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """A plan of unregularised transport from potentials α that are optimal for k = 1, by complementary slackness.

    The plan lives on the pairs for which c_ij − α_i is, to the tolerance, the smallest of its column; there the
    marginals' equations are solved by non-negative least squares. The released notebook takes a pseudo-inverse.

    Args:
        alpha: (m,).
        tolerance: in units of the cost; it has to be larger than the potentials' error.

    Returns:
        (m, n), float64.
    """
    reduced = (cost - alpha[:, None]).double()
    rows, columns = (reduced - reduced.min(0).values <= tolerance).nonzero(as_tuple=True)
    m, n = cost.shape
    pairs = torch.arange(len(rows))
    system = torch.zeros(m + n, len(rows), dtype=torch.float64)
    system[rows, pairs] = 1
    system[m + columns, pairs] = 1
    weights, _ = nnls(system.numpy(), torch.cat([a, b]).double().numpy(), maxiter=50 * len(rows))
    plan = torch.zeros(m, n, dtype=torch.float64)
    plan[rows, columns] = torch.from_numpy(weights)
    return plan


# -- as a layer --------------------------------------------------------------------------------------------------------


class _TransportValue(torch.autograd.Function):
    """The optimal value is the minimum over plans of something linear in C: by Danskin's theorem its gradient in C is
    the plan, and those in a and b are the potentials."""

    @staticmethod
    def forward(ctx, cost, a, b, k, gamma, options):
        solutions = [solve(*problem, k, gamma, **options) for problem in zip(cost, a, b, strict=True)]
        shapes = {"plan": cost, "value": a[..., 0], "alpha": a, "beta": b}
        found = {
            name: torch.stack([getattr(solution, name) for solution in solutions]).view(like.shape).to(like)
            for name, like in shapes.items()
        }
        ctx.save_for_backward(found["plan"], found["alpha"], found["beta"])
        ctx.mark_non_differentiable(found["plan"])
        return found["value"], found["plan"]

    @staticmethod
    def backward(ctx, grad, _):
        plan, alpha, beta = ctx.saved_tensors
        return grad[..., None, None] * plan, grad[..., None] * alpha, grad[..., None] * beta, None, None, None


def transport(
    cost: Tensor, a: Tensor, b: Tensor, k: int | None, gamma: float, **options
) -> tuple[Tensor, Tensor]:
    """The optimal value as a differentiable function of cost and weights, and the plan, which carries no gradient.

    The gradient in the cost is the plan, those in a and b are the potentials: they hold for changes that keep both
    sums equal. Each problem of the batch is solved by itself, on the CPU in float64; second derivatives are not given.

    Args:
        cost: (..., m, n).
        a: (..., m), or without some of the batch's dimensions: the same for all along them.
        b: (..., n), likewise.
        options: those of `solve`.

    Returns:
        (...), and (..., m, n), of the cost's type and device.

    Raises:
        UserError: the shapes don't fit, or a problem is none.

    >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.2]], requires_grad=True)
    >>> value, plan = transport(cost, torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.6]), 3, 0.5)
    >>> value.backward()
    >>> round(value.item(), 4), torch.equal(cost.grad, plan)
    (0.215, True)
    """
    if cost.dim() < 2:
        raise UserError(f"A cost has shape (..., m, n), not {tuple(cost.shape)}.")
    *batch, m, n = cost.shape
    try:
        a, b = a.expand(*batch, m), b.expand(*batch, n)
    except RuntimeError:
        raise UserError(
            f"A cost of shape {tuple(cost.shape)} takes weights of shape {(*batch, m)} and {(*batch, n)}, or (m,) and "
            f"(n,) for all; they are {tuple(a.shape)} and {tuple(b.shape)}."
        ) from None
    if 0 in batch:
        return cost.sum((-2, -1)), torch.zeros_like(cost)
    flat = cost.reshape(-1, m, n), a.reshape(-1, m), b.reshape(-1, n)
    value, plan = _TransportValue.apply(*flat, k, gamma, options)
    return value.view(batch), plan.view(cost.shape)


# -- checks ------------------------------------------------------------------------------------------------------------


def check_problem(cost: Tensor, a: Tensor, b: Tensor) -> None:
    """Raises UserError where cost (m, n) and weights (m,), (n,) are no transport problem that can be solved here."""
    if cost.shape != (len(a), len(b)):
        raise UserError(
            f"A cost of shape {tuple(cost.shape)} does not fit {len(a)} source and {len(b)} target weights."
        )
    if not (cost.isfinite().all() and a.isfinite().all() and b.isfinite().all()):
        raise UserError("Costs and weights must be finite numbers.")
    if (a < 0).any() or (b <= 0).any():
        raise UserError(
            "Source weights must be at least 0 and target weights above 0: leave out targets that get nothing."
        )
    if abs(float(a.sum() - b.sum())) > BALANCE * float(b.sum()):
        raise UserError(
            f"Source weights sum to {float(a.sum()):g} and target weights to {float(b.sum()):g}; "
            "divide each by its sum."
        )


def check_options(
    k: int | None, gamma: float, formulation: str, tolerance: float, max_iterations: int
) -> None:
    """Raises UserError for options of `solve` outside their range."""
    if k is not None and k < 1:
        raise UserError(f"regularizer.k={k} is a number of entries, 1 or more, or null for any number.")
    if gamma <= 0 or tolerance <= 0 or max_iterations < 1:
        raise UserError(
            f"regularizer.gamma={gamma} and regularizer.tolerance={tolerance} must be above 0, "
            f"regularizer.max_iterations={max_iterations} at least 1."
        )
    if formulation not in FORMULATIONS:
        raise unknown("regularizer.formulation", str(formulation), FORMULATIONS)
