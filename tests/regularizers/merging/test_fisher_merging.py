"""Fisher merging: the weighted mean, the diagonal Fisher and the search against numbers worked out by hand."""

import pytest
import torch
from torch import nn

import regbench
from regbench import cli
from regbench.artifacts import check_roles
from regbench.backbones.backbone import Backbone, Origin
from regbench.backbones.small import mlp, small_cnn, small_vit
from regbench.errors import UserError
from regbench.regularizers.merging.base import candidates
from regbench.regularizers.merging.fisher_merging import diagonal_fisher, fisher_merge, norm
from support import history, read_result, weights

THETA = ([1.0, 2.0], [3.0, -2.0])
FISHERS = ([4.0, 1.0], [1.0, 3.0])
W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
X = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
# softmax(2, 1, 0) = (.665241, .244728, .090031); F[c, d] = p_c (1 − p_c) x_d²
EXACT = [[0.890784, 0.222696], [0.739347, 0.184837], [0.327701, 0.081925]]
SMALL = ["dataset=digits", "backbone=mlp", "backbone.hidden=[16]", "trainer.max_epochs=2", "logger=none",
         "progress=none", "optimizer.lr=0.05"]  # fmt: skip


def as_models(values) -> list[dict[str, torch.Tensor]]:
    return [{"a": torch.tensor(value, dtype=torch.float64)} for value in values]


def merged(coefficients, fishers=FISHERS, theta=THETA, **options) -> list[float]:
    options = {"normalise": False, **options}
    return fisher_merge(as_models(theta), as_models(fishers), coefficients, **options)["a"].tolist()


def linear(weight=W) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    return layer


# -- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coefficients", "normalise", "expected"),
    [
        ((0.5, 0.5), False, [1.4, -1.0]),
        ((0.8, 0.2), False, [1.117647, 0.285714]),
        # The norms are √17 and √10: weights (.970143, .242536) and (.316228, .948683).
        ((0.5, 0.5), True, [1.491659, -1.185588]),
        ((1.0, 0.0), True, [1.0, 2.0]),
        ((0.0, 1.0), True, [3.0, -2.0]),
    ],
)
def test_merge_by_hand(coefficients, normalise, expected):
    assert merged(coefficients, normalise=normalise) == pytest.approx(expected, abs=1e-6)


def test_equal_fishers_give_the_plain_average():
    assert merged((0.25, 0.75), fishers=([2.0, 5.0], [2.0, 5.0])) == pytest.approx([2.5, -1.0])


def test_the_scale_of_a_fisher_is_that_of_its_coefficient_and_normalising_takes_it_out():
    threefold = (FISHERS[0], [3.0, 9.0])
    assert merged((0.5, 0.5), threefold) == pytest.approx(merged((0.25, 0.75)))
    options = {"normalise": True}
    assert merged((0.5, 0.5), threefold, **options) == pytest.approx(merged((0.5, 0.5), **options))


def test_the_norm_is_of_the_whole_fisher():
    assert norm({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}).item() == 5.0


def test_the_floor_is_the_targets_or_everybodys():
    nobody = ([0.0, 1.0], [0.0, 3.0])
    assert merged((0.5, 0.5), nobody) == pytest.approx([1.0, -1.0])  # the target's first entry
    assert merged((0.5, 0.5), nobody, favour_target=False) == pytest.approx([2.0, -1.0])  # the average
    # The maximum, not the sum: with a floor of 1 the weights stay (4, 1) and (1, 3).
    assert merged((0.5, 0.5), floor=1.0, favour_target=False) == pytest.approx([1.4, -1.0])


def test_without_any_weight_the_targets_value_stays():
    """λ = 0 for the target and no Fisher in the donor is 0 / 0."""
    assert merged((0.0, 1.0), ([4.0, 1.0], [0.0, 3.0])) == pytest.approx([1.0, -2.0])


