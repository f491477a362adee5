"""Nested dropout and Co-teaching: the maths by hand, gradients behind a mask, choice of K, both stages end to end."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.backbones.backbone import Backbone
from regbench.backbones.resnet import resnet
from regbench.backbones.small import mlp, small_cnn
from regbench.errors import UserError
from regbench.export import export
from regbench.functional import nested
from regbench.functional.co_teaching import exchanged_loss, forget_rate, small_loss
from regbench.measures.feature_usage import effective_rank
from regbench.regularizers.noisy_labels.base import fresh_copy
from regbench.regularizers.noisy_labels.co_teaching import CoTeaching
from regbench.regularizers.noisy_labels.nested_co_teaching import NestedCoTeaching
from regbench.regularizers.noisy_labels.nested_dropout import NestedDropout
from regbench.seeding import generator
from regbench.training import load_network
from support import QUICK, history, read_result, weights

NOISY = [*QUICK, "dataset.noise.kind=symmetric", "dataset.noise.rate=0.4", "backbone.hidden=[16]"]
FEATURES = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
WEIGHT = torch.tensor([[1.0, 0.5, -1.0, 0.0], [0.0, 1.0, 2.0, -1.0]])  # (C, d)
LOGITS = [[1.0, 0.0], [0.0, -2.0], [-3.0, 4.0], [-3.0, 3.5]]  # for K = 1 … 4


@pytest.mark.parametrize(
    ("spread", "features", "first", "mean", "quantiles", "tails"),
    [
        (10.0, 512, 0.118395, 5.9693, {0.5: 5, 0.9: 12, 0.99: 18}, {2: 0.881605, 5: 0.555514, 10: 0.189434}),
        (100.0, 512, 0.011347, 56.7381, {0.5: 48, 0.9: 117, 0.99: 182}, {50: 0.486647, 100: 0.160286}),
        (100.0, 4096, 0.011347, 56.7381, {0.5: 48, 0.9: 117, 0.99: 182}, {50: 0.486647, 100: 0.160286}),
    ],
)  # fmt: skip
def test_the_distribution_of_k(spread, features, first, mean, quantiles, tails):
    p = nested.width_probabilities(features, spread)
    k = torch.arange(1, features + 1)
    assert p.sum().item() == pytest.approx(1)
    assert p[0].item() == pytest.approx(first, abs=1e-6)
    assert (p * k).sum().item() == pytest.approx(mean, abs=1e-4)
    for share, expected in quantiles.items():
        assert 1 + int((p.cumsum(0) < share).sum()) == expected
    for j, expected in tails.items():
        assert p[j - 1 :].sum().item() == pytest.approx(expected, abs=1e-6)


def test_k_is_drawn_from_it():
    p, stream = nested.width_probabilities(4, 2.0), generator(0, "nested")
    drawn = torch.tensor([nested.draw_width(p, stream) for _ in range(4000)])
    found = drawn.bincount(minlength=5)[1:] / 4000
    assert torch.allclose(found.double(), p, atol=0.03)


def test_logits_of_every_k_by_hand():
    assert nested.logits_at_each_width(FEATURES, WEIGHT, None)[0].tolist() == LOGITS
    shifted = nested.logits_at_each_width(FEATURES, WEIGHT, torch.tensor([0.0, 1.0]))[0]
    assert shifted.tolist() == [[a, b + 1] for a, b in LOGITS]
    right = nested.right_at_each_width([FEATURES], [(WEIGHT, None)], torch.tensor([0]))
    assert right.tolist() == [1, 1, 0, 0]
    (mean,) = nested.chunked_logits([FEATURES, -FEATURES], [(WEIGHT, None), (WEIGHT, None)])
    assert not mean.any()


def test_chunks_give_what_one_pass_gives(monkeypatch):
    torch.manual_seed(0)
    features, weight, label = torch.randn(7, 4), torch.randn(3, 4), torch.randint(3, (7,))
    whole = nested.right_at_each_width([features], [(weight, None)], label)
    monkeypatch.setattr(nested, "CHUNK", 24)  # two rows
    assert len(list(nested.chunked_logits([features], [(weight, None)]))) == 4
    assert nested.right_at_each_width([features], [(weight, None)], label).equal(whole)


def test_a_small_k_is_preferred():
    """.9000 at K = 1 against .9005 at K = 101, whose penalty is .0010."""
    accuracy = torch.full((101,), 0.5)
    accuracy[0], accuracy[100] = 0.9, 0.9005
    assert nested.choose_width(accuracy, 1e-5)[0] == 1
    assert nested.choose_width(accuracy, 0.0)[0] == 101


def test_theorem_1():
    """Risk = entropy + bias + variance for q_1 = (.9, .1), q_2 = (.6, .4), each with probability 1/2, p = (.8, .2)."""
    q, p = torch.tensor([[0.9, 0.1], [0.6, 0.4]], dtype=torch.float64), [0.8, 0.2]
    variance = nested.mask_variance(q.log()[None], torch.tensor([0.5, 0.5])).item()
    risk = -sum(0.5 * p[y] * math.log(q[k, y]) for k in range(2) for y in range(2))
    centre = [0.786061, 0.213939]  # q~
    entropy = -sum(a * math.log(a) for a in p)
    bias = sum(a * math.log(a / b) for a, b in zip(p, centre, strict=True))
    assert (risk, entropy) == pytest.approx((0.568362, 0.500402), abs=1e-6)
    assert variance == pytest.approx(0.067372, abs=1e-6)
    assert risk == pytest.approx(entropy + bias + variance, abs=2e-6)


class Given:
    """Stands in for a method: gives k."""

    k = 3

    def draw(self) -> int:
        return self.k


def test_a_masked_layer_drops_features_and_their_gradients():
    owner, layer = Given(), nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(WEIGHT)
    mask = nested.add_mask(layer, owner.draw)
    for owner.k in (1, 2, 3, 4):
        features = FEATURES.clone().requires_grad_()
        logits = layer(features)
        assert logits[0].tolist() == LOGITS[owner.k - 1]
        layer.parametrizations.weight.original.grad = None
        (logits * torch.tensor([1.0, 2.0])).sum().backward()
        assert not layer.parametrizations.weight.original.grad[:, owner.k :].any()
        assert not features.grad[:, owner.k :].any()
        assert features.grad[:, : owner.k].all()
    owner.k = 1
    with torch.no_grad():  # what is not training uses K, all four features so far
        assert layer(FEATURES)[0].tolist() == LOGITS[3]
    mask.kept.fill_(2)
    assert layer.eval()(FEATURES)[0].tolist() == LOGITS[1]
    assert nested.unmasked(layer)[0].equal(WEIGHT)
    with pytest.raises(UserError, match="already"):
        nested.add_mask(layer, owner.draw)


def test_small_losses_are_kept():
    assert small_loss(torch.tensor([0.1, 2.0, 0.3, 0.05, 1.0]), 0.4).tolist() == [3, 0, 2]
    halves = {160: (0.2, 128), 224: (0.3, 156), 64: (0.2, 51), 10: (0.9, 1), 1: (0.5, 1)}
    for size, (rate, kept) in halves.items():
        assert len(small_loss(torch.rand(size), rate)) == kept


def test_the_forget_rate_rises():
    assert [forget_rate(e, 0.2, 5) for e in range(6)] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.2])
    assert [forget_rate(e, 0.3, 0) for e in (0, 9)] == [0.3, 0.3]
    assert forget_rate(9, 0.5, 10, exponent=2.0) == 0.25


def test_each_network_learns_what_the_other_chooses():
    """Both logits are (a, 0), so that the losses are log(1 + e^-a) for label 0: each keeps one of two images."""
    first = torch.tensor([[3.0, 0.0], [1.0, 0.0]], requires_grad=True)  # its small loss: image 0
    second = torch.tensor([[0.0, 0.0], [2.0, 0.0]], requires_grad=True)  # its small loss: image 1
    loss = exchanged_loss(first, second, torch.tensor([0, 0]), 0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) + math.log(2), abs=1e-6)
    loss.backward()
    assert not first.grad[0].any()
    assert first.grad[1].any()
    assert second.grad[0].any()
    assert not second.grad[1].any()


class Score(nn.Module):
    """Logits (w · brightness, 0) of images of one pixel."""

    def __init__(self, weight: float):
        super().__init__()
        self.fc = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[weight], [0.0]]))

    def forward(self, image):
        return self.fc(image.flatten(1))


def test_halves_are_exchanged():
    """The first network chooses the brighter of images 0 and 1 for the second, the second the darker of 2 and 3."""
    method = NestedCoTeaching(
        nn.Identity(), 2, first=Score(1.0), second=Score(-1.0), compression="none", forget_rate=0.5
    )
    image = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1)
    loss = method.training_loss((image, torch.zeros(4, dtype=torch.int64)))
    first = math.log(1 + math.exp(-3.0))  # learns image 2, as its logit under the second, −3, is the larger
    second = math.log(1 + math.exp(2.0))  # learns image 1
    assert loss.item() == pytest.approx(first + second, abs=1e-6)
    assert method.training


def test_the_second_network_has_weights_of_its_own_in_the_same_distribution():
    torch.manual_seed(0)
    network = resnet(3, (8, 8), 10, depth=18, width=8)
    other = fresh_copy(network)
    for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        if a.ndim == 4:
            assert not a.equal(b), name
            # He et al.'s: N(0, 2 / fan_out); PyTorch's own would have 1 / (3 fan_in)
            expected = math.sqrt(2 / (a.shape[0] * a.shape[2] * a.shape[3]))
            assert b.std().item() == pytest.approx(expected, rel=0.15), name
    pretrained = fresh_copy(network, pretrained=True)
    assert not pretrained.classifier.weight.equal(network.classifier.weight)
    state = pretrained.state_dict()
    assert all(v.equal(state[n]) for n, v in network.state_dict().items() if ".fc." not in n)


def test_co_teaching_trains_tests_and_checkpoints_both_networks():
    method = CoTeaching(small_cnn(1, (8, 8), 10, width=4), 10, forget_rate=0.5)
    image, label = torch.rand(8, 1, 8, 8), torch.arange(8)
    before = copy.deepcopy(method.state_dict())
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method.training_loss((image, label)).backward()
    optimizer.step()
    method.eval()
    assert torch.allclose(method(image), (method.first(image) + method.second(image)) / 2)
    assert not torch.allclose(method.first(image), method.second(image))
    moved = {name for name, value in method.state_dict().items() if not value.equal(before[name])}
    assert {"backbone.network.first.fc.weight", "backbone.network.second.fc.weight"} <= moved
    plain = method.plain_backbone()
    assert plain(image).equal(method(image))


def test_a_pair_exports_the_mean_of_both(train, tmp_path):
    code, folder = train("regularizer=co_teaching", *NOISY)
    assert code == 0
    state = torch.load(export(folder), weights_only=True)
    assert {name.partition(".")[0] for name in state} == {"first", "second"}
    network = load_network(folder / "checkpoints" / "best.ckpt", (1, 8, 8), 10)
    image = torch.rand(3, 1, 8, 8)
    parts = []
    for which in ("first", "second"):
        alone = mlp(1, (8, 8), 10, hidden=[16]).network
        alone.load_state_dict({n.partition(".")[2]: v for n, v in state.items() if n.startswith(which)})
        parts.append(alone.eval()(image))
    assert torch.allclose(network(image), sum(parts) / 2, atol=1e-6)


def test_nested_dropout_end_to_end(train):
    """K is chosen on validation data, kept in the checkpoint, used at the test, and folded in where it is exported."""
    code, folder = train(
        "regularizer=nested_dropout", "regularizer.spread=4", *NOISY, "trainer.max_epochs=3",
        "callbacks=[default,feature_usage]", "checkpoint.select=last", "dataset.noise.validation=false",
    )  # fmt: skip
    assert code == 0
    state, metrics = weights(folder), read_result(folder)["metrics"]
    layer = "backbone.network.fc.parametrizations.weight"
    kept = int(state[f"{layer}.0.kept"])
    last = [row for row in history(folder) if row["val/width"]][-1]
    assert kept == metrics["test/width"] == float(last["val/width"])
    assert metrics["test/width_share"] == pytest.approx(kept / 16)
    assert float(last["val/score"]) == pytest.approx(
        float(last["val/accuracy"]) - 1e-5 * (kept - 1), abs=1e-6
    )
    assert 1 <= metrics["test/best_k"] <= 16
    assert 1 <= metrics["test/effective_rank"] <= 16
    assert metrics["test/mask_variance"] > 0
    assert (folder / "figures" / "feature_usage.png").stat().st_size > 1000
    plain = torch.load(export(folder), weights_only=True)
    assert plain["fc.weight"][:, :kept].equal(state[f"{layer}.original"][:, :kept])
    assert not plain["fc.weight"][:, kept:].any()
    assert not plain["fc.bias"].any()
    # the second stage gets all columns, and K, back
    first = load_network(folder / "checkpoints" / "last.ckpt", (1, 8, 8), 10)
    method = NestedCoTeaching(nn.Identity(), 10, first=first, second=copy.deepcopy(first), forget_rate=0.5)
    assert nested.unmasked(method.second.classifier)[0].equal(state[f"{layer}.original"])
    assert [int(mask.kept) for mask in method.masks] == [kept, kept]
    assert not method.first.classifier.bias.requires_grad


@pytest.mark.parametrize("compression", ["nested", "dropout", "none"])
def test_second_stage(compression):
    torch.manual_seed(0)
    networks = {role: small_cnn(1, (8, 8), 10, width=4).requires_grad_(False) for role in ("first", "second")}
    method = NestedCoTeaching(nn.Identity(), 10, **networks, compression=compression, spread=2.0).train()
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
    before = copy.deepcopy(method.state_dict())
    method.training_loss((torch.rand(8, 1, 8, 8), torch.arange(8))).backward()
    assert norms
    assert not any(m.training or m.weight.requires_grad for m in norms)
    assert all(v.equal(before[n]) for n, v in method.state_dict().items() if "running" in n)
    for network in networks.values():
        layer = network.classifier
        grad = layer.parametrizations.weight.original.grad if compression == "nested" else layer.weight.grad
        used = grad.abs().sum(0) > 0
        if compression == "nested":
            assert used[: method._width].any()
            assert not used[method._width :].any()


def test_dropout_mode_drops_in_training_only():
    method = NestedDropout(mlp(1, (4, 4), 3, hidden=[512]), 3, mode="dropout", rate=0.5)
    image = torch.rand(2, 1, 4, 4)
    method.train()
    assert not method(image).equal(method(image))
    method.eval()
    assert method(image).equal(method(image))
    plain = method.plain_backbone().train()
    assert plain(image).equal(plain(image))
    assert not method.backbone.classifier.bias.any()
    assert not method.backbone.classifier.bias.requires_grad


def test_one_k_a_batch_whatever_is_stacked_on_top():
    method = NestedDropout(mlp(1, (4, 4), 3, hidden=[64]), 3, spread=5.0, stack=["mixup"])
    drawn = []
    draw = method.draw_width
    object.__setattr__(method, "draw_width", lambda: drawn.append(draw()) or drawn[-1])
    for step in range(1, 4):
        method.zero_grad()
        method.training_loss((torch.rand(6, 1, 4, 4), torch.arange(6) % 3)).backward()
        assert len(drawn) == step
        grad = method.backbone.classifier.parametrizations.weight.original.grad
        assert not grad[:, drawn[-1] :].any()


def test_without_a_choice_k_is_what_has_trained():
    method = NestedDropout(mlp(1, (4, 4), 3, hidden=[512]), 3, spread=10.0)
    assert int(method.masks[0].kept) == 18
    assert nested.trained_width(nested.width_probabilities(4, 100.0)) == 4


def test_effective_rank():
    torch.manual_seed(0)
    direction, amount = torch.randn(1, 5), torch.randn(50, 1)
    assert effective_rank(amount @ direction)[1] == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(torch.zeros(3, 5))[1] == 0.0
    assert effective_rank(torch.ones(3, 1))[1] == 0.0


def test_toy_regression():
    """The page's figure, scaled down: one feature of a nested network fits the line; one of a plain one does not."""
    torch.manual_seed(0)
    x = torch.linspace(0, 10, 64)
    y = x + torch.randn(64)
    x, y, true = ((v - 5)[:, None] / 5 for v in (x, y, x))
    p, stream = nested.width_probabilities(256, 100.0), generator(0, "nested")
    error = {}
    for kind in ("plain", "nested"):
        owner = Given()
        net = nn.Sequential(nn.Linear(1, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256),
                            nn.Linear(256, 1))  # fmt: skip
        mask = nested.add_mask(net[-1], owner.draw)
        adam = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(400):
            owner.k = 256 if kind == "plain" else nested.draw_width(p, stream)
            adam.zero_grad()
            F.mse_loss(net(x), y).backward()
            adam.step()
        for k in (1, 256):
            mask.kept.fill_(k)
            with torch.no_grad():
                error[kind, k] = F.mse_loss(net(x), true).item()
    assert error["nested", 1] < error["plain", 1] / 2


