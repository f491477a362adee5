"""Max norm: the projection by hand, and on weights that another method reparameterises."""

import pytest
import torch
from torch import nn

from regbench.errors import UserError
from regbench.regularizers.classification.max_norm import MaxNorm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 5)
    )  # fmt: skip


def act(method: MaxNorm) -> None:
    with torch.no_grad():
        method.after_step()


def test_projection_by_hand():
    backbone = network()
    with torch.no_grad():
        backbone[6].weight.copy_(torch.tensor([[3.0, 0.0, 4.0, 0.0], [0.6, 0.8, 0.0, 0.0]]))  # norms 5 and 1
        backbone[6].bias.fill_(10.0)
    act(MaxNorm(backbone, 5, c=2.0))
    expected = torch.tensor([[1.2, 0.0, 1.6, 0.0], [0.6, 0.8, 0.0, 0.0]])
    assert torch.allclose(backbone[6].weight, expected, atol=1e-6)
    assert torch.equal(
        backbone[6].weight[1], torch.tensor([0.6, 0.8, 0.0, 0.0])
    )  # inside the ball: not a bit
    assert (backbone[6].bias == 10).all()


def test_filters_of_convolutions_are_units_and_the_classifier_is_left_out():
    backbone = network()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(100)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    act(MaxNorm(backbone, 5, c=1.0))
    after = backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"0.weight", "6.weight"}
    for name in changed:
        assert torch.allclose(after[name].flatten(1).norm(dim=1), torch.ones(len(after[name])), atol=1e-6)
        ratio = after[name] / before[name]  # one factor for each unit
        assert torch.allclose(
            ratio, ratio.flatten(1)[:, :1].view(-1, *[1] * (ratio.dim() - 1)).expand_as(ratio)
        )
    act(MaxNorm(backbone, 5, c=1.0, head=True))
    assert (backbone[8].weight.norm(dim=1) <= 1 + 1e-6).all()


def test_reparameterised_weights_are_projected_as_the_layer_uses_them():
    method = MaxNorm(network(), 5, c=0.2, stack=[{"weight_compander": {"slope": 2.0}}])
    layer = method.backbone.network[6]
    before, original = layer.weight.detach().clone(), layer.parametrizations.weight.original
    act(method)
    assert torch.allclose(layer.weight, torch.renorm(before, 2, 0, 0.2), atol=1e-6)
    assert (before.norm(dim=1) > 0.2).all()
    assert layer.parametrizations.weight.original is original  # the optimiser's parameter


def test_it_holds_after_each_step_of_a_run(train):
    overrides = ["regularizer=max_norm", "regularizer.c=0.3", "dataset=digits", "backbone=mlp", "optimizer.lr=0.5",
                 "trainer.max_epochs=1", "trainer.limit_train_batches=2", "logger=none", "progress=none"]  # fmt: skip
    code, folder = train(*overrides)
    assert code == 0
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    norms = [
        v.norm(dim=1).max().item() for k, v in state.items() if k.startswith("backbone") and v.dim() == 2
    ]
    assert norms[0] == pytest.approx(0.3, abs=1e-5)
    assert norms[1] <= 0.3 + 1e-6
    assert norms[2] > 0.3  # the classifier


def test_mistakes_stop_at_construction():
    with pytest.raises(UserError, match="c=0"):
        MaxNorm(network(), 5, c=0)
