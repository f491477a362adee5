"""Maestro on numbers worked out by hand, and as users run it: training, resuming, exporting."""

import json
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regbench import cli
from regbench.api import create_method
from regbench.backbones.low_rank import cut_to, layers_of
from regbench.backbones.small import mlp, small_cnn
from regbench.errors import UserError
from regbench.regularizers.compression.maestro import Maestro, lasso, shrink
from regbench.training import load_network
from support import check_resume, read_result

SMALL = ["regularizer=maestro", "dataset=digits", "backbone=small_cnn", "backbone.width=4",
         "trainer.limit_train_batches=4", "dataset.batch_size=32", "logger=none", "progress=none",
         "accelerator=cpu"]  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def diagonal(*values: float) -> nn.Sequential:
    """A classifier of 3 inputs whose only layer's matrix is diagonal, without a bias."""
    network = nn.Sequential(nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.diag(torch.tensor(values)))
    return network


def batch(size: int = 8, shape=(1, 8, 8), classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, *shape), torch.randint(classes, (size,))


def test_lasso_of_a_network_by_hand():
    """diag(9, 4, 1) in factors is diag(3, 2, 1) twice: tails √14, √5 and 1; alone 3, 2 and 1."""
    method = Maestro(diagonal(1.0, 9.0, 4.0), 3)
    assert lasso(method.backbone).item() == pytest.approx(13.9555, abs=1e-4)
    assert lasso(method.backbone, hierarchical=False).item() == pytest.approx(12, abs=1e-5)
    two = nn.Sequential(diagonal(9.0, 4.0, 1.0), diagonal(9.0, 4.0, 1.0))
    assert lasso(Maestro(two, 3).backbone).item() == pytest.approx(2 * 13.9555, abs=1e-4)


@pytest.mark.parametrize(
    ("threshold", "hierarchical", "kept"),
    [(0.9, True, [1, 1, 1]), (1.1, True, [1, 1, 0]), (5.1, True, [1, 0, 0]), (14.1, True, [0, 0, 0]),
     (4.1, False, [1, 0, 0]), (0.0, False, [1, 1, 1]), (float("inf"), True, [0, 0, 0])],
)  # fmt: skip
def test_shrinking_by_hand(threshold, hierarchical, kept):
    """Importances of diag(9, 4, 1): 14, 5 and 1; alone 9, 4 and 1."""
    network = Maestro(diagonal(9.0, 4.0, 1.0), 3).backbone
    shrink(network, threshold, hierarchical)
    (layer,) = layers_of(network).values()
    assert layer.kept.tolist() == kept
    assert layer.rank == sum(kept)


def test_a_component_that_grows_again_comes_back():
    network = Maestro(diagonal(9.0, 4.0, 1.0), 3).backbone
    shrink(network, 5.1)
    (layer,) = layers_of(network).values()
    with torch.no_grad():
        layer.inner.weight.mul_(2)
    shrink(network, 5.1)  # importances 28, 10 and 2
    assert layer.rank == 2


def test_the_training_loss_by_hand():
    """At rank 1 of diag(9, 4, 1) the logits of (1, 1, 1) are (9, 0, 0)."""
    method = Maestro(diagonal(9.0, 4.0, 1.0), 3, lasso=0.1)
    method.draw_ranks = lambda: [1]
    loss = method.training_loss((torch.ones(1, 3), torch.tensor([1])))
    expected = F.cross_entropy(torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([1])) + 0.1 * 13.9555
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_full_pass_gives_the_sampled_one_its_target():
    method = Maestro(diagonal(9.0, 4.0, 1.0), 3, lasso=0.0, full_pass=True)
    method.draw_ranks = lambda: [2]
    loss = method.training_loss((torch.ones(1, 3), torch.tensor([1])))
    whole, cut = torch.tensor([9.0, 4.0, 1.0]), torch.tensor([9.0, 4.0, 0.0])
    expected = -whole.log_softmax(0)[1] - (whole.softmax(0) * cut.log_softmax(0)).sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    # The target has no gradient: at full rank p − one-hot from the labels, and softmax(cut) − p, which is zero.
    method.draw_ranks = lambda: [None]
    method.zero_grad()
    method.training_loss((torch.ones(1, 3), torch.tensor([1]))).backward()
    both = method.layers["0"].inner.weight.grad.clone()
    method.full_pass = False
    method.zero_grad()
    method.training_loss((torch.ones(1, 3), torch.tensor([1]))).backward()
    torch.testing.assert_close(both, method.layers["0"].inner.weight.grad, rtol=1e-4, atol=1e-5)


