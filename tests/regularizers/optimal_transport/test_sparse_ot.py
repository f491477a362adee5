"""The transport methods, their problems, and the mixture of experts, against numbers by hand and POT."""

import numpy as np
import ot
import pytest
import torch
from PIL import Image
from torch import nn

from regbench.backbones import build
from regbench.backbones.moe import MixtureOfExperts, Router, moe_classifier
from regbench.data.photos import PHOTOS, read_photo
from regbench.data.transport import (
    histogram,
    load_colours,
    load_histograms,
    load_points,
    load_token_gates,
)
from regbench.errors import UserError
from regbench.functional.routing import importance_loss, load_loss
from regbench.regularizers.optimal_transport.base import plan_metrics
from regbench.regularizers.optimal_transport.moe_router import MoERouter
from regbench.regularizers.optimal_transport.sparse_ot import SparseTransport, entropic, linear
from regbench.regularizers.optimal_transport.token_routing import TokenRouting
from support import history, read_result

A, B = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
COST = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.2]], dtype=torch.float64)
QUIET = ["logger=none", "progress=none"]


def solver(**options) -> SparseTransport:
    return SparseTransport(nn.Identity(), 0, **options)


# -- plans -------------------------------------------------------------------------------------------------------------


def test_metrics_by_hand():
    """A plan with row sums (.5, .2, .2) and column sums (.4, .5) for the weights (.5, .3, .2) and (.4, .6)."""
    plan = torch.tensor([[0.3, 0.2], [0.0, 0.2], [0.1, 0.1]], dtype=torch.float64)
    found = {name: value.item() for name, value in plan_metrics(plan, COST, A, B).items()}
    assert found == pytest.approx({
        "cost": 0.2 + 0.05 + 0.02, "nonzeros": 5, "nonzero_share": 5 / 6, "max_column": 3, "row_error": 0.1,
        "column_error": 0.1, "row_error_squared": 0.01, "column_error_squared": 0.01,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("options", "value", "less_offset"),
    [
        ({"method": "lp"}, 0.14, 0.14),
        ({"method": "quadratic", "gamma": 0.5}, 0.215, 0.215 - 0.13),
        ({"method": "quadratic", "gamma": 0.5, "formulation": "dual"}, 0.215, 0.215 - 0.13),
        ({"k": 2, "gamma": 0.5}, 0.225, 0.225 - 0.13),
        ({"k": 1, "gamma": 0.5, "formulation": "dual"}, 0.27, 0.14),
    ],
)
def test_values_by_hand(options, value, less_offset):
    found = solver(**options).evaluate(COST, A, B)
    assert found["value"].item() == pytest.approx(value, abs=2e-3)
    assert found["value_less_offset"].item() == pytest.approx(less_offset, abs=2e-3)
    assert found["converged"] == 1


def test_linear_and_entropic_plans_meet_their_optimality_conditions():
    """c − α − β is at least 0, and 0 on the plan; of the entropic plan γ (log t + 1) = α + β − c everywhere."""
    solution = linear(COST, A, B, 1000)
    slack = COST - solution.alpha[:, None] - solution.beta
    assert slack.min() > -1e-12
    assert (slack * solution.plan).abs().max() < 1e-12
    solution = entropic(COST, A, B, 0.3, 1e-12, 5000)
    log_plan = (solution.alpha[:, None] + solution.beta - COST) / 0.3 - 1
    torch.testing.assert_close(log_plan.exp(), solution.plan)
    np.testing.assert_allclose(
        solution.plan, ot.sinkhorn(A.numpy(), B.numpy(), COST.numpy(), 0.3, stopThr=1e-12), atol=1e-10
    )
    dual = solution.alpha @ A + solution.beta @ B - 0.3 * solution.plan.sum()
    assert solution.value.item() == pytest.approx(dual.item())
    assert solution.converged


def test_the_recovered_plan_meets_both_marginals():
    """The linear programme's plan is [[.4, .1], [0, .3], [0, .2]]."""
    found = solver(k=1, gamma=0.5, formulation="dual", recover=0.01).evaluate(COST, A, B)
    assert found["row_error"] < 1e-9
    assert found["cost"].item() == pytest.approx(0.14)
    assert solver(k=1, gamma=0.5).evaluate(COST, A, B)["row_error"] > 0.1


def test_a_run_gives_the_means_over_the_problems_and_leaves_no_checkpoint(train):
    code, folder = train(
        "regularizer=sparse_ot", "dataset.pairs=random", "dataset.count=3", "dataset.bins=8", *QUIET
    )
    assert code == 0
    metrics = read_result(folder)["metrics"]
    split = load_histograms(bins=8, pairs="random", count=3, seed=0).test.fields
    method = solver()
    found = [method.evaluate(*problem) for problem in zip(*split.values(), strict=True)]
    for name in ("value", "cost", "row_error", "iterations"):
        mean = sum(float(one[name]) for one in found) / 3
        assert metrics[f"test/{name}"] == pytest.approx(mean, rel=1e-6)
    assert not (folder / "checkpoints").exists() or not list((folder / "checkpoints").iterdir())


def test_the_first_problems_plan_is_drawn(train):
    code, folder = train("regularizer=sparse_ot", "dataset.bins=8", "callbacks=[default,plans]", *QUIET)
    assert code == 0
    with Image.open(folder / "figures" / "plan.png") as image:
        assert image.width > 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "emd"}, "method"),
        ({"k": 0}, "k=0"),
        ({"gamma": -1.0}, "gamma=-1.0"),
        ({"formulation": "primal"}, "formulation"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"recover": 0.01}, "recover=0.01"),
        ({"k": 1, "recover": 0.0}, "recover=0.0"),
    ],
)
def test_mistakes_in_the_methods_options(options, says):
    with pytest.raises(UserError, match=says):
        solver(**options)


