"""Cuttlefish: stable ranks of known spectra, the switch on ranks made by hand, and runs that switch."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench import cli
from regbench.backbones.small import mlp
from regbench.errors import UserError
from regbench.regularizers.compression.cuttlefish import (
    Cuttlefish,
    change,
    product_norm,
    rank_to_keep,
    stable_rank,
)
from support import check_resume, history, read_result, weights


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def matrix(m: int, n: int, *values: float) -> torch.Tensor:
    """An m × n matrix with these singular values."""
    left = torch.linalg.qr(torch.randn(m, len(values)))[0]
    right = torch.linalg.qr(torch.randn(n, len(values)))[0]
    return left * torch.tensor(values) @ right.T


@pytest.mark.parametrize(
    ("values", "expected"),
    [((3, 2, 2, 2), 2), ((5, 4, 4), 2), ((2, 2, 2, 1), 3), ((7,), 1), ((0, 0), 1)],  # 21/9, 57/25, 13/4, 1
)
def test_the_stable_rank_of_a_known_spectrum(values, expected):
    assert stable_rank(matrix(9, 6, *map(float, values))) == expected


@pytest.mark.parametrize(
    ("stable", "initial", "full", "expected"),
    [(10, 40, 128, 32), (11, 40, 128, 36), (40, 40, 128, 128), (41, 40, 9, 9)],
)
def test_the_rank_that_is_kept(stable, initial, full, expected):
    assert rank_to_keep(stable, initial, full) == expected


@pytest.mark.parametrize("averaged", [1, 3, 7])
def test_the_change_is_that_of_numpy(averaged):
    smoothed = np.random.default_rng(0).normal(size=(8, 3))
    expected = np.abs(np.gradient(smoothed, axis=0))[-averaged:].mean(axis=0)
    found = change(torch.tensor(smoothed)[-(averaged + 1) :], averaged)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_norm_of_a_product():
    u, v = torch.randn(3, 5), torch.randn(3, 7)
    assert product_norm(u, v).item() == pytest.approx((u.T @ v).square().sum().item(), rel=1e-5)


def test_when_layers_settle_by_hand():
    """N = 2: the moving average takes 2/3 of the new rank. B is 9, 7, 6.333, 6.111, 6.037, …, whose last two changes
    average 1, 0.333 and 0.111 in epochs 2, 3 and 4; those of C are twice as large, 0.222 in epoch 4 and 0.074 in 5.
    The limit is 0.05, 0.125 for two layers and 0.25 for one."""
    network = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12))
    method = Cuttlefish(network, 12, window=2, averaged=2, threshold=0.05, skip_first=0, skip_last=False)
    for epoch, expected in enumerate([[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]):
        assert not method.settled.all()
        method.observe([9, 9, 9] if epoch == 0 else [9, 6, 3])
        method.full_rank_epochs += 1
        assert method.settled.tolist() == expected, epoch
    torch.testing.assert_close(method.smoothed[-2:, 1], torch.tensor([6 + 3 / 81, 6 + 3 / 243]))
    assert not method.switched
    method.begin_epoch()
    assert method.switched
    assert method.full_rank_epochs == 6


def loop(method, optimizer, images, labels, steps=4):
    for _ in range(steps):
        optimizer.zero_grad()
        method.training_loss((images, labels)).backward()
        optimizer.step()


def test_before_the_switch_it_is_plain_training():
    """Layers that are wider than high and the other way around; momentum and weight decay."""
    dense = nn.Sequential(
        nn.Conv2d(2, 30, 3), nn.ReLU(), nn.Flatten(), nn.Linear(120, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    images, labels = torch.randn(16, 2, 4, 4), torch.randint(3, (16,))
    make = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)  # noqa: E731
    method = Cuttlefish(copy.deepcopy(dense), 3, optimizer=make, skip_first=0, skip_last=False)
    assert [layer.sizes for layer in method.layers.values()] == [(30, 18), (8, 120), (3, 8)]
    loop(method, method.configure_optimizers(), images, labels)
    optimizer = make(dense.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(dense(images), labels).backward()
        optimizer.step()
    for factor in method._factors("resting"):
        assert torch.equal(factor.flatten(1), torch.eye(len(factor)))
    found = method.plain_backbone().network.state_dict()
    assert found.keys() == dense.state_dict().keys()
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("frobenius", [0.5, None])
def test_the_switch(frobenius):
    """The initial stable rank is ⌊4.02 / 1.02⌋ = 3, that at the switch ⌊35 / 16⌋ = 2: ⌈2 · 4 / 3⌉ = 3 are kept."""
    network = nn.Sequential(nn.Linear(20, 4), nn.Linear(4, 3))
    with torch.no_grad():
        network[0].weight.copy_(matrix(4, 20, 1.01, 1.0, 1.0, 1.0))
    make = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)  # noqa: E731
    method = Cuttlefish(network, 3, optimizer=make, frobenius=frobenius, skip_first=0)
    assert method.initial.tolist() == [3]
    optimizer = method.configure_optimizers()
    images, labels = torch.randn(8, 20), torch.randint(3, (8,))
    loop(method, optimizer, images, labels, 1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    trained = matrix(4, 20, 4.0, 3.0, 3.0, 1.0)
    (layer,) = method.layers.values()
    with torch.no_grad():
        layer.inner.weight.copy_(trained)
    method.switch(optimizer)
    assert layer.rank == 3
    # Eckart and Young: what is missing is the last singular value.
    assert (layer.weight - trained).norm().item() == pytest.approx(1.0, rel=1e-4)
    assert not optimizer.state
    decay = 0.1 if frobenius is None else 0.0
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, decay, decay]
    logits = network[1](F.linear(images, layer.weight, layer.bias))
    expected = F.cross_entropy(logits, labels) + (frobenius or 0) / 2 * (16 + 9 + 9)
    assert method.training_loss((images, labels)).item() == pytest.approx(expected.item(), rel=1e-4)
    before = layer.outer.weight.detach().clone()
    loop(method, optimizer, images, labels, 1)
    assert (layer.outer.weight - before)[:, :3].abs().min() > 0  # the factor that rested learns now


def test_plain_ranks_are_the_stable_ranks():
    network = nn.Sequential(nn.Linear(20, 4, bias=False), nn.Linear(4, 3))
    method = Cuttlefish(network, 3, ranks="plain", skip_first=0)
    with torch.no_grad():
        network[0].inner.weight.copy_(matrix(4, 20, 4.0, 3.0, 3.0, 1.0))
    method.switch()
    assert network[0].rank == 2


RUN = ["regularizer=cuttlefish", "dataset=digits", "backbone=mlp", "backbone.hidden=[32]", "trainer.max_epochs=4",
       "trainer.limit_train_batches=4", "logger=none", "progress=none", "accelerator=cpu", "regularizer.skip_first=0",
       "regularizer.window=1", "regularizer.averaged=1", "regularizer.threshold=99",
       "regularizer.ranks=plain"]  # fmt: skip


def test_a_run_switches_goes_on_when_it_was_stopped_and_exports_the_small_network(train):
    """A layer may have settled in epoch 1, so that the switch comes before epoch 2."""
    whole = check_resume(train, *RUN, after=1)
    metrics = read_result(whole)["metrics"]
    rank = int(metrics["test/rank_layer1_0"])
    assert 0 < rank < 21  # 64 × 32 breaks even at 21.3
    assert metrics["test/full_rank_epochs"] == 2
    assert [float(row["train/rank"]) for row in history(whole) if row["train/rank"]] == [
        1,
        1,
        rank / 32,
        rank / 32,
    ]
    macs, dense = 96 * rank + 320, 64 * 32 + 320
    assert metrics["test/macs_m"] == pytest.approx(macs / 1e6, rel=1e-5)
    assert metrics["test/params_m"] == pytest.approx((96 * rank + 32 + 330) / 1e6, rel=1e-5)
    assert metrics["test/train_macs_ratio"] == pytest.approx((2 + 2 * macs / dense) / 4, rel=1e-5)

    assert cli.main(["export", str(whole)]) == 0
    state = torch.load(whole / "model.pt", weights_only=True)
    assert sum(value.numel() for value in state.values()) == 96 * rank + 32 + 330
    u, v = (weights(whole)[f"backbone.network.layer1.0.{name}.weight"] for name in ("outer", "inner"))
    assert torch.equal(state["layer1.0.outer.weight"], u[:, :rank])
    assert torch.equal(state["layer1.0.inner.weight"], v[:rank])


def test_ranks_that_do_not_settle_are_told(train, capsys):
    _, folder = train(*RUN, "regularizer.window=9", "trainer.max_epochs=1")
    assert read_result(folder)["metrics"]["test/params_ratio"] == 1
    assert "stable ranks of 0 of 1 layers settled within 1 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ranks": "scaledd"}, "no ranks of cuttlefish 'scaledd'. Did you mean scaled"),
        ({"window": 0}, "window >= 1"),
        ({"averaged": 0}, "averaged >= 1"),
        ({"threshold": -1.0}, "threshold >= 0"),
        ({"frobenius": -1.0}, "frobenius >= 0"),
        ({"skip_first": 3}, "None of the network's 3"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(UserError, match=words):
        Cuttlefish(mlp(1, (2, 2), 3, hidden=(4, 4)), 3, **options)
