"""Mixup and neural collapse: the theory's numbers, worked out apart from this code; measures, method and callback."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regbench.data.module import ImageDataModule
from regbench.errors import UserError
from regbench.functional import neural_collapse as nc
from regbench.functional import unconstrained_features as ufm
from regbench.functional.neural_collapse import simplex_etf
from regbench.measures.neural_collapse import NeuralCollapse, Probe, Unmixed, geometry
from regbench.regularizers.classification.mixup_neural_collapse import (
    MixupNeuralCollapse,
    mixup_squared_error,
    same_class_partner,
)
from support import read_result


def etf(k: int, norm: float, dim: int | None = None) -> torch.Tensor:
    return simplex_etf(k, dim or k + 2, norm, torch.Generator().manual_seed(0))


# -- the simplex ETF and the plane of three classes -----------------------------------------------------------


def test_simplex_etf():
    gram = etf(4, 1.5) @ etf(4, 1.5).T
    expected = torch.full((4, 4), -0.75, dtype=torch.float64).fill_diagonal_(2.25)  # −m² / (k − 1), m²
    assert torch.allclose(gram, expected, atol=1e-12)
    assert torch.allclose(etf(4, 1.5).sum(0), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    with pytest.raises(UserError, match="wider backbone"):
        etf(5, 1.0, dim=4)


def test_plane_of_three():
    rows = etf(3, 2.0, dim=7)
    corners = torch.tensor([[math.sqrt(3), -1.0], [-math.sqrt(3), -1.0], [0.0, 2.0]], dtype=torch.float64)
    assert torch.allclose(nc.plane_of_three(rows, rows), corners, atol=1e-10)
    side = math.sqrt(12)  # the true distance, 2 m sqrt(k / (2 (k − 1)))
    assert torch.pdist(corners).tolist() == pytest.approx([side] * 3)
    assert nc.plane_of_three(rows, rows.mean(0).expand(5, -1)).abs().max() < 1e-12
    off_plane = torch.linalg.svd(rows).Vh[-1]  # orthogonal to all three rows
    assert nc.plane_of_three(rows, rows + 9 * off_plane).allclose(corners, atol=1e-10)


# -- the unconstrained features model -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lam", "z", "p", "norm"),
    [
        (1.0, [3.0255831, -1.0085277, -1.0085277, -1.0085277], [0.9495736], 2.0170554),
        (0.9, [2.3889066, 0.2025825, -1.2957446, -1.2957446], [0.8601849, 0.0966236], 1.7422038),
        (0.7, [1.8763482, 1.0166175, -1.4464828, -1.4464828], [0.6687275, 0.2830564], 1.7067336),
        (0.5, [1.4794701, 1.4794701, -1.4794701, -1.4794701], [0.4753422, 0.4753422, 0.0246578], 1.7083449),
    ],
)
def test_optimum_by_hand(lam, z, p, norm):
    """k = 4, m = 1.5, μ = 0.05, so c = 60."""
    target = ufm.mixed_target(4, lam)
    found = ufm.optimal_logits(target, ufm.scale_constant(4, 1.5, 0.05))
    assert found == pytest.approx(z, abs=1e-6)
    assert torch.tensor(found).softmax(0)[: len(p)].tolist() == pytest.approx(p, abs=1e-6)
    assert ufm.feature_norm(target, 1.5, 0.05) == pytest.approx(norm, abs=1e-6)
    weight = etf(4, 1.5).numpy()
    h = ufm.features(weight, target, 0.05)
    assert np.linalg.norm(h) == pytest.approx(norm, abs=1e-6)
    assert weight @ h == pytest.approx(found, abs=1e-9)
    cosines = weight @ h / 1.5 / np.linalg.norm(h)
    if lam == 1:
        assert cosines[0] == pytest.approx(1)
    if lam == 0.5:
        assert cosines[:2] == pytest.approx([1 / math.sqrt(3)] * 2)
    swapped = ufm.features(weight, ufm.mixed_target(4, 1 - lam, 1, 0), 0.05)
    assert swapped == pytest.approx(h, abs=1e-12)


@pytest.mark.parametrize(
    ("k", "norm", "decay", "same", "mixed"),
    [
        (10, 3.0, 0.01, 2.1678343, {0.9: 2.2848, 0.7: 2.3851, 0.5: 2.4078}),  # above the same-class norm
        (3, 1.0, 0.1, 1.7932363, {0.9: 1.4796, 0.7: 1.2351, 0.5: 1.1789}),  # below it
    ],
)
def test_norm_may_rise_or_fall_but_is_above_the_chord(k, norm, decay, same, mixed):
    assert ufm.feature_norm(ufm.mixed_target(k, 1.0), norm, decay) == pytest.approx(same, abs=1e-6)
    for lam, expected in mixed.items():
        assert ufm.feature_norm(ufm.mixed_target(k, lam), norm, decay) == pytest.approx(expected, abs=1e-4)
    assert mixed[0.5] > same * math.sqrt((1 - 1 / (k - 1)) / 2)


@pytest.mark.parametrize(("k", "decay"), [(3, 0.1), (4, 0.05), (10, 0.01)])
def test_descent_without_the_theory_finds_the_same_features(k, decay):
    weight = etf(k, 1.5).numpy()
    targets = np.stack([ufm.mixed_target(k, lam) for lam in np.linspace(0, 1, 11)])
    theory = np.stack([ufm.features(weight, target, decay) for target in targets])
    assert ufm.descend_features(weight, targets, decay) == pytest.approx(theory, abs=1e-6)


@pytest.mark.parametrize("k", [3, 4])
def test_a_free_classifier_becomes_an_etf(k):
    pairs = [(i, j) for i in range(k) for j in range(k)]
    targets = np.stack(
        [ufm.mixed_target(k, lam, *pair) for pair in pairs for lam in (0.0, 0.25, 0.5, 0.75, 1.0)]
    )
    weight, found = ufm.descend_both(targets, k + 1, 0.01, 0.01)
    assert nc.etf_error(torch.tensor(weight)).item() < 1e-5
    theory = np.stack([ufm.features(weight, target, 0.01) for target in targets])
    assert found == pytest.approx(theory, abs=1e-4)


def test_squared_error_lies_on_the_chord():
    weight = etf(4, 1.5).numpy()
    h = {lam: ufm.features_squared_error(weight, ufm.mixed_target(4, lam), 0.05) for lam in (1.0, 0.3, 0.0)}
    assert np.linalg.norm(h[1.0]) == pytest.approx(1.5 / 3.05)
    assert h[0.3] == pytest.approx(0.3 * h[1.0] + 0.7 * h[0.0], abs=1e-14)
    gradient = weight.T @ (weight @ h[0.3] - ufm.mixed_target(4, 0.3)) + 0.05 * h[0.3]
    assert gradient == pytest.approx(0, abs=1e-14)


def test_fit_scale_finds_the_constant_it_was_made_with():
    targets = np.stack([ufm.mixed_target(5, lam) for lam in (0.0, 0.25, 0.5, 0.75, 1.0)])
    logits = np.stack([ufm.optimal_logits(target, 60.0) for target in targets])
    distance, c = ufm.fit_scale(logits + 7.0, targets, np.arange(5))  # a common shift does not matter
    assert distance == pytest.approx(0, abs=1e-4)
    assert c == pytest.approx(60, rel=1e-3)
    assert ufm.fit_scale(-logits, targets, np.arange(5))[0] > 0.9


# -- measures -------------------------------------------------------------------------------------------------


def test_the_four_measures_by_hand():
    # two classes in the plane, means (2, 0) and (−2, 0): between = diag(4, 0); deviations ±1 along x, ±1 along y
    h = torch.tensor([[3.0, 0.0], [1.0, 0.0], [-2.0, 1.0], [-2.0, -1.0]], dtype=torch.float64)
    label = torch.tensor([0, 0, 1, 1])
    means = nc.class_means(h, label, 2)
    assert means.tolist() == [[2, 0], [-2, 0]]
    assert nc.relative_spread(h, label, 2).item() == pytest.approx((0.5 + 0.5) / 4)
    assert nc.within_class_variability(h, label, 2).item() == pytest.approx(
        0.5 / 4 / 2
    )  # y is outside the span
    assert nc.self_duality(means, means + 5).item() == pytest.approx(0, abs=1e-12)
    assert nc.self_duality(means, -means).item() == pytest.approx(2)
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    assert nc.nearest_mean_disagreement(h, logits, means).item() == 0.25
    assert nc.etf_error(etf(5, 0.3) + 4).item() == pytest.approx(0, abs=1e-12)
    # three points in a row, −1, 0, 1: G = [[1, 0, −1], [0, 0, 0], [−1, 0, 1]], ‖G‖ = 2, against (I − 1/3) / √2
    assert nc.etf_error(torch.tensor([[-1.0], [0.0], [1.0]])).item() == pytest.approx(
        math.sqrt(2 - 2 * (2 * 2 / 3 + 2 / 3) / (2 * math.sqrt(2)))
    )


def ideal_probe(feature_of, k: int = 4, n: int = 3) -> tuple[Probe, Unmixed, torch.Tensor]:
    """Features that `feature_of(target)` makes, without any noise."""
    weight = etf(k, 1.5)
    lam = torch.linspace(0, 1, 11, dtype=torch.float64)
    place = torch.arange(3).repeat_interleave(n)
    pure = torch.stack([torch.tensor(feature_of(ufm.mixed_target(k, 1.0, c))) for c in range(k)])
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])[place].tolist()
    different = torch.stack(
        [
            torch.stack([torch.tensor(feature_of(ufm.mixed_target(k, x, a, b))) for a, b in pairs])
            for x in lam.tolist()
        ]
    )
    probe = Probe(
        [0, 1, 2], lam, pure[place].expand(11, -1, -1), place, different, place, different @ weight.T
    )
    return probe, Unmixed(pure, pure @ weight.T, torch.arange(k)), weight


def test_geometry_of_the_optimum():
    weight = etf(4, 1.5).numpy()
    values = geometry(*ideal_probe(lambda y: ufm.features(weight, y, 0.05)))
    assert values["align_same"] == pytest.approx(1)
    assert values["norm_over_chord"] == pytest.approx(1.7083449 / 1.1645, abs=1e-4)
    assert values["norm_over_same"] == pytest.approx(1.7083449 / 2.0170554, abs=1e-6)
    assert values["ufm_c"] == pytest.approx(60, rel=1e-3)
    for name in ("same_spread", "nc1", "nc2", "nc2_weight", "nc3", "nc4", "ufm_distance"):
        assert values[name] == pytest.approx(0, abs=1e-4), name
    assert values["chord_residual"] > 0.1
    straight = geometry(*ideal_probe(lambda y: ufm.features_squared_error(weight, y, 0.05)))
    assert straight["chord_residual"] == pytest.approx(0, abs=1e-12)
    assert straight["norm_over_chord"] == pytest.approx(1)
    # A chord is the model's limit for small c (z = c (y − 1/k)), so it is near to the model: read it with ufm_c.
    assert straight["ufm_distance"] > 0.02
    assert straight["ufm_c"] < 2


# -- the method -----------------------------------------------------------------------------------------------


def network(**options) -> MixupNeuralCollapse:
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5)
    )
    return MixupNeuralCollapse(backbone, 5, **options)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 1, 8, 8, generator=generator), torch.randint(5, (40,), generator=generator)


def test_losses():
    z, a, b = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([0]), torch.tensor([1])
    # e_a: (1 + 1 + 0 + 1) / 4 = 0.75, e_b: (4 + 0 + 0 + 1) / 4 = 1.25
    assert mixup_squared_error(z, a, b, 1.0).item() == pytest.approx(0.75)
    assert mixup_squared_error(z, a, b, 0.7).item() == pytest.approx(0.9)
    image, label = batch()
    erm = network(alpha=0)
    assert erm.training_loss((image, label)).item() == pytest.approx(
        F.cross_entropy(erm(image), label).item()
    )


@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("same_class", [False, True])
def test_training_loss_is_the_formula_on_the_mixed_images(loss, same_class):
    image, label = batch()
    method = network(loss=loss, same_class=same_class)
    draw = network(same_class=same_class).mix(image, label)  # the same seed: the same draw
    mixed = draw.lam * image + (1 - draw.lam) * image[draw.partner]  # first the images, then one pass
    target = draw.lam * F.one_hot(label, 5) + (1 - draw.lam) * F.one_hot(label[draw.partner], 5)
    logits = method(mixed)
    found = method.training_loss((image, label))
    if loss == "ce":
        assert found.item() == pytest.approx(F.cross_entropy(logits, target).item(), abs=1e-6)
    else:
        gradient = torch.autograd.grad(found, method.backbone.classifier.weight)[0]
        other = torch.autograd.grad(F.mse_loss(logits, target), method.backbone.classifier.weight)[0]
        assert torch.allclose(gradient, other, atol=1e-6)


def test_partners_of_the_same_class():
    label = torch.tensor([0, 1, 0, 1, 0, 2])
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(6, 6)
    for _ in range(3000):
        partner = same_class_partner(label, generator)
        assert sorted(partner.tolist()) == list(range(6))
        seen[torch.arange(6), partner] += 1 / 3000
    same = label[:, None] == label
    assert torch.allclose(seen, same / same.sum(1, keepdim=True), atol=0.03)  # uniform within each class
    image, label = batch()
    assert label[network(same_class=True).mix(image, label).partner].equal(label)


@pytest.mark.parametrize("head", ["learnt", "etf"])
def test_what_is_fixed_stays(head):
    method = network(head=head, etf_scale=2.0)
    classifier = method.backbone.classifier
    before = classifier.weight.clone()
    optimizer = method.configure_optimizers()
    groups = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert not any(parameter is classifier.bias for parameter in groups)
    assert any(parameter is classifier.weight for parameter in groups) == (head == "learnt")
    method.training_loss(batch()).backward()
    optimizer.step()
    assert not classifier.bias.any()
    assert classifier.weight.equal(before) == (head == "etf")
    if head == "etf":
        assert classifier.weight.norm(dim=1).tolist() == pytest.approx([2.0] * 5, abs=1e-5)
        assert nc.etf_error(classifier.weight.detach()).item() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, "alpha=-1"),
        ({"loss": "mae"}, "loss"),
        ({"head": "etff"}, "Did you mean etf"),
        ({"head": "etf", "etf_scale": 0}, "norm"),
    ],
)
def test_mistakes_stop_at_construction(options, message):
    with pytest.raises(UserError, match=message):
        network(**options)


# -- the callback ---------------------------------------------------------------------------------------------


def run(train, *overrides, **options):
    return train("dataset=digits", "dataset.batch_size=100", "backbone=small_cnn",
                 "backbone.width=8", "trainer.max_epochs=2", "logger=none", "progress=none", "checkpoint.select=last",
                 "accelerator=cpu", *overrides, **options)  # fmt: skip


def test_the_callback_measures_any_method_and_changes_nothing(train):
    measured = "callbacks=[default,neural_collapse]", "callbacks.neural_collapse.epochs=[1]"
    code, folder = run(train, "regularizer=none", *measured, "callbacks.neural_collapse.layers=true")
    assert code == 0
    metrics = read_result(folder)["metrics"]
    assert {"test/align_same", "test/nc1", "test/ufm_distance", "test/chord_residual_layer1"} <= set(metrics)
    # the same weights in the same mode: the curve's last point is the test's value
    header, *rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    curve = [row[header.index("train/chord_residual")] for row in rows]
    assert [float(value) for value in curve if value] == pytest.approx(
        [metrics["test/chord_residual"]], rel=1e-4
    )
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "neural_collapse-epoch-0001.png",
        "neural_collapse-test.png",
    }
    _, plain = run(train, "regularizer=none", run_dir="plain")
    expected = read_result(plain)["metrics"]
    assert {name: metrics[name] for name in expected} == expected
    states = [
        torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (folder, plain)
    ]
    assert all(
        torch.equal(states[0][name], states[1][name]) for name in states[1]
    )  # batch norm's statistics too


def digits() -> ImageDataModule:
    from omegaconf import OmegaConf

    from regbench.composing import compose_config

    node = OmegaConf.to_container(compose_config(["dataset=digits"]).dataset, resolve=True)
    return ImageDataModule(node, {"order": 0})


def test_the_probe_mixes_two_images_with_the_share_that_it_says():
    data = digits()
    classes, probed, every = NeuralCollapse(images=4, classes=[7, 2, 5]).positions(data)
    assert classes == [7, 2, 5]
    assert data.sets.train.labels[probed].tolist() == [[c] * 4 for c in classes]
    assert data.sets.train.labels[every].bincount().tolist() == [4] * 10
    # a linear network: features are the flattened images, so mixtures lie on the chord
    from regbench.backbones.backbone import as_backbone

    linear = as_backbone(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    callback = NeuralCollapse(images=4, classes=[7, 2, 5], shares=5)
    probes, unmixed = callback.collect(linear, data, classes, probed, every, torch.device("cpu"))
    probe = probes[""]
    assert nc.chord_residual(probe.different, probe.lam).item() < 1e-6
    pure = next(iter(callback._loader(data, probed.flatten(), torch.device("cpu"))))["image"].flatten(1)
    assert torch.allclose(probe.different[-1, :4], pure[:4])  # λ = 1: the first class, 7
    assert torch.allclose(probe.different[0, :4], pure[4:8])  # λ = 0: the second, 2
    assert torch.allclose(probe.same[-1], pure)
    assert (probe.same[0] != probe.same[-1]).any(1).all()  # never an image with itself
    assert unmixed.features.shape == (40, 64)
    assert torch.allclose(linear.classifier(unmixed.features), unmixed.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"classes": [1, 1, 2]}, "three different"), ({"shares": 4}, "odd"), ({"images": 1}, "at least 2")],
)
def test_mistakes_of_the_callback(options, message):
    with pytest.raises(UserError, match=message):
        NeuralCollapse(**options)


def test_a_class_that_there_is_not():
    with pytest.raises(UserError, match="this set has 10"):
        NeuralCollapse(classes=[0, 1, 10]).positions(digits())
