"""ERASE: coding rates, propagation, semantic labels and encoder against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from regbench.backbones import build
from regbench.backbones.graph import erase_encoder, gcn, unit_rows
from regbench.errors import UserError
from regbench.functional.coding_rate import class_coding_rate, coding_rate
from regbench.functional.label_propagation import adjacency, one_hot, propagate
from regbench.measures.nodes import mean_class_cosine
from regbench.regularizers.node_classification.base import Graph
from regbench.regularizers.node_classification.erase import (
    ABSENT,
    ERASE,
    fit_probe,
    prototypes,
    rate_reduction_loss,
    semantic_scores,
)
from regbench.regularizers.node_classification.label_propagation import LabelPropagation
from regbench.regularizers.node_classification.node_ce import NodeCrossEntropy
from support import history, read_result

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
AXES = torch.eye(2, dtype=torch.float64).repeat(2, 1)  # e1, e2, e1, e2


def toy(labels=(0, 1, 0), train=(True, True, True), edges=PATH, features=4) -> Graph:
    label = torch.tensor(labels)
    mask = torch.tensor(train)
    x = torch.rand(len(labels), features, generator=torch.Generator().manual_seed(0))
    return Graph(x, edges, label.where(mask, torch.tensor(-1)), mask)


def erase(graph: Graph, classes: int = 2, **options) -> ERASE:
    torch.manual_seed(0)
    encoder = erase_encoder(graph.features.shape[1], layer="gcn", hidden=8, codes=6)
    return ERASE(encoder, classes, **options)


# -- coding rates ----------------------------------------------------------------------------------------------------


def test_rates_of_two_axes():
    right, wrong = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    assert coding_rate(AXES, 0.5).item() == pytest.approx(1.098612, abs=1e-6)
    assert class_coding_rate(AXES, right, 0.5).item() == pytest.approx(0.804719, abs=1e-6)
    loss, whole, parts = rate_reduction_loss(AXES, right, 0.5, 2.0)
    assert (whole - parts).item() == pytest.approx(0.293893, abs=1e-6)
    assert loss.item() == pytest.approx(-1.392506, abs=1e-6)
    loss, whole, parts = rate_reduction_loss(AXES, wrong, 0.5, 2.0)
    assert (whole - parts).item() == pytest.approx(0, abs=1e-6)
    assert loss.item() == pytest.approx(-1.098612, abs=1e-6)
    same = AXES[[0, 0, 0, 0]]
    assert coding_rate(same, 0.5).item() == pytest.approx(0.804719, abs=1e-6)
    assert class_coding_rate(same, right, 0.5).item() == pytest.approx(0.804719, abs=1e-6)


def test_rates_of_classes_on_their_own_axes():
    """C balanced classes collapsed to axes: R = C/2 log(1 + p / (C eps)), Rc = 1/2 log(1 + p / eps)."""
    label = torch.arange(7).repeat(3)
    z = torch.eye(512, dtype=torch.float64)[label]
    assert coding_rate(z, 0.05).item() == pytest.approx(25.510905, abs=1e-6)
    assert class_coding_rate(z, label, 0.05).item() == pytest.approx(4.617077, abs=1e-6)


def test_rates_of_random_rows():
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 3)))
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    loss, whole, parts = rate_reduction_loss(z, label, 0.05, 2.0)
    assert whole.item() == pytest.approx(4.625081, abs=1e-6)
    assert parts.item() == pytest.approx(3.182260, abs=1e-6)
    assert loss.item() == pytest.approx(-6.067903, abs=1e-6)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rate_reduction_loss(x, label, 0.05, 2.0)[0], z)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_the_smaller_gram_side_gives_the_same(shape):
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n, p = shape
    whole = 0.5 * torch.linalg.slogdet(torch.eye(p) + p / (n * 0.3) * z.T @ z)[1]
    assert abs((coding_rate(z, 0.3) - whole).item()) < 1e-12


def test_rates_do_not_see_rotations_orders_or_empty_classes():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, 5, dtype=torch.float64, generator=generator)
    label = torch.tensor([0, 3, 0, 1, 1, 3, 3, 0])  # class 2 is empty
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator))[0]
    order = torch.randperm(8, generator=generator)
    rate = class_coding_rate(z, label, 0.1)
    torch.testing.assert_close(class_coding_rate(z @ turn, label, 0.1), rate)
    torch.testing.assert_close(class_coding_rate(z[order], label[order], 0.1), rate)
    by_hand = sum(
        n / 8 * 0.5 * torch.logdet(torch.eye(5) + 5 / (n * 0.1) * z[label == c].T @ z[label == c])
        for c, n in ((0, 3), (1, 2), (3, 3))
    )
    torch.testing.assert_close(rate, by_hand, rtol=1e-7, atol=1e-7)


def test_scale_of_the_whole_rate_on_cora():
    """p / (N eps) = 512 / (2708 · 0.05) = 3.781388: the rate of one entry of 1 in a row is 1/2 log(1 + that)."""
    z = torch.zeros(2708, 512)
    z[0, 0] = 1
    assert coding_rate(z, 0.05).item() == pytest.approx(0.5 * math.log(1 + 3.781388), abs=1e-6)


# -- propagation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        ("column", [[0.6, 0.2], [0.8, 0.6], [0.6, 0.2]]),
        ("row", [[0.6, 0.4], [0.4, 0.6], [0.6, 0.4]]),
        ("symmetric", [[0.6, 0.282843], [0.565685, 0.6], [0.6, 0.282843]]),
    ],
)
def test_a_step_on_a_path(normalisation, expected):
    y = one_hot(torch.tensor([0, 1, 0]), 2)
    out = propagate(y, adjacency(PATH, 3, normalisation), 0.6, 1)
    torch.testing.assert_close(out, torch.tensor(expected), atol=1e-6, rtol=0)


def test_two_steps_flip_the_middle_of_a_path():
    graph = toy()
    method = erase(graph, steps=2, alpha=0.6)
    _, denoised = method.prepare(graph)
    torch.testing.assert_close(denoised, torch.tensor([[0.52, 0.24], [0.96, 0.52], [0.52, 0.24]]))
    assert denoised.argmax(1).tolist() == [0, 0, 0]


def test_restart_is_pygs_label_propagation():
    from torch_geometric.nn import LabelPropagation as Propagation

    y = one_hot(torch.tensor([0, 1, -1]), 2)
    ours = propagate(y, adjacency(PATH, 3, "symmetric"), 0.6, 7, restart=True, clamp=True)
    torch.testing.assert_close(ours, Propagation(num_layers=7, alpha=0.4)(y, PATH))


def test_denoising_knows_only_edges_between_training_nodes():
    """A training node without such an edge keeps alpha^T of its label: what `shrink` does to all."""
    graph = toy(train=(True, False, True))
    expected = 0.6**5 * torch.tensor([[1.0, 0], [0, 0], [1.0, 0]])
    assert pytest.approx(0.07776) == 0.6**5
    for how in ("train", "shrink"):
        torch.testing.assert_close(erase(graph, denoise=how).prepare(graph)[1], expected)
    assert erase(graph, denoise="all").prepare(graph)[1][1, 0] > 0


@pytest.mark.parametrize("options", [{"steps": 0}, {"alpha": 1.0}, {"denoise": "none"}])
def test_without_propagation_the_labels_stay(options):
    graph = toy()
    torch.testing.assert_close(erase(graph, **options).prepare(graph)[1], one_hot(graph.label, 2))


# -- semantic labels -------------------------------------------------------------------------------------------------


def test_semantic_scores_by_hand():
    """Cosines (.2, .9) of a node with two prototypes, and its label (1, 0)."""
    z = torch.tensor([[1.0, 0, 0]])
    mu = (
        torch.tensor([[0.2, math.sqrt(1 - 0.04), 0], [-0.9, 0, math.sqrt(1 - 0.81)]]) * 3
    )  # |cos|, any length
    label = torch.tensor([[1.0, 0.0]])
    cases = [
        (label, 0.6, "linear", [0.68, 0.36]),
        (label, 0.6, "softmax", [0.579324, 0.420676]),
        (label, 0.4, "linear", [0.52, 0.54]),
        (label, 1.0, "linear", [1.0, 0.0]),
        (0 * label, 0.6, "softmax", [0.430454, 0.569546]),
    ]
    for given, beta, scores, expected in cases:
        out = semantic_scores(given, z, mu, beta, scores)
        torch.testing.assert_close(out, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_rows_of_zeros_have_cosine_zero():
    out = semantic_scores(torch.zeros(1, 2), torch.zeros(1, 3), torch.eye(2, 3), 0.5, "linear")
    assert out.tolist() == [[0, 0]]


def test_prototypes_are_means_and_zero_for_a_class_without_nodes():
    z = torch.tensor([[1.0, 0], [3.0, 0], [0, 2.0]])
    assert prototypes(z, torch.tensor([0, 0, 2]), 3).tolist() == [[2, 0], [0, 0], [0, 2]]


def test_small_labels_can_be_overruled_and_whole_ones_can_not():
    """With beta .6 a label of 1 gives way where a cosine exceeds its own by 1.5, one of .07776 by .117."""
    mu = torch.eye(2)
    z = torch.tensor([[0.5, 0.7]])
    overruled = (z[0, 1] - z[0, 0]) / z.norm()
    assert 0.117 < overruled < 1.5
    for size, winner in ((1.0, 0), (0.07776, 1)):
        scores = semantic_scores(torch.tensor([[size, 0.0]]), z, mu, 0.6, "softmax")
        assert scores.argmax().item() == winner


# -- encoder ---------------------------------------------------------------------------------------------------------


def test_the_encoders_end():
    v = torch.tensor([[3.0, -1, 0, 4], [0, 0, 0, 0]])
    z = unit_rows(v, "l1").relu()
    assert z.tolist() == [[0.375, 0, 0, 0.5], [0, 0, 0, 0]]
    assert z.norm(dim=1).tolist() == [0.625, 0]


def test_the_encoder_by_hand():
    """GCN layers written out: D^(-1/2) (A + I) D^(-1/2) X W + b, with the activations of the released code."""
    torch.manual_seed(0)
    encoder = erase_encoder(4, layer="gcn", hidden=8, codes=6).eval()
    x = toy().features
    loops = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]])
    d = loops.sum(1).rsqrt()
    spread = d[:, None] * loops * d
    first, second = encoder.network.layers
    h = spread @ x @ first.lin.weight.T + first.bias
    h = torch.where(h > 0, h, 0.01 * h)
    h = spread @ (h / h.abs().sum(1, keepdim=True)) @ second.lin.weight.T + second.bias
    expected = (h / h.abs().sum(1, keepdim=True)).clamp(min=0)
    torch.testing.assert_close(encoder(x, PATH), expected)
    assert bool((expected.sum(1) <= 1).all())


def test_counts_of_the_paper_scale_encoder():
    """Cora: 1433·256 + two attention vectors of 256 + 256 biases; 256·512 + two of 512 + 512."""
    config = {"_target_": "regbench.backbones.graph.erase_encoder", "name": "erase_gat"}
    network = build(config, shape=(1433,), num_classes=7)
    first, second = 1433 * 256 + 3 * 256, 256 * 512 + 3 * 512
    assert sum(p.numel() for p in network.parameters()) == first + second
    assert network.codes == 512


# -- the probe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_scikit_learns(classes):
    rng = np.random.default_rng(0)
    z, label = rng.standard_normal((30, 4)), np.arange(30) % classes
    weight, bias = fit_probe(z, label * 2, 2 * classes)  # odd classes are absent
    logits = torch.from_numpy(z @ weight.T + bias)
    expected = LogisticRegression(max_iter=1000).fit(z, label).predict_proba(z)
    np.testing.assert_allclose(logits.softmax(1)[:, ::2].numpy(), expected, atol=1e-9)
    assert bool((logits.softmax(1)[:, 1::2] < 1e-9).all())


def test_the_probe_of_one_class():
    weight, bias = fit_probe(np.zeros((3, 2)), np.array([1, 1, 1]), 3)
    assert bias.tolist() == [ABSENT, 0, ABSENT]
    assert not weight.any()


# -- the method ------------------------------------------------------------------------------------------------------


def test_the_loss_takes_all_nodes_and_no_label_outside_training():
    graph = toy(labels=(0, 1, 1), train=(True, True, False))
    batch = graph._asdict()
    method = erase(graph).eval()
    loss = method.training_loss(batch)
    z = method(graph.features, graph.edges)
    whole = 0.5 * torch.logdet(torch.eye(6).double() + 6 / (3 * 0.05) * z.double().T @ z.double())
    parts = class_coding_rate(z, method.semantic, 0.05)
    torch.testing.assert_close(loss.double(), parts - 2 * whole, rtol=1e-5, atol=1e-5)
    assert batch["label"].tolist() == [0, 1, -1]
    assert len(method.semantic) == 3
    loss.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_a_plain_loop():
    """Two cliques of three nodes, one of six labels wrong: after a few steps the probe predicts the cliques."""
    cliques = [
        (i, j) for base in (0, 3) for i in range(base, base + 3) for j in range(base, base + 3) if i != j
    ]
    edges = torch.tensor(cliques).T
    x = torch.eye(2).repeat_interleave(3, 0) + 0.1
    graph = Graph(x, edges, torch.tensor([0, 0, 1, 1, 1, 1]), torch.ones(6, dtype=torch.bool))
    torch.manual_seed(0)
    method = ERASE(erase_encoder(2, layer="gcn", hidden=8, codes=6, dropout=0.0), 2)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    for _ in range(30):
        loss = method.training_loss(graph._asdict())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.fit(graph)
    assert method.semantic.tolist() == [0, 0, 0, 1, 1, 1]
    assert method.eval().predict(graph).argmax(1).tolist() == [0, 0, 0, 1, 1, 1]


def test_fitting_before_a_step_is_refused():
    with pytest.raises(UserError, match="call training_loss"):
        erase(toy()).fit(toy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"beta": -0.1}, "beta=-0.1"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"steps": -1}, "steps=-1"),
        ({"denoise": "al"}, "Did you mean all"),
        ({"scores": "soft"}, "scores"),
        ({"normalisation": "rows"}, "Did you mean row"),
        ({"labels_from": "test"}, "labels_from"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        erase(toy(), **options)


def test_networks_that_do_not_fit():
    with pytest.raises(UserError, match="gives codes"):
        ERASE(gcn(4, 2), 2)
    with pytest.raises(UserError, match="gives logits"):
        NodeCrossEntropy(erase_encoder(4, layer="gcn"), 2)
    with pytest.raises(UserError, match="equal parts"):
        erase_encoder(4, hidden=10, heads=4)
    with pytest.raises(UserError, match="Did you mean gat"):
        erase_encoder(4, layer="gta")
    with pytest.raises(UserError, match="last_norm"):
        erase_encoder(4, last_norm="l3")
    with pytest.raises(UserError, match="for graphs gcn, gat or erase_gat"):
        build({"_target_": "regbench.backbones.small.mlp", "name": "mlp"}, shape=(4,), num_classes=2)
    with pytest.raises(UserError, match="with 1x8x8 images"):
        build({"_target_": "regbench.backbones.graph.gcn", "name": "gcn"}, shape=(1, 8, 8), num_classes=2)


# -- the family ------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, features, edges):
        return self.fc(features)


def test_cross_entropy_is_of_the_training_nodes():
    graph = toy(labels=(0, 1, 0), train=(True, True, False))
    network = Linear()
    method = NodeCrossEntropy(network, 2)
    expected = F.cross_entropy(network.fc(graph.features)[:2], torch.tensor([0, 1]))
    torch.testing.assert_close(method.training_loss(graph._asdict()), expected)
    with pytest.raises(UserError, match="train_mask"):
        method.training_loss({"features": graph.features, "edges": PATH, "label": graph.label})


def test_label_propagation_by_hand():
    """A path 0 – 1 – 2 with a label at each end: one step at .4 gives the middle .4/√2 of both, the ends .6."""
    graph = toy(labels=(0, 0, 1), train=(True, False, True))
    method = LabelPropagation(gcn(4, 2), 2, alpha=0.4, steps=1)
    p = method.predict(graph).exp()
    torch.testing.assert_close(p[1], torch.tensor([0.5, 0.5]))
    assert p[0, 0] > 0.99
    assert p[2, 1] > 0.99
    with pytest.raises(UserError, match="steps=0"):
        LabelPropagation(gcn(4, 2), 2, steps=0)


def test_measures_of_a_run(train):
    """The command line: curves of the mechanism, both test accuracies, and the same numbers when tested again."""
    options = ["regularizer=erase", "backbone.layer=gcn", "backbone.hidden=16", "backbone.codes=8", "dataset.nodes=300",
               "dataset.val_nodes=50", "dataset.test_nodes=100", "dataset.noise.kind=symmetric",
               "dataset.noise.rate=0.4", "trainer.max_epochs=4", "callbacks=[default,nodes]",
               "callbacks.nodes.every=2", "logger=none", "progress=none"]  # fmt: skip
    code, folder = train(*options, "checkpoint.select=last")
    assert code == 0
    result = read_result(folder)
    assert result["data"]["nodes"] == 300
    metrics = result["metrics"]
    assert metrics["test/accuracy"] == pytest.approx(metrics["test/accuracy_last"], abs=1e-6)
    assert 0 <= metrics["test/memorized"] <= 1
    rows = history(folder)[:4]  # the last one is of the test
    names = ("class_cosine", "code_norm", "rate_reduction", "semantic_train", "denoised_train", "wrong_given")
    for name in names:
        assert [bool(row[f"train/{name}"]) for row in rows] == [False, True, False, True]
    assert all(row["train/rate"] and row["train/class_rate"] for row in rows)
    last = folder / "checkpoints" / "last.ckpt"
    _, again = train(*options, "test_only=true", f"ckpt_path={last}", run_dir="again")
    tested = read_result(again)["metrics"]
    assert tested["test/accuracy"] == metrics["test/accuracy"]


def test_mean_class_cosine():
    z = torch.tensor([[1.0, 0], [0, 1.0], [0, 3.0]])
    assert mean_class_cosine(z, torch.tensor([0, 1, 1]), 4).item() == pytest.approx(0, abs=1e-6)
    assert mean_class_cosine(z, torch.tensor([0, 0, 0]), 4).item() == pytest.approx(0, abs=1e-6)
