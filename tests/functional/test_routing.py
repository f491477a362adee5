"""Routers of sparse mixtures against numbers by hand, and POT for their plans."""

import numpy as np
import ot
import pytest
import torch

from regbench.errors import UserError
from regbench.functional.optimal_transport import adam_plan, semi_dual_plan, solve
from regbench.functional.routing import (
    ROUTERS,
    Routing,
    check_router,
    expert_capacity,
    expert_choice,
    importance_loss,
    load_loss,
    loads,
    quadratic_plan,
    route,
    sinkhorn_plan,
    token_choice,
)

GATES = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.4, 0.5, 0.1]])


def logits(tokens: int = 64, experts: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, experts, generator=generator) + torch.randn(experts, generator=generator) / 2


@pytest.mark.parametrize(
    ("choices", "experts", "factor", "expected"),
    [(256, 8, 1.0, 32), (256, 8, 1.05, 36), (232, 8, 1.0, 32), (80, 8, 1.1, 12), (2, 8, 1.0, 4)],
)
def test_capacities_by_hand(choices, experts, factor, expected):
    """The ceiling of factor · choices / experts, up to the next multiple of 4; 80 · 1.1 / 8 is 11."""
    assert expert_capacity(choices, experts, factor) == expected


def test_token_choice_by_hand():
    """Expert 0 is wanted by three tokens and takes two; second choices queue behind all first ones."""
    routing = token_choice(GATES, 1, 2)
    assert routing.mask.int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert routing.wanted.int().tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]]
    routing = token_choice(GATES, 2, 2)
    # First choices: 0, 0, 0 (full), 1; second ones: 1 (its second), 1 (full), 2, 0 (full).
    assert routing.mask.int().tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_a_token_never_takes_an_expert_with_score_zero():
    scores = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    assert token_choice(scores, 2, 4).mask.int().tolist() == [[1, 0], [0, 0]]
    assert expert_choice(scores, 2).mask.int().tolist() == [[1, 0], [0, 0]]


def test_expert_choice_by_hand():
    """Columns (.7, .6, .5, .4), (.2, .3, .1, .5), (.1, .1, .4, .1)."""
    assert expert_choice(GATES, 1).mask.int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert expert_choice(GATES[:, :2], 2).mask.int().tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    assert expert_choice(GATES, 9).mask.all()


def test_sinkhorns_plan_is_pots():
    x = logits()
    expected = ot.sinkhorn(np.ones(64), np.full(8, 8.0), -x.double().numpy(), 1.0, stopThr=1e-12)
    np.testing.assert_allclose(sinkhorn_plan(x.double(), 200), expected, atol=1e-9)


def test_one_step_of_adam_moves_each_potential_by_the_learning_rate():
    gates = logits().softmax(1)
    a, b = torch.ones(64), torch.full((8,), 8.0)
    first = a - semi_dual_plan(torch.zeros(64), -gates, b, 8, 1.0).sum(1)
    expected = semi_dual_plan(0.01 * first.sign(), -gates, b, 8, 1.0)
    torch.testing.assert_close(adam_plan(-gates, a, b, 8, 1.0, steps=1, lr=0.01), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("choice", ["expert", "token"])
def test_plans_bound_the_side_that_chooses(choice):
    gates = logits().softmax(1).double()
    k = 8 if choice == "expert" else 1
    plan = quadratic_plan(gates, k, 20, 0.01, choice)
    side, total = (0, 8.0) if choice == "expert" else (1, 1.0)
    assert (plan > 0).sum(side).max() <= k
    torch.testing.assert_close(plan.sum(side), torch.full_like(plan.sum(side), total))


def test_many_steps_reach_the_quadratic_optimum():
    gates = logits(16, 4).softmax(1).double()
    plan = quadratic_plan(gates, 16, 3000, 0.003, "expert")
    best = solve(-gates, torch.ones(16).double(), torch.full((4,), 4.0).double(), None, 1.0).plan
    torch.testing.assert_close(plan, best, atol=5e-3, rtol=0)


def test_sparse_transport_spreads_tokens_better_than_either_choice():
    x = logits(256)
    unrouted = {}
    for router in ("topk", "expert_choice", "sparse_ot"):
        routing = route(x, router)
        assert routing.mask.sum(0).max() <= 32
        unrouted[router] = loads(routing, x.softmax(1))["unrouted"].item()
    assert unrouted["sparse_ot"] < unrouted["expert_choice"] < unrouted["topk"]


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("choice", ["expert", "token"])
@pytest.mark.parametrize("tokens", [1, 3, 64])
def test_every_router_keeps_capacities_for_any_number_of_tokens(router, choice, tokens):
    x = logits(tokens)
    routing = route(x.requires_grad_(), router, choice=choice, experts_per_token=2, capacity_factor=1.0)
    assert not routing.mask.requires_grad
    by_tokens = choice == "token" if ROUTERS[router] == "either" else ROUTERS[router] == "token"
    assert routing.mask.sum(0).max() <= expert_capacity(tokens * (2 if by_tokens else 1), 8, 1.0)
    if by_tokens:
        assert routing.mask.sum(1).max() <= 2
    assert (routing.wanted | ~routing.mask).all()


def test_loads_by_hand():
    """Wanted 3, 1, 0: the busiest has 3 / (4/3) = 2.25 times the mean; one token of four goes nowhere."""
    routing = token_choice(GATES, 1, 2)
    found = loads(routing, GATES)
    assert found["load"].item() == pytest.approx(2.25)
    assert found["unrouted"].item() == pytest.approx(0.25)
    assert found["gate_mass"].item() == pytest.approx((0.7 + 0.6 + 0.5) / 4)
    everything = torch.ones(4, 3, dtype=torch.bool)
    assert loads(Routing(everything, everything), GATES)["gate_mass"].item() == pytest.approx(1)


def test_balancing_losses_by_hand():
    """Gates' sums 2.2, 1.1, .7 have variance .402222 and mean 4/3; chances Φ(−1) and Φ(0) have (.170672/.329328)²."""
    assert importance_loss(GATES).item() == pytest.approx(0.402222 / (16 / 9), abs=1e-6)
    found = load_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), 1, 1.0)
    assert found.item() == pytest.approx((0.170672 / 0.329328) ** 2, abs=1e-5)
    assert importance_loss(torch.full((5, 4), 0.25)).item() == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"router": "top2"}, "router"),
        ({"choice": "both"}, "choice"),
        ({"experts_per_token": 0}, "experts_per_token=0"),
        ({"capacity_factor": 0.0}, "capacity_factor=0.0"),
        ({"steps": 0}, "steps=0"),
        ({"lr": 0.0}, "adam_lr=0.0"),
    ],
)
def test_mistakes(changes, says):
    options = {"router": "topk", "choice": "expert", "experts_per_token": 1, "capacity_factor": 1.0}
    with pytest.raises(UserError, match=says):
        check_router(**options | {"steps": 20, "lr": 0.01} | changes)
