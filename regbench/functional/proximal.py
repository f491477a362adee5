"""Proximal operators that are gradients of a convex psi: their prior R, and restoration with them (plug and play).

f = grad psi = prox_R, that is f(v) minimises |x − v|² / 2 + R(x). R is known up to a constant.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regbench.errors import UserError

Potential = Callable[[Tensor], Tensor]  # psi: (B, ...) → (B,)


def prior_of_output(potential: Potential, v: Tensor, x: Tensor) -> Tensor:
    """R(x) = <v, x> − |x|² / 2 − psi(v) where x = f(v): (B, ...) → (B,).

    >>> half = lambda y: 0.2 * y.square().sum(1)  # f(y) = .4 y, R(x) = x² / 2 (1 / .4 − 1)
    >>> prior_of_output(half, torch.tensor([[2.0]]), torch.tensor([[0.8]]))
    tensor([0.4800])
    """
    return (v * x).flatten(1).sum(1) - x.flatten(1).square().sum(1) / 2 - potential(v)


def invert(potential: Potential, x: Tensor, *, steps: int, tolerance: float = 1e-7) -> Tensor:
    """v with f(v) = x, (B, ...): the minimum of the convex psi(v) − <v, x>, by L-BFGS from v = x.

    Where no v gives x, the result is what the steps came to. Work in float64: R is a difference of large numbers.

    Args:
        steps: iterations at most.
        tolerance: of |f(v) − x| in any entry, at which they end.
    """
    with torch.inference_mode(False), torch.enable_grad():
        target = x.clone()
        v = x.clone().requires_grad_()
        solver = torch.optim.LBFGS([v], max_iter=steps, max_eval=2 * steps, tolerance_grad=tolerance,
                                   tolerance_change=0.0, history_size=50, line_search_fn="strong_wolfe")  # fmt: skip

        def closure() -> Tensor:
            value = potential(v).sum() - (v * target).sum()
            (v.grad,) = torch.autograd.grad(value, v)
            return value.detach()

        solver.step(closure)
    return v.detach()


class Iterate(NamedTuple):
    """What a solver has after a step.

    Attributes:
        x: the restored images.
        v: what the proximal operator was applied to, in this step.
    """

    x: Tensor
    v: Tensor


def proximal_gradient(
    prox: Callable[[Tensor], Tensor], physics: Any, y: Tensor, start: Tensor, *, eta: float, steps: int
) -> Iterator[Iterate]:
    """x ← f(x − eta Aᵀ(A x − y)), which lowers |A x − y|² / 2 + R(x) / eta for eta < 1 / |AᵀA|.

    Args:
        physics: the operator, with `A` and `A_adjoint`, as deepinv's.
    """
    x = start
    for _ in range(steps):
        v = x - eta * physics.A_adjoint(physics.A(x) - y)
        x = prox(v)
        yield Iterate(x, v)


def alternating_directions(
    prox: Callable[[Tensor], Tensor], physics: Any, y: Tensor, start: Tensor, *, rho: float, steps: int
) -> Iterator[Iterate]:
    """ADMM in the order of the released code, for |A x − y|² / 2 + rho R(x); it converges for rho > |AᵀA|:

        x ← argmin |A x − y|² / 2 + rho / 2 |x − z + u|²,   u ← u + x − z,   z ← f(x + u)

    Args:
        physics: the operator, with `prox_l2(z, y, gamma)` = argmin_x gamma / 2 |A x − y|² + |x − z|² / 2, as deepinv's.
        start: of z; u starts at 0.
    """
    z, u = start, torch.zeros_like(start)
    for _ in range(steps):
        x = physics.prox_l2(z - u, y, 1 / rho)
        u = u + x - z
        v = x + u
        z = prox(v)
        yield Iterate(x, v)


def check_solver(solver: str, eta: float, rho: float, steps: int) -> None:
    """Raises UserError for a mistake in a restoration's settings."""
    if solver not in ("pgd", "admm"):
        raise UserError(f"regularizer.solver={solver}: it is pgd or admm.")
    if eta <= 0 or rho <= 0 or steps < 1:
        raise UserError(
            f"regularizer.eta={eta} and regularizer.rho={rho} must be positive, regularizer.steps={steps} at least 1."
        )
