"""The adaptive Euler-Maruyama scheme: steps by hand, exact solutions on the same path, rejected steps."""

import math

import pytest
import torch

from regbench.errors import UserError
from regbench.solvers import sde

ONE = torch.ones(1, 1, dtype=torch.float64)


def nothing(t, z):
    return torch.zeros_like(z)


def test_a_step_without_noise_by_hand():
    """u' = −u from 1, h = 1: K = 0, E_d = 1 · (0 + 1) / 2, E = (1/2 / 6) / (1 + 1); S = 1."""
    solution = sde.solve(
        lambda t, u: -u, nothing, ONE, 0.0, 1.0, path=lambda a, b: 5 * ONE, tolerance=1.0, h=1.0
    )
    assert solution.end.item() == 0
    assert solution.errors[0].item() == pytest.approx(1 / 24)
    assert solution.stiffness[0].item() == pytest.approx(1.0)
    assert solution.evaluations == 2


def test_a_step_with_noise_by_hand():
    """du = u dW from 1, h = 1/4, dW = 0.3: u1 = 1.3, E_n = (1.5 − 1) / 0.5 · 0.09 / 2 = 0.045, over 1 + 1.3."""
    solution = sde.solve(
        nothing, lambda t, u: u, ONE, 0.0, 0.25, path=lambda a, b: 0.3 * ONE, tolerance=1.0, h=0.25
    )
    assert solution.end.item() == pytest.approx(1.3)
    assert solution.errors[0].item() == pytest.approx(0.045 / 2.3)
    assert solution.stiffness[0].item() == 0  # the drift moves nothing


def test_steps_that_are_tried_again_stay_on_the_path():
    """du = cos(40 t) dt + dW: the end is the drift's sum plus W(1) of the path, however often a step was shortened."""
    z = torch.zeros(3, 2, dtype=torch.float64)
    path = sde.brownian(z, 1.0, seed=4)
    solution = sde.solve(
        lambda t, u: torch.full_like(u, math.cos(40 * t)), lambda t, u: torch.ones_like(u), z, 0.0, 1.0,
        path=path, tolerance=2e-3, h=0.5,
    )  # fmt: skip
    assert solution.rejected >= 1
    drift = sum(h * math.cos(40 * t) for h, t in zip(solution.steps, solution.times, strict=False))
    torch.testing.assert_close(solution.end, drift + path(0.0, 1.0))
    assert solution.evaluations == 2 * len(solution.errors) + solution.rejected


def test_a_finer_tolerance_comes_closer_to_the_exact_solution_on_the_same_path():
    """du = a u dt + b u dW has the solution exp((a − b²/2) t + b W)."""
    z = torch.ones(500, 1, dtype=torch.float64)
    a, b, misses = -1.0, 0.5, []
    for tolerance in (0.1, 0.01, 0.001):
        path = sde.brownian(z, 1.0, seed=1)
        solution = sde.solve(
            lambda t, u: a * u, lambda t, u: b * u, z, 0.0, 1.0, path=path, tolerance=tolerance
        )
        exact = torch.exp((a - b**2 / 2) + b * path(0.0, 1.0))
        misses.append((solution.end - exact).abs().mean().item())
    assert misses[0] > misses[1] > misses[2]
    assert misses[2] < 0.02


def test_paths_of_a_seed_are_the_same_and_of_two_seeds_are_not():
    one, same, other = (sde.brownian(ONE, 1.0, seed=seed)(0.0, 0.5).item() for seed in (1, 1, 2))
    assert one == same != other


def test_without_torchsde_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("regbench.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"regbench\[sde\]"):
        sde.brownian(ONE, 1.0, seed=0)