# -- problems ----------------------------------------------------------------------------------------------------------


def test_histograms_are_the_notebooks():
    """POT makes the same bells; the cost is (i − j)²/31²."""
    found = load_histograms(bins=32, pairs="gaussian", count=1).test.fields
    np.testing.assert_allclose(found["source"][0], ot.datasets.make_1D_gauss(32, 10, 4), atol=1e-15)
    np.testing.assert_allclose(found["target"][0], ot.datasets.make_1D_gauss(32, 16, 5), atol=1e-15)
    assert found["cost"][0, 3, 7].item() == pytest.approx(16 / 961)
    mixture = load_histograms(bins=32, pairs="mixture", count=1).test.fields["target"][0]
    assert mixture[8] == pytest.approx(mixture[24].item())
    assert histogram(3, (1, 1)).tolist() == pytest.approx([0.274069, 0.451862, 0.274069], abs=1e-6)


def test_the_seed_draws_problems_and_the_content_does_not_know_it():
    for load in (
        lambda seed: load_histograms(bins=16, pairs="random", count=2, seed=seed),
        lambda seed: load_points(points=6, count=2, seed=seed),
        lambda seed: load_token_gates(tokens=8, experts=4, scale=1.0, count=2, seed=seed),
    ):
        one, again, other = load(0), load(0), load(1)
        problem, other_problem = one.test.fields, other.test.fields
        assert all(torch.equal(problem[name], again.test.fields[name]) for name in problem)
        assert any(not torch.equal(problem[name], other_problem[name]) for name in problem)
        assert one.fingerprint == other.fingerprint
        torch.testing.assert_close(problem["source"].sum(1), problem["target"].sum(1))


def test_points_lie_where_they_should():
    sets = load_points(points=1000, count=1)
    source, target = (sets.test.hidden[f"{side}_points"][0] for side in ("source", "target"))
    torch.testing.assert_close(source.mean(0), torch.zeros(2).double(), atol=0.12, rtol=0)
    torch.testing.assert_close(target.mean(0), torch.full((2,), 4.0).double(), atol=0.12, rtol=0)
    expected = (source[5] - target[7]).square().sum()
    torch.testing.assert_close(sets.test.fields["cost"][0, 5, 7], expected)


