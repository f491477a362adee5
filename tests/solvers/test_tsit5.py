"""Tsit5: its coefficients, single steps against numbers worked out elsewhere, controller, accuracy and gradients."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from regbench.errors import UserError
from regbench.solvers import tsit5
from regbench.solvers.solution import scaled_error

ONE = torch.ones(1, 1, dtype=torch.float64)
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
SPIRAL = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def stability_function(x: float) -> float:
    return tsit5.step(lambda t, z: x * z, 0.0, ONE, x * ONE, 1.0).state.item()


# -- one step --------------------------------------------------------------------------------------------------------


def test_the_coefficients_satisfy_the_order_conditions_of_quadrature():
    """Σ b_i c_i^k = 1/(k+1) up to k = 4 for the solution; for the error weights 0 up to k = 3, and not for k = 4."""
    c, b, bt = (np.array(values) for values in (tsit5.NODES, (*tsit5.STAGES[-1], 0.0), tsit5.ERROR))
    for row, node in zip(tsit5.STAGES, c[1:], strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-14)
    for k in range(5):
        assert b @ c**k == pytest.approx(1 / (k + 1), abs=1e-14)
        assert bt @ c**k == pytest.approx(0 if k < 4 else -5.8222e-4, abs=1e-8 if k == 4 else 1e-14)


@pytest.mark.parametrize(
    ("x", "state", "error"), [(0.5, 0.6065327949686, -1.59337e-5), (1.0, 0.3680988780, -6.04130e-4)]
)
def test_a_step_of_linear_decay(x, state, error):
    step = tsit5.step(lambda t, z: -z, 0.0, ONE, -ONE, x)
    assert step.state.item() == pytest.approx(state, abs=1e-12 if x == 0.5 else 1e-10)
    assert step.error.item() == pytest.approx(error, rel=1e-5)
    assert step.stiffness.item() == pytest.approx(1.0, abs=1e-12)
    assert step.slope.item() == pytest.approx(-step.state.item())


def test_the_stability_interval_ends_where_it_is_said_to():
    for x in np.linspace(-tsit5.STABILITY, -0.01, 50):
        assert abs(stability_function(x)) <= 1
    assert abs(stability_function(-tsit5.STABILITY - 0.001)) > 1


def test_a_step_of_cubic_decay():
    """z' = −z³ from 1; exactly it would be 1 / sqrt(1.2) = 0.9128709292."""
    step = tsit5.step(lambda t, z: -(z**3), 0.0, ONE, -ONE, 0.1)
    assert step.state.item() == pytest.approx(0.9128710431147, abs=1e-12)
    assert step.error.item() == pytest.approx(9.72434e-8, rel=1e-5)
    assert step.stiffness.item() == pytest.approx(2.49244, abs=1e-5)
    assert scaled_error(step.error, ONE, step.state, 1e-6).item() == pytest.approx(0.0486217, abs=1e-6)
    assert scaled_error(step.error, ONE, step.state, 1.4e-8).item() == pytest.approx(3.47298, abs=1e-4)


def test_the_error_of_a_rotation_falls_with_the_fifth_power_of_the_step():
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for h, expected in ((0.2, 9.6562e-8), (0.1, 3.0161e-9), (0.05, 9.4243e-11)):
        step = tsit5.step(lambda t, z: z @ TURN.T, 0.0, z, z @ TURN.T, h)
        assert rms(step.error) == pytest.approx(expected, rel=1e-3)
        assert step.stiffness.item() == pytest.approx(1.0, abs=1e-6)


def test_a_step_of_the_spiral():
    z = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    step = tsit5.step(lambda t, z: z**3 @ SPIRAL.T, 0.0, z, z**3 @ SPIRAL.T, 0.05)
    assert step.state.flatten().tolist() == pytest.approx([1.949455, -0.773427], abs=1e-6)
    assert step.stiffness.item() == pytest.approx(16.23919, abs=1e-4)
    assert rms(step.error) == pytest.approx(1.63913e-5, rel=1e-5)


def two_steps(rate: torch.Tensor) -> list[torch.Tensor]:
    """E_j of z' = rate · z from 1 over steps of 0.4 and 0.6 at a tolerance of 1e-3."""
    z, slope, t, errors = ONE, rate * ONE, 0.0, []
    for h in (0.4, 0.6):
        step = tsit5.step(lambda t, z: rate * z, t, z, slope, h)
        errors.append(scaled_error(step.error, z, step.state, 1e-3))
        z, slope, t = step.state, step.slope, t + h
    return errors


