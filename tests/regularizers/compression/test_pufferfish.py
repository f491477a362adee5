"""Pufferfish: what is kept is the best of its rank, and the sizes are those of the paper's networks."""

import copy

import pytest
import torch
from torch import nn

from regbench import backbones
from regbench.backbones.small import mlp, small_cnn
from regbench.composing import compose_config
from regbench.errors import UserError
from regbench.regularizers.compression.pufferfish import Pufferfish, cut_by_svd
from support import read_result


def copied_and_cut(network: nn.Module, share: float, **which) -> nn.Module:
    network = copy.deepcopy(network)
    cut_by_svd(network, share, **which)
    return network


def test_the_pair_is_the_best_of_its_rank():
    """Eckart and Young: the squared error is the sum of the squares of the singular values that are left out."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 8))
    made = copied_and_cut(network, 0.25)[0]
    assert made.inner.weight.shape == (2, 12)
    s = torch.linalg.svdvals(network[0].weight)
    error = (made.outer.weight @ made.inner.weight - network[0].weight).square().sum()
    assert error.item() == pytest.approx(s[2:].square().sum().item(), rel=1e-4)
    assert torch.equal(made.outer.bias, network[0].bias)


def test_a_layer_that_a_pair_would_not_make_smaller_stays_whole():
    """16 × 10 breaks even at rank 6.2."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 16))
    assert isinstance(copied_and_cut(network, 0.6)[0], nn.Sequential)
    whole = copied_and_cut(network, 0.7)[0]
    assert type(whole) is nn.Linear
    torch.testing.assert_close(whole.weight, network[0].weight, rtol=1e-4, atol=1e-5)


def test_a_resnet_at_a_quarter_of_the_rank():
    """ResNet-18 of width 16. The first convolution, the first block and the shortcuts stay whole, as in the released
    code: a convolution of c channels with i inputs has 9 i c/4 + c²/4 parameters in place of 9 i c."""
    torch.manual_seed(0)
    node = dict(compose_config(["backbone=resnet18_cifar", "backbone.width=16"]).backbone)
    network = backbones.build(node, shape=(3, 32, 32), num_classes=10).network
    cut = copied_and_cut(network, 0.25, skip_first=3, skip_last=True, pointwise=False)
    saved = 0
    shapes = [(16, 16), (16, 16), (16, 32), *3 * [(32, 32)], (32, 64), *3 * [(64, 64)], (64, 128)]
    for inputs, channels in [*shapes, *3 * [(128, 128)]]:
        saved += 9 * inputs * channels * 3 // 4 - channels * channels // 4
    dense = sum(p.numel() for p in network.parameters())
    assert sum(p.numel() for p in cut.parameters()) == dense - saved


def test_it_starts_from_the_warm_network():
    torch.manual_seed(0)
    warm = small_cnn(1, (8, 8), 10, width=4)
    warm.network.layer1[1].running_mean.fill_(3.0)
    method = Pufferfish(small_cnn(1, (8, 8), 10, width=4), 10, warmup=warm, share=1.0)
    image = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(method.eval()(image), warm.eval()(image), rtol=1e-3, atol=1e-4)
    method = Pufferfish(small_cnn(1, (8, 8), 10, width=4), 10, warmup=warm.requires_grad_(False), share=0.5)
    assert all(p.requires_grad for p in method.parameters())
    # Layer 1 and the classifier stay, 8 × 36 and 16 × 72 are cut to ranks 4 and 8.
    shapes = [tuple(p.shape) for p in method.parameters() if p.ndim > 1]
    assert shapes == [(4, 1, 3, 3), (4, 4, 3, 3), (8, 4, 1, 1), (8, 8, 3, 3), (16, 8, 1, 1), (10, 16)]


def test_a_run_makes_its_warm_network_and_says_what_is_left(train):
    _, folder = train("regularizer=pufferfish", "dataset=digits", "backbone=mlp", "backbone.hidden=[16]", "logger=none",
                      "progress=none", "trainer.max_epochs=1", "regularizer.skip_first=0")  # fmt: skip
    metrics = read_result(folder)["metrics"]
    pair, last = 4 * (64 + 16), 170
    assert metrics["test/macs_m"] == pytest.approx((pair + 160) / 1e6, rel=1e-6)
    assert metrics["test/params_m"] == pytest.approx((pair + 16 + last) / 1e6, rel=1e-6)
    assert metrics["test/params_ratio"] == pytest.approx((pair + 16 + last) / (64 * 16 + 16 + last), rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_mistakes(share):
    network = mlp(1, (2, 2), 3, hidden=(4, 4))
    with pytest.raises(UserError, match=r"share in \(0, 1\]"):
        Pufferfish(network, 3, warmup=mlp(1, (2, 2), 3, hidden=(4, 4)), share=share)
