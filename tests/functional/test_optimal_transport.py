"""Sparsity-constrained transport against numbers by hand, POT, and linear programmes."""

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linprog

from regbench.errors import UserError
from regbench.functional.optimal_transport import (
    adam_plan,
    conjugate,
    conjugate_plan,
    dual,
    project_sparse_simplex,
    semi_dual,
    semi_dual_plan,
    smoothed_maximum,
    solve,
    transport,
    unregularised_plan,
)

A, B = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
COST = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.2]], dtype=torch.float64)
ALPHA = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)


def random_problem(m: int = 7, n: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cost, a, b = (
        torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((m, n), (m,), (n,))
    )
    return cost, a / a.sum(), b / b.sum()


def bells(n: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = np.arange(n, dtype=float)[:, None]
    cost = ot.dist(x, x)
    weights = (ot.datasets.make_1D_gauss(n, m, s) for m, s in ((10, 4), (16, 5)))
    return tuple(torch.from_numpy(v) for v in (cost / cost.max(), *weights))


def linear_programme(cost: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> float:
    m, n = cost.shape
    rows, columns = np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))
    found = linprog(cost.flatten().numpy(), A_eq=np.vstack([rows, columns]), b_eq=torch.cat([a, b]).numpy())
    return found.fun


# -- one column --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [0, 1, 0, 0]), (2, [0, 0.65, 0, 0.35]), (4, [0, 0.65, 0, 0.35])]
)
def test_projection_by_hand(k, expected):
    """k ≥ 2: (1.2 + .9 − 1)/2 = .55 is taken off both."""
    s = torch.tensor([[0.3], [1.2], [-0.5], [0.9]])
    torch.testing.assert_close(project_sparse_simplex(s, k)[:, 0], torch.tensor(expected).float())


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_projection_is_pots(k):
    s = np.random.default_rng(0).standard_normal((5, 40))
    expected = ot.utils.projection_sparse_simplex(s, k, axis=0)
    np.testing.assert_allclose(project_sparse_simplex(torch.from_numpy(s), k), expected, atol=1e-12)


def test_projection_of_large_numbers():
    """1e20 − (1e20 − 1) is 0 in float64: a weight of 1e-20 gives such scores."""
    s = torch.tensor([[0.3e20], [1e20], [1e20]], dtype=torch.float64)
    assert project_sparse_simplex(s, 2).flatten().tolist() == [0, 0.5, 0.5]
    assert project_sparse_simplex(s, 1).sum() == 1


@pytest.mark.parametrize(("k", "expected"), [(1, 1.0), (2, 1.25), (3, 1.3125), (4, 1.3125)])
def test_conjugate_by_hand(k, expected):
    """γ = 2: (2² + 1² + .5²)/4, up to the k-th."""
    assert conjugate(torch.tensor([[2.0], [1.0], [-1.0], [0.5]]), k, 2.0).item() == expected


@pytest.mark.parametrize(
    ("gamma", "k", "value", "p"),
    [
        (2.0, 1, 1.5, [1, 0, 0, 0]),
        (2.0, 4, 1.5, [1, 0, 0, 0]),
        (4.0, 1, 1.0, [1, 0, 0, 0]),
        (4.0, 2, 1.125, [0.75, 0.25, 0, 0]),
        (4.0, 4, 1.125, [0.75, 0.25, 0, 0]),
    ],
)
def test_smoothed_maximum_by_hand(gamma, k, value, p):
    """b = .5, s = (2, 1, −1, .5); e.g. γ = 4: s/2 = (1, .5, …) less θ = .25, M = .75·2 + .25 − (.5625 + .0625)."""
    found, maximiser = smoothed_maximum(
        torch.tensor([[2.0], [1.0], [-1.0], [0.5]]), torch.tensor([0.5]), k, gamma
    )
    assert found.item() == pytest.approx(value)
    torch.testing.assert_close(maximiser[:, 0], torch.tensor(p, dtype=torch.float32))