def test_each_step_cuts_one_layer_and_every_pair_comes_once_in_a_cycle():
    method = Maestro(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), 2)
    draws = [method.draw_ranks() for _ in range(10)]
    assert all(sum(rank is not None for rank in ranks) == 1 for ranks in draws)
    pairs = [next((i, rank) for i, rank in enumerate(ranks) if rank) for ranks in draws]
    assert sorted(pairs[:5]) == sorted(pairs[5:]) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]


def test_after_shrinking_only_ranks_that_are_left_are_drawn():
    method = Maestro(diagonal(9.0, 4.0, 1.0), 3, threshold=1.1)
    method.end_epoch()
    assert sorted(method.draw_ranks()[0] for _ in range(2)) == [1, 2]
    method.threshold = 100.0
    method.end_epoch()
    assert method.draw_ranks() == [None]  # nothing is left, and nothing to cut


def test_across_layers_every_layer_has_a_rank_of_its_own():
    method = Maestro(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), 2, sampler="across_layers")
    draws = {tuple(method.draw_ranks()) for _ in range(200)}
    assert draws == {(a, b) for a in (1, 2, 3) for b in (1, 2)}
    assert Maestro(diagonal(1.0, 1.0, 1.0), 3, sampler="none").draw_ranks() == [None]


def test_a_step_changes_only_what_its_rank_uses():
    method = Maestro(mlp(1, (2, 2), 3, hidden=(4,)), 3, lasso=0.0)
    method.draw_ranks = lambda: [2, None]
    method.training_loss(batch(4, (1, 2, 2), 3)).backward()
    first, last = (layer.inner.weight.grad for layer in method.layers.values())
    assert (first.abs().sum(dim=1) > 0).tolist() == [True, True, False, False]
    assert (last.abs().sum(dim=1) > 0).all()


def test_what_training_costs_by_hand():
    """Layers of 3 × 3 and 3 × 2: dense 15, in factors 6 and 5 for each rank. One step each at (1, 2) and (3, 1), where
    with the full pass 6 · 3 + 5 · 2 = 28 are added."""
    for full_pass, more in ((False, 0), (True, 28)):
        method = Maestro(
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), 2, full_pass=full_pass, threshold=None
        )
        for ranks in ([1, None], [None, 1]):
            method.draw_ranks = lambda ranks=ranks: ranks
            method.training_loss((torch.randn(4, 3), torch.randint(2, (4,))))
        method.end_epoch()
        passes, steps = method.spent.tolist()
        assert steps == 2
        assert passes == pytest.approx((6 + 10 + more + 18 + 5 + more) / 15)


def test_batch_norms_get_the_statistics_of_the_kept_ranks():
    method = create_method(
        "maestro", backbone=small_cnn(1, (8, 8), 10, width=4), num_classes=10, threshold=0.5
    )
    images, labels = batch(64)
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, accelerator="cpu")  # fmt: skip
    trainer.fit(method, DataLoader(TensorDataset(images, labels), batch_size=16))
    block = method.backbone.network.layer1
    assert 0 < method.rank_share() < 1
    with torch.no_grad():
        means = torch.stack([block[0](part).mean((0, 2, 3)) for part in images.split(16)])
        variances = torch.stack([block[0](part).var((0, 2, 3)) for part in images.split(16)])
    torch.testing.assert_close(block[1].running_mean, means.mean(0))
    torch.testing.assert_close(block[1].running_var, variances.mean(0))
    assert block[1].momentum == 0.1