def test_the_merge_minimises_the_sum_of_two_quadratic_losses():
    """L_i = ½ (θ − θ_i)ᵀ diag(F_i) (θ − θ_i): the gradient of their sum vanishes."""
    theta = torch.tensor(merged((0.5, 0.5)), dtype=torch.float64)
    gradient = sum(
        torch.tensor(f, dtype=torch.float64) * (theta - torch.tensor(t, dtype=torch.float64))
        for f, t in zip(FISHERS, THETA, strict=True)
    )
    assert gradient.tolist() == pytest.approx([0, 0], abs=1e-12)


# -- Fisher ----------------------------------------------------------------------------------------------------------


def test_exact_fisher_of_a_linear_softmax():
    fisher = diagonal_fisher(linear(), ["weight"], [(X, None)])["weight"]
    torch.testing.assert_close(fisher, torch.tensor(EXACT, dtype=torch.float64), atol=5e-6, rtol=0)


def test_fisher_is_a_mean_of_squares_over_batches_and_not_the_square_of_a_mean():
    """x and −x: the gradients cancel in the mean, their squares do not; batches and chunks of any size."""
    images = torch.cat([X, -X, X])
    mirrored = diagonal_fisher(linear(), ["weight"], [(-X, None)])["weight"]
    expected = (2 * torch.tensor(EXACT, dtype=torch.float64) + mirrored) / 3
    fisher = diagonal_fisher(linear(), ["weight"], [(images[:2], None), (images[2:], None)], chunk=1)
    torch.testing.assert_close(fisher["weight"], expected, atol=5e-6, rtol=0)


def test_sampled_fisher_converges_to_the_exact_one():
    generator = torch.Generator().manual_seed(0)
    options = {"kind": "sampled", "draws": 10_000, "generator": generator}
    fisher = diagonal_fisher(linear(), ["weight"], [(X, None)], **options)["weight"]
    torch.testing.assert_close(fisher, torch.tensor(EXACT, dtype=torch.float64), rtol=0.05, atol=0)


def test_empirical_fisher_is_the_squared_gradient_at_the_label():
    fisher = diagonal_fisher(linear(), ["weight"], [(X, torch.tensor([1]))], kind="empirical")["weight"]
    # ((δ_c1 − p_c) x_d)²: (.665241)², (.755272)², (.090031)² times 4 and 1
    expected = [[1.770183, 0.442546], [2.281743, 0.570436], [0.032422, 0.008106]]
    torch.testing.assert_close(fisher, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "network",
    [
        lambda: small_cnn(1, (8, 8), 3, width=2),
        lambda: small_vit(1, (8, 8), 3, dim=8, depth=1, heads=2, patch_size=4, dropout=0.5),
    ],
    ids=["batch norm", "attention and dropout"],
)
def test_exact_fisher_of_networks_by_one_backward_pass_a_class(network):
    """In evaluation mode, although it was in training mode before."""
    torch.manual_seed(0)
    network = network().double()
    network.train()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    names = [name for name, _ in network.named_parameters()]
    found = diagonal_fisher(network, names, [(images, None)], chunk=2)
    expected = dict.fromkeys(names, 0.0)
    network.eval()
    for image in images:
        for c in range(3):
            network.zero_grad()
            log_p = network(image[None]).log_softmax(1)[0, c]
            log_p.backward()
            for name, parameter in network.named_parameters():
                expected[name] = expected[name] + log_p.exp().item() * parameter.grad**2 / 3
    for name in names:
        torch.testing.assert_close(found[name], expected[name])


# -- coefficients ----------------------------------------------------------------------------------------------------


def test_candidates():
    assert candidates(2, 5, torch.Generator()) == [(1, 0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0, 1)]
    drawn = torch.tensor(candidates(3, 4000, torch.Generator().manual_seed(0)))
    assert drawn.min() > 0
    torch.testing.assert_close(drawn.sum(1), torch.ones(4000))
    # A flat Dirichlet distribution of three: each has mean 1/3 and variance 1/18.
    torch.testing.assert_close(drawn.mean(0), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.var(0), torch.full((3,), 1 / 18), atol=0.005, rtol=0)