@pytest.mark.parametrize(("k", "expected"), [(1, 0.5), (2, 0.25), (3, 0.19)])
def test_biconjugate_by_hand(k, expected):
    """sup_s s·t − δ(s) for γ = 1, t = (.5, .3, .2): (Σ t)²/2 for k = 1, |t|²/2 for k = 3, (.5² + .5²)/2 for k = 2."""
    t = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([s], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = conjugate(s[:, None], k, 1.0)[0] - s @ t
        loss.backward()
        return loss

    optimizer.step(closure)
    assert -closure().item() == pytest.approx(expected, abs=2e-3)


# -- objectives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "value", "gradient"), [(1, 0.47, [0.1, 0.3, -0.4]), (2, 0.3375, [0.225, 0.075, -0.3]),
                                 (3, 0.3375, [0.225, 0.075, -0.3])]
)  # fmt: skip
def test_semi_dual_by_hand(k, value, gradient):
    """k ≥ 2: p_1 = (.6875, 0, .3125), p_2 = (0, .375, .625)."""
    alpha = ALPHA.clone().requires_grad_()
    found = semi_dual(alpha, COST, A, B, k, 2.0)
    found.backward()
    assert found.item() == pytest.approx(value)
    torch.testing.assert_close(alpha.grad, torch.tensor(gradient, dtype=torch.float64))
    torch.testing.assert_close(alpha.grad, A - semi_dual_plan(ALPHA, COST, B, k, 2.0).sum(1))


@pytest.mark.parametrize(
    ("k", "value", "of_alpha", "of_beta"),
    [(1, 0.3475, [0.1, 0.3, -0.05], [0, 0.35]), (2, 0.275, [0.1, 0.2, -0.3], [-0.25, 0.25])],
)
def test_dual_by_hand(k, value, of_alpha, of_beta):
    alpha, beta = (
        ALPHA.clone().requires_grad_(),
        torch.tensor([0.7, 0.4], dtype=torch.float64).requires_grad_(),
    )
    found = dual(alpha, beta, COST, A, B, k, 2.0)
    found.backward()
    assert found.item() == pytest.approx(value)
    torch.testing.assert_close(alpha.grad, torch.tensor(of_alpha, dtype=torch.float64))
    torch.testing.assert_close(beta.grad, torch.tensor(of_beta, dtype=torch.float64))
    plan = conjugate_plan(ALPHA[:, None] + beta.detach() - COST, k, 2.0)
    torch.testing.assert_close(alpha.grad, A - plan.sum(1))


def test_a_constant_on_alpha_changes_nothing():
    cost, a, b = random_problem()
    alpha = torch.linspace(-1, 1, 7).double()
    torch.testing.assert_close(semi_dual(alpha + 3, cost, a, b, 2, 1.0), semi_dual(alpha, cost, a, b, 2, 1.0))


def test_a_batch_is_its_problems():
    problems = [random_problem(seed=seed) for seed in (0, 1)]
    cost, a, b = (torch.stack(parts) for parts in zip(*problems, strict=True))
    alpha = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)).double()
    beta = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)).double()
    for i in (0, 1):
        one = cost[i], a[i], b[i], 2, 0.7
        torch.testing.assert_close(semi_dual(alpha, cost, a, b, 2, 0.7)[i], semi_dual(alpha[i], *one))
        torch.testing.assert_close(dual(alpha, beta, cost, a, b, 2, 0.7)[i], dual(alpha[i], beta[i], *one))
        torch.testing.assert_close(adam_plan(cost, a, b, 2, 0.7)[i], adam_plan(*one))


