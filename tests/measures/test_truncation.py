"""Networks cut to low rank, measured on tests whose answer is known, and what networks cost."""

import time

import pytest
import torch
from PIL import Image
from torch import nn

from regbench.backbones.low_rank import cut_to, factorise, layers_of
from regbench.errors import UserError
from regbench.functional.low_rank import rank_at
from regbench.measures.truncation import Truncation, milliseconds
from regbench.training import data_module, load_network
from support import read_result

RUN = ["dataset=digits", "trainer.max_epochs=8", "dataset.batch_size=32", "checkpoint.select=last", "logger=none",
       "progress=none", "accelerator=cpu"]  # fmt: skip
MLP = ["backbone=mlp", "backbone.hidden=[16]"]
SHORT = ["backbone=small_cnn", "backbone.width=8", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
CUT = ["callbacks=[default,size,truncation]", "callbacks.truncation.shares=[1.0,0.3]"]


def accuracy(network: nn.Module, result: dict) -> float:
    data = data_module(result["config"]["dataset"], {"data": 0, "noise": 0, "order": 0})
    network.eval()
    with torch.no_grad():
        right = [network(batch["image"]).argmax(1) == batch["label"] for batch in data.test_loader()]
    return torch.cat(right).float().mean().item()


@pytest.mark.parametrize("method", ["none", "maestro"])
def test_a_network_without_batch_norm_is_cut_as_its_matrices_are(train, method):
    """A dense network is cut by SVD, one in factors to their first components."""
    more = [f"regularizer={method}"] + (["regularizer.threshold=1.5"] if method == "maestro" else [])
    _, folder = train(*RUN, *MLP, *CUT, "callbacks.truncation.budgets=[0.5]", *more)
    result = read_result(folder)
    metrics = result["metrics"]
    assert metrics["test/accuracy_rank_100"] == pytest.approx(metrics["test/accuracy"], abs=2e-3)  # rounding
    dense = 64 * 16 + 160
    if method == "none":
        network = load_network(folder / "checkpoints" / "last.ckpt", (1, 8, 8), 10)
        factorise(network)
        layers = list(layers_of(network).values())
        ranks = [5, 3]  # of 16 and 10
        assert [rank_at(layer.rank, 0.3) for layer in layers] == ranks
        with cut_to(layers, ranks):
            expected = accuracy(network, result)
        assert metrics["test/accuracy_rank_30"] == pytest.approx(expected, abs=1e-6)
        assert metrics["test/macs_rank_30"] == pytest.approx((5 * 80 + 3 * 26) / dense, rel=1e-6)
        assert metrics["test/params_m"] == pytest.approx((dense + 26) / 1e6, rel=1e-6)
        assert metrics["test/macs_m"] == pytest.approx(dense / 1e6, rel=1e-6)
    else:
        first, last = metrics["test/rank_layer1_0"], metrics["test/rank_fc"]
        assert first < 16 or last < 10
        ranks = [rank_at(int(rank), 0.3) for rank in (first, last)]
        assert metrics["test/macs_rank_30"] == pytest.approx(
            (ranks[0] * 80 + ranks[1] * 26) / dense, rel=1e-6
        )
    assert metrics["test/accuracy_macs_50"] > 0.2


def test_batch_norms_follow_the_cut_and_the_run_is_left_as_it_is(train):
    """Of a network with batch norm the accuracy after the cut is far above what the old statistics give, and measuring
    changes nothing of the run."""
    run = [*RUN, "regularizer=maestro", "backbone=small_cnn", "backbone.width=8", "trainer.max_epochs=3"]
    _, folder = train(*run, *CUT, "callbacks.truncation.budgets=[]")
    _, other = train(*run, run_dir="other")
    metrics, expected = read_result(folder)["metrics"], read_result(other)["metrics"]
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["test/accuracy_rank_100"] == pytest.approx(metrics["test/accuracy"], abs=0.02)
    assert metrics["test/accuracy_rank_30"] > 0.3


def test_latency_is_of_the_exported_networks(train):
    """A tenth of the ranks of a wide layer takes less time than the layer; both are drawn."""
    run = [
        *RUN,
        "backbone=mlp",
        "backbone.hidden=[2048,2048]",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=2",
    ]
    cuts = [
        "callbacks=[default,truncation]",
        "callbacks.truncation.shares=[0.02]",
        "callbacks.truncation.budgets=[0.9]",
        "callbacks.truncation.samples=10",
    ]
    _, folder = train(*run, *cuts, "callbacks.truncation.latency=8")
    metrics = read_result(folder)["metrics"]
    assert metrics["test/macs_macs_90"] <= 0.9
    assert {name for name in metrics if name.startswith("test/ms_")} == {"test/ms_uncut", "test/ms_rank_2"}
    assert 0 < metrics["test/ms_rank_2"] < metrics["test/ms_uncut"]
    assert Image.open(folder / "figures" / "latency.png").size == (750, 540)


def test_what_is_timed_is_as_many_images_and_in_the_layout_of_the_run(train, monkeypatch):
    """Eight images where a batch has three; new layers are channels-last where those of the network are."""
    seen = []
    monkeypatch.setattr(
        "regbench.measures.truncation.milliseconds",
        lambda *timed: seen.append(timed) or dict.fromkeys(timed[0], 1.0),
    )
    cuts = [
        "callbacks=[default,truncation]",
        "callbacks.truncation.shares=[0.3]",
        "callbacks.truncation.budgets=[]",
    ]
    layout = ["accelerator.channels_last=true", "dataset.eval_batch_size=3", "callbacks.truncation.latency=8"]
    train(*RUN, *cuts, *SHORT, *layout)
    [(networks, image)] = seen
    assert len(image) == 8
    weights = [
        w for network in networks.values() for w in network.parameters() if w.dim() == 4 and w.shape[-1] == 3
    ]
    assert len(weights) == 6
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_a_budget_that_no_rank_meets_says_what_was_reached(train):
    """64·16 and 16·10 multiply-accumulates; rank 1 everywhere takes 80 + 26 of them."""
    cuts = [
        "callbacks=[default,truncation]",
        "callbacks.truncation.shares=[]",
        "callbacks.truncation.budgets=[0.01]",
    ]
    _, folder = train(*RUN, *MLP, *cuts, "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    assert read_result(folder)["metrics"]["test/macs_macs_1"] == pytest.approx(106 / 1184, rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_networks_of_another_type_than_the_loaders_images(train, precision):
    """Maestro takes batch norms' statistics anew, and the callback reads images, outside Lightning's loops."""
    cuts = [
        "callbacks=[default,truncation]",
        "callbacks.truncation.shares=[0.5]",
        "callbacks.truncation.budgets=[]",
    ]
    code, folder = train(*RUN, *cuts, *SHORT, "regularizer=maestro", f"accelerator.precision={precision}")
    assert code == 0
    assert "test/accuracy_rank_50" in read_result(folder)["metrics"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["regularizer=ae"], "leave it out with PlainAutoencoder"),
        (["dataset=digits", "backbone=mlp", "callbacks.truncation.latency=400"], "there are 359 test images"),
    ],
)
def test_what_it_cannot_measure_is_said_before_training(train, capsys, options, says):
    code, folder = train("callbacks=[default,truncation]", *options)
    assert code == 2
    assert says in capsys.readouterr().err
    assert not list(folder.rglob("*.ckpt"))


def test_times_are_medians_in_milliseconds():
    """A network that sleeps for 2 ms, and one that sleeps for 4 ms."""

    class Sleeps(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self, image):
            time.sleep(self.seconds)

    found = milliseconds({"short": Sleeps(0.002), "long": Sleeps(0.004)}, torch.zeros(1))
    assert list(found) == ["short", "long"]
    assert found["short"] >= 2
    assert found["long"] >= 4
    assert max(found.values()) < 200  # neither seconds nor microseconds; a busy machine is slow


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shares": [0.0]}, r"shares in \(0, 1\]"),
        ({"budgets": [1.0]}, "budgets in"),
        ({"samples": 0}, "samples of 1"),
        ({"latency": -1}, "latency=-1"),
    ],
)
def test_mistakes(options, says):
    with pytest.raises(UserError, match=says):
        Truncation(**options)