def test_gates_by_hand():
    """Each token's gates sum to 1; at scale 0 all are 1 / experts."""
    found = load_token_gates(tokens=5, experts=4, scale=1.0, count=2).test.fields
    torch.testing.assert_close(-found["cost"].sum(2), torch.ones(2, 5).double())
    assert found["target"][0].tolist() == [1.25] * 4
    assert (load_token_gates(tokens=5, experts=4, scale=0.0, count=1).test.fields["cost"] == -0.25).all()


def test_colours_of_a_picture_with_three_of_them(tmp_path):
    """Three flat colours: the centres are these, weighted by their areas."""
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[:5], pixels[5:8], pixels[8:] = (255, 0, 0), (0, 128, 0), (0, 0, 64)
    Image.fromarray(pixels).save(tmp_path / "flag.png")
    options = {"source": "flag.png", "target": "coffee", "colours": 3, "pixels": None}
    sets = load_colours(str(tmp_path), **options)
    expected = torch.tensor([[255, 0, 0], [0, 128, 0], [0, 0, 64]], dtype=torch.float64) / 256
    torch.testing.assert_close(sets.test.hidden["source_colours"][0], expected)
    torch.testing.assert_close(
        sets.test.fields["source"][0], torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), atol=1e-8, rtol=0
    )
    mean = sets.test.fields["target"][0] @ sets.test.hidden["target_colours"][0]
    np.testing.assert_allclose(mean, read_photo(PHOTOS["coffee"]).reshape(-1, 3).mean(0) / 256, atol=2e-3)
    distance = (expected[1] - sets.test.hidden["target_colours"][0][2]).square().sum()
    torch.testing.assert_close(sets.test.fields["cost"][0, 1, 2], distance)


def test_mistakes_in_the_problems(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    colours = {"source": "astronaut", "target": "coffee", "colours": 4, "pixels": 100}
    for call, says in (
        (lambda: load_histograms(bins=8, pairs="cauchy", count=1), "pairs"),
        (lambda: load_histograms(bins=1, pairs="gaussian", count=1), "bins=1"),
        (lambda: load_points(points=1, count=1), "points=1"),
        (lambda: load_colours(**colours | {"pixels": 2}), "pixels=2"),
        (lambda: load_colours(**colours | {"source": "nowhere.png"}), "no file"),
        (lambda: load_colours(str(tmp_path), **colours | {"source": "text.png"}), "can't be read"),
        (lambda: load_token_gates(tokens=4, experts=1, scale=1.0, count=1), "experts=1"),
    ):
        with pytest.raises(UserError, match=says):
            call()


# -- routing of given gates --------------------------------------------------------------------------------------------


def test_routing_of_given_gates_by_hand():
    """Gates (.9, .1), (.8, .2), … of eight tokens, two experts with room for four each: all want the first."""
    first = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.65, 0.75, 0.85, 0.95], dtype=torch.float64)
    cost = -torch.stack([first, 1 - first], 1)
    problem = cost, torch.ones(8).double(), torch.full((2,), 4.0).double()
    found = TokenRouting(nn.Identity(), 0, router="topk").evaluate(*problem)
    assert (found["load"].item(), found["unrouted"].item()) == (2, 0.5)
    assert found["gate_mass"].item() == pytest.approx((0.9 + 0.8 + 0.7 + 0.6) / 8)
    found = TokenRouting(nn.Identity(), 0, router="expert_choice").evaluate(*problem)
    assert (found["load"].item(), found["unrouted"].item()) == (1, 0)


def test_mistakes_in_routing():
    with pytest.raises(UserError, match="training only"):
        TokenRouting(nn.Identity(), 0, router="topk_balanced")
    with pytest.raises(UserError, match="dataset=token_gates"):
        TokenRouting(nn.Identity(), 0).evaluate(COST, A, B)


# -- the mixture of experts --------------------------------------------------------------------------------------------


def test_a_mixture_sums_gated_experts_over_the_mask():
    torch.manual_seed(0)
    mixture = MixtureOfExperts(5, 3, 4, 6)
    mixture.router = Router(16, router="topk", capacity_factor=0.25)  # room for 4 tokens each
    x = torch.randn(16, 5)
    y = mixture(x)
    mask = torch.cat([routing.mask for routing in mixture.router.take().routings])
    gates = mixture.gate(x).softmax(1)
    expected = sum(
        (mask[:, j] * gates[:, j])[:, None] * expert(x) for j, expert in enumerate(mixture.experts)
    )
    torch.testing.assert_close(y, expected)
    assert not mask.any(1).all()
    assert (y[~mask.any(1)] == 0).all()
    y.sum().backward()
    assert mixture.gate.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in mixture.parameters())


