"""The penalty as it is added up over a network; the callbacks orthogonality and robustness; the Lipschitz network."""

import builtins

import pytest
import torch
from torch import nn

from regbench.backbones.lipschitz import MaxMin, lipschitz_cnn
from regbench.errors import UserError
from regbench.functional.orthogonality import conv_orthogonality, matrix_orthogonality
from regbench.measures.orthogonality import Orthogonality
from regbench.measures.robustness import Robustness
from regbench.regularizers.classification.orthogonal_conv import OrthogonalConv, why_left_out
from support import read_result


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, 2), nn.Conv2d(6, 12, 1, 2), nn.Conv2d(12, 12, 3, groups=2, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)
    )  # fmt: skip


def test_the_penalty_is_the_sum_over_the_layers_that_it_is_defined_for():
    net = network()
    first, second, dense = net[0].weight, net[1].weight, net[6].weight
    terms = [conv_orthogonality(first, 1), conv_orthogonality(second, 2), matrix_orthogonality(dense)]
    method = OrthogonalConv(net, 5, weight=0.1)
    assert method.penalty().item() == pytest.approx(0.1 * sum(terms).item(), rel=1e-6)
    assert method.left_out == {
        "2": "no orthogonal convolution of its sizes exists",  # 1 × 1 with stride 2, 6 to 12 channels: 12 > 6
        "3": "its channels are grouped",
    }
    without = OrthogonalConv(network(), 5, weight=0.1, dense=False)
    assert without.penalty().item() == pytest.approx(0.1 * sum(terms[:2]).item(), rel=1e-6)


def test_forms_by_hand():
    """One kernel with two taps √½ at opposite corners: R is 1 at the centre and ½ at the offsets ±(2, 2)."""
    net = nn.Sequential(
        nn.Conv2d(1, 1, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[0, 0, 0, 0] = net[0].weight[0, 0, 2, 2] = 0.5**0.5
    values = {
        form: OrthogonalConv(net, 2, weight=1.0, form=form).penalty().item()
        for form in ("conv", "ocnn", "kernel")
    }
    assert values == pytest.approx({"conv": 0.5, "ocnn": 0.5**0.5, "kernel": 0.0}, abs=1e-6)


def test_loss_is_cross_entropy_plus_the_penalty_and_its_gradient_reaches_the_kernels():
    net = network()
    method = OrthogonalConv(net, 5, weight=0.3)
    image, label = torch.randn(6, 1, 16, 16), torch.arange(6) % 5
    plain = nn.functional.cross_entropy(net(image), label)
    loss = method.training_loss((image, label))
    assert loss.item() == pytest.approx((plain + method.penalty()).item(), rel=1e-6)
    method.penalty().backward()
    assert net[0].weight.grad.abs().sum() > 0
    assert net[8].weight.grad is None  # the classifier


def test_under_autocast_the_penalty_is_in_float32():
    method = OrthogonalConv(network(), 5)
    expected = method.penalty()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.penalty(), expected)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Conv2d(4, 4, 3, dilation=2), "dilated"),
        (nn.Conv2d(4, 4, 2), "2 × 2"),
        (nn.Conv2d(4, 4, (1, 3)), "1 × 3"),
        (nn.Conv2d(4, 4, 3, (1, 2)), "strides differ"),
        (nn.Conv2d(1, 17, 3, 4), "no orthogonal convolution"),
    ],
)
def test_what_is_left_out(layer, words):
    assert words in why_left_out(layer)


def test_mistakes():
    with pytest.raises(UserError, match="weight >= 0"):
        OrthogonalConv(network(), 5, weight=-1)
    with pytest.raises(UserError, match="Did you mean conv"):
        OrthogonalConv(network(), 5, form="convv")
    with pytest.raises(UserError, match="no layer for its penalty"):
        OrthogonalConv(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 2)


# The network and what is measured ---------------------------------------------------------------------------------


def test_with_orthogonal_convolutions_the_networks_features_are_1_lipschitz():
    backbone = lipschitz_cnn(1, (16, 16), 5, width=8)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=0.01)
    kernels = [(m.weight, m.stride[0]) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    for _ in range(600):
        optimizer.zero_grad()
        sum(conv_orthogonality(kernel, stride) for kernel, stride in kernels).backward()
        optimizer.step()
    x = torch.randn(4, 1, 16, 16)
    y = x + 0.1 * torch.randn(4, 1, 16, 16)
    with torch.no_grad():
        features = [backbone.outputs(image).features for image in (x, y)]
    ratio = (features[0] - features[1]).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert ratio.max() < 1.01


def test_maxmin_keeps_norms():
    x = torch.randn(3, 6, 4, 4)
    assert torch.allclose(MaxMin()(x).norm(), x.norm())


CALLBACKS = ["callbacks=[default,orthogonality,robustness]", "callbacks.robustness.samples=60",
             "callbacks.robustness.steps=5", "callbacks.robustness.eps=[0.01,4.0]"]  # fmt: skip
RUN = ["dataset=digits", "backbone=lipschitz_cnn", "backbone.width=4", "trainer.max_epochs=2", "logger=none",
       "progress=none", "checkpoint.select=last"]  # fmt: skip


def test_the_callbacks_measure_and_change_no_other_number(train):
    _, plain = train("regularizer=none", *RUN, run_dir="plain")
    code, measured = train("regularizer=none", *RUN, *CALLBACKS, run_dir="measured")
    assert code == 0
    metrics, before = (read_result(folder)["metrics"] for folder in (measured, plain))
    assert {name: metrics[name] for name in before} == before
    assert 0 <= metrics["test/robust_4"] < metrics["test/robust_0.01"] <= 1
    assert metrics["test/robust_4"] < 0.2  # of images with a norm of about 3: the attack works
    assert abs(metrics["test/robust_0.01"] - metrics["test/accuracy"]) < 0.15  # 60 of the test images
    assert metrics["test/sigma_min"] <= metrics["test/sigma_max"]
    # the worst spectral error is at one end of the spectrum
    ends = [abs(metrics[f"test/sigma_{end}"] ** 2 - 1) for end in ("min", "max")]
    assert metrics["test/err_s_max"] == pytest.approx(max(ends), rel=1e-5)
    assert metrics["test/orth_max"] <= metrics["test/orth_sum"]


def test_mistakes_in_the_callbacks(train, capsys, monkeypatch):
    with pytest.raises(UserError, match="Did you mean l2_pgd"):
        Robustness(attack="l2_pdg")
    with pytest.raises(UserError, match="positive eps"):
        Robustness(eps=[])
    with pytest.raises(UserError, match="5 or more"):
        Orthogonality(size=3)
    code, _ = train(
        "regularizer=none", *RUN, "backbone=mlp", "~backbone.width", "callbacks=[default,orthogonality]"
    )
    assert code == 2
    real = builtins.__import__

    def no_foolbox(name, *args, **kwargs):
        if name.startswith("foolbox"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_foolbox)
    with pytest.raises(UserError, match=r"regbench\[robustness\]"):
        Robustness()