def test_the_regularizer_and_its_gradient_with_given_steps():
    rate = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    errors = two_steps(rate)
    assert [error.item() for error in errors] == pytest.approx([0.00252073, 0.01647244], abs=1e-8)
    total = 0.4 * errors[0] + 0.6 * errors[1]
    assert total.item() == pytest.approx(0.01089176, abs=1e-8)
    (gradient,) = torch.autograd.grad(total, rate)
    assert gradient.item() == pytest.approx(-0.0542785, abs=1e-7)
    other = two_steps(torch.tensor(-2.0, dtype=torch.float64))
    assert (0.4 * other[0] + 0.6 * other[1]).item() == pytest.approx(0.3355462, abs=1e-7)


# -- between the steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.8, 1.0])
def test_the_interpolant_satisfies_the_order_conditions_of_quadrature(share):
    """Σ b_i(θ) c_i^k = θ^(k+1) / (k+1) up to k = 3; at θ = 1 the weights are the step's own."""
    weights, c = tsit5.between(torch.tensor([share], dtype=torch.float64))[0].numpy(), np.array(tsit5.NODES)
    for k in range(4):
        assert weights @ c**k == pytest.approx(share ** (k + 1) / (k + 1), abs=1e-13)
    if share == 1:
        assert weights == pytest.approx([*tsit5.STAGES[-1], 0.0], abs=1e-13)


def test_states_between_the_steps_are_the_exact_solution_and_have_its_gradients():
    """z(t) = z0 exp(a t): at any time, in ascending order, with dz/da = t z(t). Linear interpolation is far off."""
    a = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    times = torch.tensor([0.0, 0.013, 0.21, 0.5, 0.777, 1.0], dtype=torch.float64)
    solution = tsit5.solve(lambda t, z: a * z, z, 0.0, 1.0, tolerance=1e-6, dense=True)
    states, exact = solution.at(times), z * torch.exp(-2 * times)[:, None, None]
    torch.testing.assert_close(states, exact, rtol=0, atol=3e-6)
    torch.testing.assert_close(states[-1], solution.end)
    (gradient,) = torch.autograd.grad(states[3, 0, 1], a)
    assert gradient.item() == pytest.approx(0.5 * 3 * math.exp(-1), rel=1e-4)
    linear = tsit5.solve(lambda t, z: a * z, z, 0.0, 1.0, tolerance=1e-6).at(times)
    assert (linear - exact).abs().max() > 1e-3


def test_without_an_interval_all_times_have_the_start():
    solution = tsit5.solve(lambda t, z: 1 / 0, ONE, 0.0, 0.0, tolerance=1e-6, dense=True)
    assert torch.equal(solution.at(torch.tensor([0.0, 0.5, 1.0])), torch.ones(3, 1, 1, dtype=torch.float64))


# -- a solve ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tolerance", "evaluations"), [(1e-4, 145), (1e-6, 295), (1e-8, 667)])
def test_the_controller_on_a_rotation(tolerance, evaluations):
    """Evaluations that a prototype in NumPy counted."""
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    solution = tsit5.solve(lambda t, z: z @ TURN.T, z, 0.0, 10.0, tolerance=tolerance, h=1e-3)
    assert (solution.evaluations, solution.rejected) == (evaluations, 0)
    assert solution.times[-1] == 10.0
    assert (solution.end - torch.tensor([[math.cos(10), -math.sin(10)]])).abs().max() < 100 * tolerance


def test_the_size_of_the_first_step_by_hand():
    """z' = −z from 1, norms are over 2τ: h_0 = 0.01, |f(z + h_0 f) − f| / h_0 = 1, h = (0.01 · 2τ)^(1/5)."""
    h = tsit5.first_step(lambda t, z: -z, 0.0, ONE, -ONE, 10.0, 1e-5)
    assert h == pytest.approx((0.01 * 2e-5) ** 0.2, rel=1e-9)
    assert (
        tsit5.first_step(lambda t, z: -z, 0.0, ONE, -ONE, 0.02, 1e-5) == 0.02
    )  # no longer than the interval