# -- the method ------------------------------------------------------------------------------------------------------


def pair(classes=(3, 3), hidden=(4,)) -> list[Backbone]:
    models = []
    for i, c in enumerate(classes):
        torch.manual_seed(i)
        models.append(mlp(1, (2, 2), c, hidden=hidden).eval())
    return models


def method(slug="fisher_merging", models=None, **options):
    return regbench.create_method(
        slug, backbone=mlp(1, (2, 2), 3, hidden=(4,)), num_classes=3, models=models or pair(), **options
    )


IMAGES = torch.linspace(-2, 2, 24).view(6, 1, 2, 2)
BATCH = (IMAGES, torch.tensor([0, 1, 2, 0, 1, 2]))


def test_the_head_stays_the_targets_unless_it_is_merged():
    target, donor = pair()
    average = method("average_merging", coefficients=[0.5, 0.5])
    average.merge()
    own = average.backbone.network
    assert torch.equal(own.fc.weight, target.network.fc.weight)
    body = (target.network.layer1[0].weight + donor.network.layer1[0].weight) / 2
    torch.testing.assert_close(own.layer1[0].weight, body)
    whole = method("average_merging", coefficients=[0.5, 0.5], merge_head=True)
    whole.merge()
    head = (target.network.fc.weight + donor.network.fc.weight) / 2
    torch.testing.assert_close(whole.backbone.network.fc.weight, head)


def test_models_of_other_classes_are_merged_without_their_heads():
    models = pair(classes=(3, 7))
    merging = method(models=models, coefficients=[0.0, 1.0])
    merging.merge([[BATCH], [BATCH]])
    own, (target, donor) = merging.backbone.network, models
    torch.testing.assert_close(own.layer1[0].weight, donor.network.layer1[0].weight)
    assert torch.equal(own.fc.weight, target.network.fc.weight)
    with pytest.raises(UserError, match=r"model_2 is of another architecture .*merge_head=false"):
        method(models=models, merge_head=True)


def test_the_search_takes_the_first_of_the_best_on_validation():
    """The classifiers' biases decide: alone the models say 0 and 1 to everything, their mean says 1."""
    models = pair()
    for model, bias in zip(models, ([90.0, 0.0, 0.0], [0.0, 180.0, 0.0]), strict=True):
        model.network.fc.bias.data = torch.tensor(bias)
    merging = method("average_merging", models=models, merge_head=True, search=3)
    assert merging.merge(validation=[(IMAGES, torch.ones(6).long())]) == 1.0
    assert merging.coefficients.tolist() == [0.5, 0.5]
    assert merging.backbone.network.fc.bias.tolist() == [45, 90, 0]


def test_batch_norms_statistics_are_averaged_or_taken_anew():
    models = [small_cnn(1, (8, 8), 3, width=2).eval() for _ in range(2)]
    for i, model in enumerate(models):
        model.network.layer1[1].running_mean.fill_(i)
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    options = {"backbone": small_cnn(1, (8, 8), 3, width=2), "num_classes": 3, "models": models}
    averaged = regbench.create_method(
        "average_merging", coefficients=[0.25, 0.75], batchnorm_images=0, **options
    )
    averaged.merge(statistics=[(images, None)])
    assert averaged.backbone.network.layer1[1].running_mean.tolist() == [0.75, 0.75]
    anew = regbench.create_method("average_merging", coefficients=[0.25, 0.75], **options)
    anew.merge(statistics=[(images, None)])
    with torch.no_grad():
        seen = anew.backbone.network.layer1[0](images).mean((0, 2, 3))
    torch.testing.assert_close(anew.backbone.network.layer1[1].running_mean, seen)
    assert not anew.backbone.training