# -- optima ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", ["semi_dual", "dual"])
@pytest.mark.parametrize(("k", "expected"), [(1, 0.27), (2, 0.225), (3, 0.215), (None, 0.215), (9, 0.215)])
def test_optima_by_hand(k, expected, formulation):
    """γ = .5; k = 1: the linear programme's .14 + .25 (.4² + .6²); its kinks stop the semi-dual's solver at .268."""
    assert linear_programme(COST, A, B) == pytest.approx(0.14)
    solution = solve(COST, A, B, k, 0.5, formulation=formulation)
    assert solution.value.item() == pytest.approx(expected, abs=3e-3 if k == 1 else 1e-4)
    if k == 3:
        torch.testing.assert_close(
            solution.plan,
            torch.tensor([[0.4, 0.1], [0, 0.3], [0, 0.2]], dtype=torch.float64),
            atol=1e-4,
            rtol=0,
        )


def test_ties_leave_the_rows_wrong():
    """k = 2: no plan with two entries a column is the maximiser that has row sums a."""
    plan = solve(COST, A, B, 2, 0.5).plan
    torch.testing.assert_close(plan.sum(0), B)
    assert (plan.sum(1) - A).abs().sum() > 0.05
    assert (plan > 0).sum(0).max() <= 2


@pytest.mark.parametrize("formulation", ["semi_dual", "dual"])
def test_plans_are_pots(formulation):
    cost, a, b = random_problem()
    solver = {"semi_dual": ot.smooth.smooth_ot_semi_dual, "dual": ot.smooth.smooth_ot_dual}[formulation]
    options = {"numItermax": 5000, "stopThr": 1e-12}
    ours = solve(cost, a, b, None, 1.0, formulation=formulation, tolerance=1e-12)
    theirs = solver(a.numpy(), b.numpy(), cost.numpy(), 1.0, "l2", **options)
    np.testing.assert_allclose(ours.plan, theirs, atol=1e-5)
    ours = solve(cost, a, b, 3, 1.0, formulation=formulation, tolerance=1e-12)
    theirs, log = solver(
        a.numpy(), b.numpy(), cost.numpy(), 1.0, "sparsity_constrained", max_nz=3, log=True, **options
    )
    assert ours.value.item() == pytest.approx(-log["res"].fun, abs=2e-3 * abs(log["res"].fun))
    assert (ours.plan > 0).sum(0).max() <= 3


def test_pots_own_case():
    """100 points, squared distances to themselves, uniform weights, two entries a column: POT's test."""
    x = np.random.RandomState(0).randn(100, 2)
    cost, weights = torch.from_numpy(ot.dist(x, x)), torch.full((100,), 0.01, dtype=torch.float64)
    plan = solve(cost, weights, weights, 2, 1.0).plan
    torch.testing.assert_close(plan.sum(1), weights, atol=1e-3, rtol=0)
    torch.testing.assert_close(plan.sum(0), weights, atol=1e-3, rtol=0)
    assert (plan > 0).sum(0).max() <= 2


