"""Backbone: features, activations and replaced activations, against passes through the layers by hand."""

import pytest
import torch
from torch import nn

from regbench.backbones import Backbone, as_backbone
from regbench.errors import UserError


def tiny() -> nn.Sequential:
    """Two single-number layers and a classifier to reckon with by hand: 2x, then 3x + 1, then (x, -x)."""
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2))
    with torch.no_grad():
        weights, biases = ([[2.0]], [[3.0]], [[1.0], [-1.0]]), (0.0, 1.0, 0.0)
        for layer, weight, bias in zip(network, weights, biases, strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.fill_(bias)
    return network


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_outputs_by_hand():
    backbone = as_backbone(tiny())
    out = backbone.outputs(torch.tensor([[1.0], [5.0]]), collect=("0", "1"))
    assert out.activations["0"].flatten().tolist() == [2, 10]
    assert out.activations["1"].flatten().tolist() == [7, 31]
    assert out.features.tolist() == [[7], [31]]
    assert out.logits.tolist() == [[7, -7], [31, -31]]
    assert hooks(backbone) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pixels_come_in_the_weights_type(dtype):
    """Also in a pass with hooks; autocast's own types are left to it, and numbers that are no pixels as they are."""
    backbone = as_backbone(tiny().to(dtype))
    assert backbone(torch.ones(1, 1)).dtype == dtype
    assert backbone.outputs(torch.ones(1, 1)).features.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert as_backbone(tiny())(torch.ones(1, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert as_backbone(nn.Embedding(3, 2))(torch.tensor([2])).shape == (1, 2)


def test_a_mix_after_a_layer_by_hand():
    """Mixing 1/4 of the other image after layer 0: (2, 10) → (4, 8) → 3x + 1 → (13, 25)."""
    backbone = as_backbone(tiny())

    def mix(x):
        return 0.75 * x + 0.25 * x.flip(0)

    image = torch.tensor([[1.0], [5.0]])
    assert backbone(image, at="0", apply=mix).tolist() == [[13, -13], [25, -25]]
    out = backbone.outputs(image, collect=["0"], at="0", apply=mix)
    assert out.activations["0"].flatten().tolist() == [4, 8]
    assert out.features.flatten().tolist() == [13, 25]
    assert hooks(backbone) == 0


def test_gradients_flow_through_a_replaced_activation():
    """logits[0] = 3·(2x·5) + 1 where the activation 2x is multiplied by 5: derivative 30."""
    image = torch.tensor([[1.0]], requires_grad=True)
    as_backbone(tiny())(image, at="0", apply=lambda x: 5 * x)[0, 0].backward()
    assert image.grad.item() == 30


def test_hooks_are_gone_after_a_failure():
    backbone = as_backbone(tiny())

    def fail(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        backbone.outputs(torch.ones(1, 1), collect=("1",), at="0", apply=fail)
    assert hooks(backbone) == 0


def test_a_user_hook_stays():
    backbone = as_backbone(tiny())
    calls = []
    backbone.network[0].register_forward_hook(lambda *args: calls.append(1))
    backbone.outputs(torch.ones(1, 1), collect=("0",))
    assert calls == [1]
    assert hooks(backbone) == 1


def test_unknown_layers_name_the_nearest():
    network = nn.Sequential()
    network.add_module("encoder", nn.Linear(1, 1))
    network.add_module("fc", nn.Linear(1, 2))
    with pytest.raises(UserError, match=r"no layer 'encodr'\. Did you mean encoder\? Its stages: encoder"):
        as_backbone(network)(torch.ones(1, 1), at="encodr", apply=torch.zeros_like)
    with pytest.raises(UserError, match="no layer 'missing'"):
        Backbone(network, stages=("missing",))


def test_layers_without_one_plain_output_are_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.unused = nn.Identity(), nn.Identity()
            self.inplace, self.before = nn.ReLU(inplace=True), nn.Identity()
            self.rnn = nn.GRU(1, 1)
            self.fc = nn.Linear(1, 2)

        def forward(self, x):
            x = self.twice(self.twice(x)) * 1
            x = self.inplace(self.before(x))
            return self.fc(self.rnn(x)[0])

    backbone, image = as_backbone(Odd()), torch.ones(3, 1)
    with pytest.raises(UserError, match="'twice' runs more than once"):
        backbone(image, at="twice", apply=torch.zeros_like)
    with pytest.raises(UserError, match="'twice' runs more than once"):
        backbone.outputs(image, collect=("twice",))
    with pytest.raises(UserError, match="never calls its layer 'unused'"):
        backbone(image, at="unused", apply=torch.zeros_like)
    with pytest.raises(UserError, match="'rnn' gives a tuple"):
        backbone.outputs(image, collect=("rnn",))
    with pytest.raises(UserError, match="'before' is overwritten in place"):
        backbone.outputs(image, collect=("before",))
    with pytest.raises(UserError, match="go together"):
        backbone(image, at="before")
    assert hooks(backbone) == 0
    with torch.inference_mode():  # no version counters here
        assert backbone.outputs(image, collect=("inplace",)).activations["inplace"].tolist() == [
            [1],
            [1],
            [1],
        ]


def test_plain_modules_get_classifier_and_stages():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)
            self.blocks = nn.ModuleList(
                [nn.Sequential(nn.Conv2d(2, 2, 1)), nn.Sequential(nn.Conv2d(2, 2, 1))]
            )
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))

    backbone = as_backbone(Net())
    assert backbone.stages == ("blocks.0", "blocks.1")
    assert backbone.classifier is backbone.network.head[2]
    assert backbone.num_features == 5
    assert as_backbone(backbone) is backbone
    assert as_backbone(tiny()).stages == ("0", "1")


def test_a_network_without_a_linear_layer_gives_logits_only():
    backbone = as_backbone(nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert backbone(torch.ones(4, 1, 3, 3)).shape == (4, 2)
    assert backbone.stages == ()
    with pytest.raises(UserError, match=r"no nn\.Linear"):
        backbone.outputs(torch.ones(4, 1, 3, 3))
    assert hooks(backbone) == 0


def test_weights_keep_their_names():
    assert sorted(as_backbone(tiny()).state_dict()) == [
        f"network.{i}.{k}" for i in range(3) for k in ("bias", "weight")
    ]


def test_compiled():
    """The plain pass compiles whole and stays compiled; passes with hooks between them, each with its own
    function, run in eager mode and give 3·(2x + k) + 1."""
    backbone = as_backbone(tiny())
    image = torch.tensor([[1.0], [5.0]])
    torch.compiler.reset()
    whole = torch.compile(backbone, backend="eager", fullgraph=True)
    assert whole(image).tolist() == [[7, -7], [31, -31]]

    runs = []

    def backend(graph, example_inputs):
        return lambda *args: (runs.append(1), graph(*args))[1]

    torch.compiler.reset()
    compiled = torch.compile(backbone, backend=backend)
    for k in range(12):
        assert compiled(image).tolist() == [[7, -7], [31, -31]]
        assert compiled(image, at="0", apply=lambda x, k=k: x + k)[:, 0].tolist() == [7 + 3 * k, 31 + 3 * k]
    assert len(runs) == 12