def test_a_run_that_was_stopped_goes_on_bit_for_bit(train):
    options = [*SMALL, "regularizer.threshold=1.0", "trainer.max_epochs=3", "checkpoint.select=last"]
    whole = check_resume(train, *options, after=1)
    assert 0 < read_result(whole)["metrics"]["test/rank"] < 1


# small_cnn cut to given ranks, written with torch alone.
PLAIN = """
import json, sys
import torch
from collections import OrderedDict
from torch import nn
assert not any(name.startswith("regbench") for name in sys.modules)
state = torch.load(sys.argv[1], weights_only=True)
def layer(name, kind, **options):
    if f"{name}.weight" in state:
        o, i = state[f"{name}.weight"].shape[:2]
        return kind(i, o, bias=f"{name}.bias" in state, **options)
    (r, i), o = state[f"{name}.inner.weight"].shape[:2], state[f"{name}.outer.weight"].shape[0]
    last = kind(r, o, bias=f"{name}.outer.bias" in state, **({"kernel_size": 1} if options else {}))
    return nn.Sequential(OrderedDict(inner=kind(i, r, bias=False, **options), outer=last))
def block(k, channels):
    conv = layer(f"layer{k}.0", nn.Conv2d, kernel_size=3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2))
network = nn.Sequential(OrderedDict(layer1=block(1, 4), layer2=block(2, 8), layer3=block(3, 16),
                        pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=layer("fc", nn.Linear)))
network.load_state_dict(state)
image = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
torch.set_num_threads(1)
print(json.dumps([network.eval()(image).tolist(), sum(p.numel() for p in network.parameters())]))
"""


def test_the_exported_network_is_physically_small_and_needs_no_regbench(train, tmp_path):
    _, folder = train(*SMALL, "regularizer.threshold=1.0", "trainer.max_epochs=1", "checkpoint.select=last")
    result = read_result(folder)["metrics"]
    assert cli.main(["export", str(folder)]) == 0
    state = torch.load(folder / "model.pt", weights_only=True)
    assert any(name.endswith("inner.weight") for name in state)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder / "model.pt")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    logits, params = json.loads(done.stdout)
    network = load_network(folder / "checkpoints" / "last.ckpt", (1, 8, 8), 10)
    image = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    assert torch.equal(torch.tensor(logits), network(image))
    assert params == sum(p.numel() for p in network.parameters())
    assert result["test/params_m"] == pytest.approx(params / 1e6, rel=1e-6)
    given = sum(p.numel() for p in small_cnn(1, (8, 8), 10, width=4).parameters())
    assert result["test/params_ratio"] == pytest.approx(params / given, rel=1e-6)
    assert params < given


def test_the_plain_network_computes_what_the_method_does():
    method = Maestro(small_cnn(1, (8, 8), 10, width=4), 10, threshold=1.0)
    method.end_epoch()
    method.eval()
    image, _ = batch()
    torch.testing.assert_close(method.plain_backbone()(image), method(image), rtol=1e-4, atol=1e-5)
    with cut_to(method.layers.values(), [1] * 4):
        torch.testing.assert_close(method.plain_backbone()(image), method(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "per_leyer"}, "no sampler of maestro 'per_leyer'. Did you mean per_layer"),
        ({"lasso": -1.0}, "lasso >= 0"),
        ({"threshold": -1.0}, "threshold >= 0"),
        ({"full_pass": True, "sampler": "none"}, "sampler=none samples none"),
        ({"skip_first": 3}, "None of the network's 3"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(UserError, match=words):
        Maestro(mlp(1, (2, 2), 3, hidden=(4, 4)), 3, **options)