def test_the_ensemble_predicts_the_mean_of_the_distributions():
    models = pair()
    ensemble = method("output_ensemble", models=models).eval()
    with torch.no_grad():
        p = ensemble(IMAGES).softmax(1)
        expected = (models[0](IMAGES).softmax(1) + models[1](IMAGES).softmax(1)) / 2
    torch.testing.assert_close(p, expected)


# -- fine-tuning -----------------------------------------------------------------------------------------------------


def tuned(start: Backbone, classes: int = 3, **options):
    torch.manual_seed(5)
    return regbench.create_method(
        "fine_tune",
        backbone=mlp(1, (2, 2), classes, hidden=(4,)),
        num_classes=classes,
        start=start,
        **options,
    )


def test_fine_tuning_starts_from_the_body_and_the_head_that_fits():
    start = pair()[0]
    kept = tuned(start).backbone.network
    assert torch.equal(kept.fc.weight, start.network.fc.weight)
    assert kept.fc.weight.requires_grad
    torch.manual_seed(5)
    fresh = mlp(1, (2, 2), 3, hidden=(4,)).network
    new = tuned(start, head="replace").backbone.network
    assert torch.equal(new.fc.weight, fresh.fc.weight)
    assert torch.equal(new.layer1[0].weight, start.network.layer1[0].weight)
    assert tuned(start, classes=2).backbone.network.fc.weight.shape == (2, 4)
    with pytest.raises(UserError, match="head=keep"):
        tuned(start, classes=2, head="keep")
    with pytest.raises(UserError, match=r"artifacts\.start is a checkpoint of another model"):
        tuned(mlp(1, (2, 2), 3, hidden=(9,)))


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficients": [0.5, 0.6]}, "with the sum 1"),
        ({"coefficients": [1.5, -0.5]}, "at least 0"),
        ({"coefficients": [1.0]}, "one for each of the 2 models"),
        ({"search": 1}, r"regularizer\.search=1"),
        ({"batchnorm_images": -1}, "batchnorm_images"),
        ({"fisher": "exakt"}, "Did you mean exact"),
        ({"images": "owns"}, "Did you mean own"),
        ({"floor": -1.0}, "floor"),
        ({"draws": 0}, "draws"),
        ({"models": pair()[:1]}, "two models or more"),
        ({"models": [*pair()[:1], mlp(1, (2, 2), 3, hidden=(5,))]}, "model_2 is of another architecture"),
        ({"models": [*pair()[:1], mlp(1, (2, 2), 3, hidden=(4, 4))]}, "model_2 is of another architecture"),
        ({"models": pair(classes=(7, 3))}, "model_1, the target's"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        method(**options)


def test_a_search_needs_validation_images():
    with pytest.raises(UserError, match="chooses its coefficients on validation images"):
        method().merge([[BATCH], [BATCH]])


def test_a_fisher_without_any_gradient_is_refused():
    """Equal logits' gradients do not vanish, those of a network that is sure beyond float32 do."""
    models = pair()
    models[1].network.fc.bias.data = torch.tensor([1e4, 0.0, 0.0])
    with pytest.raises(UserError, match="Fisher information of model_2 has the norm 0"):
        method(models=models, coefficients=[0.5, 0.5]).merge([[BATCH], [BATCH]])


def with_origin(network: Backbone, init: int, lineage=()) -> Backbone:
    config = {"backbone": {"name": "mlp"}, "seed": 0, "seeds": {"init": init}}
    network.origin = Origin(config, tuple(lineage))
    return network


def test_models_need_one_start():
    first, second = pair()
    method(models=[with_origin(first, 0), with_origin(second, 0)])
    with pytest.raises(UserError, match="started from different weights"):
        method(models=[with_origin(first, 0), with_origin(second, 1)])
    method(models=[with_origin(first, 0, ["p"]), with_origin(second, 1, ["p", "q"])])
    # The same initial weights, but trained to different networks before they were fine-tuned.
    with pytest.raises(UserError, match="started from different weights"):
        method(models=[with_origin(first, 0, ["p"]), with_origin(second, 0, ["q"])])


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A network for digits, two fine-tunings of it, and one that was trained apart from another start."""
    root = tmp_path_factory.mktemp("merging")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        patch.chdir(root)
        assert cli.train(["regularizer=none", "seeds.init=1", "hydra.run.dir=apart", *SMALL]) == 0
        for order in (1, 2):
            start = (
                "artifacts.start.overrides=['regularizer=none','dataset=same','backbone=same','trainer=same']"
            )
            overrides = [
                "regularizer=fine_tune",
                start,
                f"seeds.order={order}",
                f"hydra.run.dir=tuned{order}",
            ]
            assert cli.train([*overrides, *SMALL]) == 0
    return root


def test_merging_runs_by_the_command_line(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    arguments = ["runs=[tuned1,tuned2]", "regularizer.merge_head=true", "regularizer.examples=50"]
    assert cli.main(["merge", *arguments, "method=fisher", "out=fisher"]) == 0
    shown = capsys.readouterr().out
    assert "coefficients" in shown
    assert "val/accuracy_model_2" in shown
    merged, models = (
        weights(folders / "fisher"),
        [weights(folders / f"tuned{i}", "best.ckpt") for i in (1, 2)],
    )
    name = "backbone.network.layer1.0.weight"
    between = (merged[name] >= torch.minimum(models[0][name], models[1][name]) - 1e-6) & (
        merged[name] <= torch.maximum(models[0][name], models[1][name]) + 1e-6
    )
    assert between.all()
    result = read_result(folders / "fisher")
    assert len(history(folders / "fisher")) == 2  # the merged network's validation, and the test
    assert result["metrics"]["test/accuracy"] > 0.5
    exported = torch.load(folders / "fisher" / "model.pt", weights_only=True)
    assert torch.equal(exported["layer1.0.weight"], merged[name])
    # Given coefficients need no search, and a merged network can be merged again.
    again = ["runs=[fisher,tuned1]", "method=average", "regularizer.coefficients=[0.0,1.0]", "out=again"]
    assert cli.main(["merge", *again, "regularizer.merge_head=true"]) == 0
    torch.testing.assert_close(weights(folders / "again")[name], models[0][name])
    assert cli.main(["merge", "runs=[tuned1,tuned2]", "method=ensemble", "out=ensemble"]) == 0
    assert "members.1.fc.weight" in torch.load(folders / "ensemble" / "model.pt", weights_only=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=[tuned1,apart]"], "started from different weights"),
        (["runs=[tuned1]"], "two runs or more"),
        (["runs=[tuned1,nowhere]"], "nowhere is no folder of a finished run"),
        (["runs=[tuned1,tuned2]", "method=fischer"], "Did you mean fisher"),
        (["runs=[tuned1,tuned2]", "out=tuned1"], "is there already"),
        (["runs=[tuned1,tuned2]", "dataset=digits"], "data and network are those of the first run"),
        (["runs=[tuned1,tuned2]", "dataset.eval_batchsize=5"], "dataset.eval_batchsize=5 can't be set"),
    ],
)
def test_mistakes_in_merging_runs(folders, monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(folders)
    assert cli.main(["merge", f"out={tmp_path}/new", *arguments]) == cli.USAGE_ERROR
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("names", [(), ("model_one",), ("model_1", "teacher"), ("start",)])
def test_artifacts_that_are_not_the_methods(names):
    with pytest.raises(UserError, match=r"fisher_merging starts from model_\*, but artifacts names"):
        check_roles({"fisher_merging": ("model_*",)}, names)


def test_artifacts_of_a_numbered_role():
    check_roles(
        {"fisher_merging": ("model_*",), "tf_kd_self": ("teacher",)}, ["model_1", "model_2", "teacher"]
    )