def test_k_leads_from_the_linear_programme_to_quadratic_regularisation():
    cost, a, b = bells()
    values = [solve(cost, a, b, k, 1.0).value.item() for k in (1, 2, 4, 16, None)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(values[-2], abs=1e-7)
    limit = linear_programme(cost, a, b) + (b**2).sum().item() / 2
    by_dual = solve(cost, a, b, 1, 1.0, formulation="dual").value.item()
    assert 0.98 * limit < values[0] <= by_dual <= limit
    assert by_dual > 0.99 * limit


def test_the_linear_programmes_plan_from_the_potentials():
    cost, a, b = bells()
    solution = solve(cost, a, b, 1, 1.0, formulation="dual")
    plan = unregularised_plan(solution.alpha, cost, a, b, 3e-3)
    assert (solution.plan.sum(1) - a).abs().sum() > 0.3
    assert (plan.sum(1) - a).abs().sum() < 0.02
    assert (plan * cost).sum().item() == pytest.approx(linear_programme(cost, a, b), rel=0.02)
    exact = ot.emd(a.numpy(), b.numpy(), cost.numpy(), log=True)[1]["u"]
    plan = unregularised_plan(torch.from_numpy(exact), cost, a, b, 1e-10)
    assert (plan * cost).sum().item() == pytest.approx(linear_programme(cost, a, b), abs=1e-9)
    torch.testing.assert_close(plan.sum(0), b, atol=1e-9, rtol=0)


def test_adam_nears_the_optimum():
    cost, a, b = random_problem(12, 4)
    scaled = 12 * a, 12 * b
    best = solve(cost, *scaled, 4, 1.0).value
    plan = adam_plan(cost, *scaled, 4, 1.0, steps=500, lr=0.05)
    assert (plan > 0).sum(0).max() <= 4
    torch.testing.assert_close(plan.sum(0), scaled[1])
    objective = (plan * cost).sum() + (plan**2).sum() / 2
    assert objective <= best * 1.02


# -- as a layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, None])
def test_the_values_gradients_are_those_of_finite_differences(k):
    """In the cost the plan, in the weights the potentials, along changes that keep the sums."""
    cost, a, b = random_problem(5, 4)
    shift = (
        torch.tensor([1.0, -1, 0, 0, 0], dtype=torch.float64),
        torch.tensor([1.0, 0, -1, 0], dtype=torch.float64),
    )
    inputs = [x.requires_grad_() for x in (cost, torch.zeros(1).double(), torch.zeros(1).double())]

    def value(cost, on_a, on_b):
        return transport(cost, a + on_a * shift[0], b + on_b * shift[1], k, 0.5, tolerance=1e-14)[0]

    assert torch.autograd.gradcheck(value, inputs, eps=1e-4, atol=2e-3)
    plan = transport(*(x.detach() for x in (cost, a, b)), k, 0.5)[1]
    value(*inputs).backward()
    torch.testing.assert_close(inputs[0].grad, plan, atol=2e-3, rtol=0)


def test_the_layer_keeps_type_and_batch():
    problems = [random_problem(4, 3, seed) for seed in range(6)]
    cost, a, b = (torch.stack(x).float().view(2, 3, *x[0].shape) for x in zip(*problems, strict=True))
    value, plan = transport(cost.requires_grad_(), a, b, 2, 1.0)
    assert (value.shape, plan.shape, value.dtype) == ((2, 3), (2, 3, 4, 3), torch.float32)
    assert not plan.requires_grad
    assert value[1, 2].item() == pytest.approx(solve(*problems[5], 2, 1.0).value.item(), abs=1e-4)
    (2 * value[1, 2]).backward()
    torch.testing.assert_close(cost.grad[1, 2], 2 * plan[1, 2])
    assert (cost.grad[0] == 0).all()


def test_the_layer_takes_any_strides_weights_for_all_and_an_empty_batch():
    problems = [random_problem(4, 3, seed) for seed in range(6)]
    cost = torch.stack([problem[0] for problem in problems]).view(2, 3, 4, 3)
    _, a, b = problems[0]
    value, plan = transport(cost.transpose(0, 1), a, b, 2, 1.0)
    assert (value.shape, plan.shape) == ((3, 2), (3, 2, 4, 3))
    assert value[2, 1].item() == pytest.approx(solve(cost[1, 2], a, b, 2, 1.0).value.item(), abs=1e-9)

    value, plan = transport(cost[:0].clone().requires_grad_(), a, b, 2, 1.0)
    assert (value.shape, plan.shape, value.requires_grad) == ((0, 3), (0, 3, 4, 3), True)
    for options in ((cost, a[:2], b), (cost, a, b.expand(5, 3)), (a, a, b)):
        with pytest.raises(UserError, match="shape"):
            transport(*options, 2, 1.0)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 0}, "k=0"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"formulation": "primal"}, "formulation"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"a": A[:2]}, "does not fit"),
        ({"a": 2 * A}, "sum to 2 and"),
        ({"b": torch.tensor([1.0, 0.0])}, "above 0"),
        ({"cost": COST / 0}, "finite"),
    ],
)
def test_mistakes(changes, says):
    with pytest.raises(UserError, match=says):
        solve(**{"cost": COST, "a": A, "b": B, "k": 2, "gamma": 1.0} | changes)
