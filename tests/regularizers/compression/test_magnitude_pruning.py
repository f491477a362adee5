"""Iterative magnitude pruning: which weights go, by hand and by torch's own pruning; rewinding; a run of two rounds."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from regbench import cli
from regbench.backbones.small import mlp, small_cnn
from regbench.errors import UserError
from regbench.regularizers.compression.magnitude_pruning import (
    MagnitudePruning,
    prunable,
    pruned_masks,
    round_starts,
)
from support import check_resume, history, read_result


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_smallest_of_all_layers_go_and_then_the_smallest_of_those_left():
    one, other = torch.tensor([[1.0, -8.0], [3.0, -0.5]]), torch.tensor([0.1, 2.0, -6.0, 7.0])
    masks = [torch.ones(2, 2), torch.ones(4)]
    masks = pruned_masks([one, other], masks, 0.25)  # 0.1 and 0.5
    assert [mask.tolist() for mask in masks] == [[[1, 1], [1, 0]], [0, 1, 1, 1]]
    masks = pruned_masks([one, other], masks, 0.5)  # of six: 1, 2 and 3
    assert [mask.tolist() for mask in masks] == [[[0, 1], [0, 0]], [0, 0, 1, 1]]


def test_it_is_what_torch_prunes():
    network = small_cnn(1, (8, 8), 10, width=4).network
    layers = list(prunable(network).values())
    found = [torch.ones_like(layer.weight) for layer in layers]
    for share in (0.2, 0.2, 0.5):
        found = pruned_masks([layer.weight.detach() for layer in layers], found, share)
    for share in (0.2, 0.2, 0.5):
        prune.global_unstructured([(m, "weight") for m in layers], prune.L1Unstructured, amount=share)
    assert all(torch.equal(mask, layer.weight_mask) for mask, layer in zip(found, layers, strict=True))


@pytest.mark.parametrize(
    ("epochs", "rounds", "expected"),
    [(12, 2, [0, 4, 8]), (10, 2, [0, 4, 7]), (25, 3, [0, 7, 13, 19]), (2, 3, [0, 1, 1, 2])],
)
def test_when_rounds_start(epochs, rounds, expected):
    assert round_starts(epochs, rounds) == expected


def test_which_layers_are_pruned():
    network = nn.Sequential(
        nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3), nn.Linear(3, 3)
    )
    assert list(prunable(network)) == ["0", "3", "4"]
    assert list(prunable(network, skip_last=True)) == ["0", "3"]


def method_with_weights(**options) -> MagnitudePruning:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        network[2].weight.copy_(torch.tensor([[-5.0, 6.0], [0.5, 8.0]]))
    return MagnitudePruning(network, 2, share=0.5, **options)


def test_pruning_goes_back_to_the_early_network():
    method = method_with_weights(rewind=0)
    network = method.backbone.network
    optimizer = method.configure_optimizers()
    method.training_loss((torch.randn(8, 2), torch.randint(2, (8,)))).backward()
    optimizer.step()
    assert optimizer.state
    with torch.no_grad():
        network[0].parametrizations.weight.original.copy_(torch.tensor([[10.0, 20.0], [-0.1, 0.2]]))
        network[2].parametrizations.weight.original.copy_(torch.tensor([[0.3, 30.0], [-0.4, 40.0]]))
    method.prune(optimizer)
    assert network[0].weight.tolist() == [[1, -2], [0, 0]]  # early weights where the trained ones were large
    assert network[2].weight.tolist() == [[0, 6], [0, 8]]
    assert network[1].running_mean.tolist() == [0, 0]  # the network goes back, not its weights alone
    assert network[1].num_batches_tracked == 0
    assert not optimizer.state
    assert method.pruned() == 0.5
    method.prune()  # of the four that are left the two smallest
    assert network[0].weight.tolist() == [[0, 0], [0, 0]]
    assert network[2].weight.tolist() == [[0, 6], [0, 8]]


def test_without_rewinding_the_trained_weights_stay():
    method = method_with_weights(rewind=None)
    method.prune()
    assert method.backbone.network[0].weight.tolist() == [[0, 0], [0, 4]]
    assert method.backbone.network[2].weight.tolist() == [[-5, 6], [0, 8]]
    assert method.early is None


def test_pruned_weights_are_zero_and_stay_so():
    method = method_with_weights(rewind=None)
    optimizer = method.configure_optimizers()
    method.prune(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        method.training_loss((torch.randn(8, 2), torch.randint(2, (8,)))).backward()
        optimizer.step()
    first = method.backbone.network[0]
    assert first.weight.flatten()[:3].tolist() == [0, 0, 0]
    assert first.parametrizations.weight.original.grad.flatten()[:3].tolist() == [0, 0, 0]
    plain = method.plain_backbone().network
    assert type(plain[0]) is nn.Linear
    assert torch.equal(plain[0].weight, first.weight)


RUN = ["regularizer=magnitude_pruning", "dataset=digits", "backbone=mlp", "backbone.hidden=[16]",
       "trainer.max_epochs=4", "trainer.limit_train_batches=4", "logger=none", "progress=none", "accelerator=cpu",
       "regularizer.rounds=1", "regularizer.share=0.5", "regularizer.rewind=1"]  # fmt: skip


def test_a_run_prunes_goes_on_when_it_was_stopped_and_exports_zeros(train):
    whole = check_resume(train, *RUN, after=1)
    metrics = read_result(whole)["metrics"]
    rows = [row for row in history(whole) if row["train/pruned"]]
    assert [float(row["train/pruned"]) for row in rows] == [0, 0, 0.5, 0.5]
    # After each epoch, of half a cosine over two: the second one starts anew.
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.025, 0.05, 0.025, 0], abs=1e-9)
    size = 64 * 16 + 16 * 10
    assert metrics["test/pruned"] == 0.5
    assert metrics["test/params_m"] == pytest.approx((size / 2 + 26) / 1e6, rel=1e-6)
    assert metrics["test/params_ratio"] == pytest.approx((size / 2 + 26) / (size + 26), rel=1e-6)
    assert metrics["test/macs_m"] == pytest.approx(size / 1e6, rel=1e-6)
    assert metrics["test/macs_ratio"] == 1
    assert metrics["test/nonzero_macs_ratio"] == pytest.approx(0.5, rel=1e-6)

    assert cli.main(["export", str(whole)]) == 0
    state = torch.load(whole / "model.pt", weights_only=True)
    assert {name: tuple(value.shape) for name, value in state.items() if name.endswith("weight")} == {
        "layer1.0.weight": (16, 64), "fc.weight": (10, 16)}  # fmt: skip
    assert sum(int((value == 0).sum()) for value in state.values()) == size / 2


def test_too_few_epochs_are_told(train, capsys):
    code, _ = train(*RUN, "regularizer.rewind=2")
    assert code == 2
    assert "regularizer.rewind=2 lies behind the first pruning" in capsys.readouterr().err
    code, _ = train(*RUN, "trainer.max_epochs=1")
    assert code == 0
    assert "trainer.max_epochs=1 is too short for 1 prunings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [({"rounds": 0}, "rounds >= 1"), ({"share": 1.0}, r"share in \(0, 1\)"), ({"rewind": -1}, "rewind >= 0")],
)
def test_mistakes(options, words):
    with pytest.raises(UserError, match=words):
        MagnitudePruning(mlp(1, (2, 2), 3, hidden=(4, 4)), 3, **options)


def test_a_network_without_layers_to_prune():
    with pytest.raises(UserError, match="found no linear layer or convolution"):
        MagnitudePruning(nn.Flatten(), 3)