def test_it_agrees_with_scipy_on_a_field_that_depends_on_time():
    def field(t, z, tanh=torch.tanh, cos=math.cos):
        return 3 * cos(5 * t) * tanh(2 * z) - z

    z = np.array([0.3, -1.2, 2.0])
    oracle = solve_ivp(
        lambda t, z: field(t, z, np.tanh), (0, 2), z, method="DOP853", rtol=1e-12, atol=1e-12
    ).y[:, -1]
    ours = tsit5.solve(field, torch.from_numpy(z)[:, None], 0.0, 2.0, tolerance=1e-9)
    np.testing.assert_allclose(ours.end.flatten().numpy(), oracle, rtol=1e-7)


def test_rejected_steps_count_as_evaluations_and_nowhere_else():
    solution = tsit5.solve(lambda t, z: -50 * z, ONE, 0.0, 1.0, tolerance=1e-6, h=0.5)
    assert solution.rejected >= 2
    assert solution.evaluations == 1 + 6 * (len(solution.errors) + solution.rejected)
    assert (
        len(solution.states) == len(solution.times) == len(solution.errors) + 1 == len(solution.stiffness) + 1
    )
    assert all(error <= 1 for error in solution.errors)
    assert sum(solution.steps) == pytest.approx(1.0)
    assert [s.item() for s in solution.stiffness] == pytest.approx([50.0] * len(solution.errors))


def test_gradients_of_the_end_are_those_of_the_exact_solution():
    """z(1) = z0 exp(a): derivatives exp(a) and z0 exp(a)."""
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    end = tsit5.solve(lambda t, z: a * z, z, 0.0, 1.0, tolerance=1e-10).end
    of_rate, of_start = torch.autograd.grad(end, (a, z))
    assert of_rate.item() == pytest.approx(2 * math.exp(0.7), rel=1e-8)
    assert of_start.item() == pytest.approx(math.exp(0.7), rel=1e-8)


def test_gradients_of_the_estimates_are_finite_differences_with_the_steps_held():
    def estimates(scale, steps):
        def field(t, z):
            return torch.tanh(scale * z) * (1 + t) - z**3

        z = torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=torch.float64)
        slope, t, total = field(0.0, z), 0.0, 0.0
        for h in steps:
            step = tsit5.step(field, t, z, slope, h)
            total = total + h * scaled_error(step.error, z, step.state, 1e-6) + 0.1 * step.stiffness
            z, slope, t = step.state, step.slope, t + h
        return total

    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=torch.float64)
    solution = tsit5.solve(lambda t, z: torch.tanh(scale * z) * (1 + t) - z**3, z, 0.0, 1.0, tolerance=1e-6)
    ours = sum(
        h * e + 0.1 * s for h, e, s in zip(solution.steps, solution.errors, solution.stiffness, strict=True)
    )
    (gradient,) = torch.autograd.grad(ours, scale)
    with torch.no_grad():
        difference = estimates(scale + 1e-6, solution.steps) - estimates(scale - 1e-6, solution.steps)
    assert gradient.item() == pytest.approx(difference.item() / 2e-6, rel=1e-5)


def test_a_field_of_zeros_has_gradients():
    """No error and no distance between the last stages: roots of zero, whose gradients would be NaN."""
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solution = tsit5.solve(lambda t, z: weight * z, ONE, 0.0, 1.0, tolerance=1e-6)
    total = sum(solution.errors) + sum(solution.stiffness)
    assert total.item() == 0
    total.backward()
    assert weight.grad.item() == 0


def test_nothing_is_solved_over_no_time():
    solution = tsit5.solve(lambda t, z: 1 / 0, ONE, 0.0, 0.0, tolerance=1e-6)
    assert (solution.end.item(), solution.evaluations, solution.errors) == (1.0, 0, [])


def test_a_solution_that_ends_before_the_interval_is_refused():
    with pytest.raises(
        UserError, match="can't be solved to its tolerance"
    ):  # z' = z² from 1 is infinite at t = 1
        tsit5.solve(lambda t, z: z**2, ONE, 0.0, 2.0, tolerance=1e-3)
    with pytest.raises(UserError, match=r"raise backbone\.tolerance"):
        tsit5.solve(lambda t, z: z * math.nan, ONE, 0.0, 1.0, tolerance=1e-3)