@pytest.mark.parametrize(
    ("options", "words"),
    [({"mode": "nest"}, "nested"), ({"spread": 0.0}, "spread=0.0"), ({"rate": 1.0}, "rate=1.0"),
     ({"width_penalty": -1.0}, "width_penalty=-1.0")],
)  # fmt: skip
def test_mistakes_of_nested_dropout(options, words):
    with pytest.raises(UserError, match=words):
        NestedDropout(mlp(1, (4, 4), 3, hidden=[8]), 3, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"forget_rate": 1.0}, "forget_rate=1.0"), ({"ramp_epochs": -1}, "ramp_epochs=-1"),
     ({"exponent": 0.0}, "exponent"), ({"stack": ["mixup"]}, "stack")],
)  # fmt: skip
def test_mistakes_of_co_teaching(options, words):
    with pytest.raises(UserError, match=words):
        CoTeaching(mlp(1, (4, 4), 3, hidden=[8]), 3, **options)


def test_other_mistakes():
    image, label = torch.rand(1, 1, 4, 4), torch.tensor([0])
    method = CoTeaching(mlp(1, (4, 4), 3, hidden=[8]), 3, split_batch=True)
    with pytest.raises(UserError, match="halves the batch"):
        method.training_loss((image, label))
    with pytest.raises(UserError, match="compression"):
        NestedCoTeaching(nn.Identity(), 2, first=Score(1.0), second=Score(1.0), compression="mask")
    with pytest.raises(UserError, match=r"nn\.Linear"):
        NestedDropout(Backbone(nn.Flatten()), 16)