def test_groups_are_routed_apart():
    torch.manual_seed(0)
    mixture = MixtureOfExperts(5, 3, 4, 6)
    mixture.router = Router(8, router="sparse_ot")
    x = torch.randn(20, 5)
    torch.testing.assert_close(mixture(x), torch.cat([mixture(part) for part in (x[:8], x[8:16], x[16:])]))


def test_the_networks_parameters_by_hand():
    """64 → 10 beside 8 experts 64 → 32 → 10 and a gate 64 → 8 without bias."""
    backbone = build(
        {"name": "moe", "_target_": "regbench.backbones.moe.moe_classifier", "experts": 8, "hidden": 32},
        shape=(1, 8, 8),
        num_classes=10,
    )
    expected = 650 + 8 * (65 * 32 + 33 * 10) + 512
    assert sum(p.numel() for p in backbone.parameters()) == expected
    with pytest.raises(UserError, match="experts=1"):
        moe_classifier(1, (8, 8), 10, experts=1)


def batch(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(size, 1, 8, 8, generator=generator), torch.randint(10, (size,), generator=generator)


def test_balancing_losses_join_the_cross_entropy():
    """Without noise's drawing the penalty would be that of the plain logits; weights 1 and 2."""
    torch.manual_seed(0)
    backbone = moe_classifier(1, (8, 8), 10)
    method = MoERouter(backbone, 10, router="topk_balanced", importance_weight=1.0, load_weight=2.0, seed=3)
    image, label = batch()
    loss = method.training_loss((image, label))
    network = backbone.network
    logits = network.moe.gate(image.flatten(1))
    noisy = logits + 0.125 * torch.randn(32, 8, generator=fresh(method, "routing"))
    network.moe.router.generator = lambda: fresh(method, "routing")
    cross_entropy = nn.functional.cross_entropy(backbone(image), label)
    losses = importance_loss(logits.softmax(1)) + 2 * load_loss(logits, noisy, 1, 0.125)
    torch.testing.assert_close(loss, cross_entropy + losses)
    plain = MoERouter(moe_classifier(1, (8, 8), 10), 10, router="topk")
    assert plain.training_loss((image, label)) == nn.functional.cross_entropy(plain.backbone(image), label)


def fresh(method: MoERouter, stream: str) -> torch.Generator:
    """The method's generator of a stream, at its start."""
    method._generators.clear()
    return method.generator(stream)


def test_metrics_do_not_know_the_batches_of_evaluation(train):
    """Groups of 100 of the test split's 359 images, whatever eval_batch_size."""
    command = ["regularizer=moe_router", "dataset=digits", "dataset.batch_size=128", "regularizer.group_size=100",
               "trainer.max_epochs=2", *QUIET]  # fmt: skip
    results, curves = [], []
    for size in (64, 1000):
        code, folder = train(*command, f"dataset.eval_batch_size={size}", run_dir=f"size-{size}")
        assert code == 0
        results.append(read_result(folder)["metrics"])
        curves.append([row["val/accuracy"] for row in history(folder)])
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert curves[0] == curves[1]
    assert 0 <= results[0]["test/unrouted"] < 0.3
    assert results[0]["test/load"] >= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"router": "best"}, "router"),
        ({"group_size": 0}, "group_size=0"),
        ({"noise": 0.0}, "noise=0.0"),
        ({"load_weight": -1.0}, "load_weight=-1.0"),
    ],
)
def test_mistakes_in_the_routers_options(options, says):
    with pytest.raises(UserError, match=says):
        MoERouter(moe_classifier(1, (8, 8), 10), 10, **options)


def test_a_network_without_experts_is_refused():
    with pytest.raises(UserError, match="backbone=moe"):
        MoERouter(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10)
