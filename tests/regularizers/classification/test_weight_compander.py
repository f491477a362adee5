"""Weight compander against numbers worked out by hand (a = 0.1, b = 0.05), in float64, and on networks."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader

from regbench.errors import UserError
from regbench.measures.weights import Weights, participation_ratio, pruned, spread
from regbench.regularizers.classification.none import NoRegularizer
from regbench.regularizers.classification.weight_compander import (
    FUNCTIONS,
    Compander,
    WeightCompander,
    compand,
    expand,
)

A, B = 0.1, 0.05
CURVES = [fn for fn in FUNCTIONS if fn not in ("linear", "identity")]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)
    )  # fmt: skip


def batch(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.arange(size) % 5


def step(method: WeightCompander, lr: float) -> None:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr)
    method.training_loss(batch()).backward()
    optimizer.step()


# -- the function --------------------------------------------------------------------------------------------


def test_values_by_hand():
    v = double(0.0, 0.01, 0.05, 0.1, 0.2, 1.0, -0.05)
    expected = double(0.0, 0.0197396, 0.0785398, 0.1107149, 0.1325818, 0.1520838, -0.0785398)
    assert torch.allclose(compand(v, A, B), expected, atol=5e-8)
    assert compand(double(1e12), A, B).item() == pytest.approx(0.1570796, abs=5e-8)
    assert compand(double(0.1165561), A, B).item() == pytest.approx(0.1165561, abs=5e-8)  # the fixed point
    assert expand(double(0.05), A, B).item() == pytest.approx(0.0273151, abs=5e-8)


def test_slopes_by_hand():
    v = double(0.0, 0.05, 0.2).requires_grad_()
    compand(v, A, B).sum().backward()
    assert torch.allclose(v.grad, double(2.0, 1.0, 0.1176471), atol=5e-8)
    v, a, b = (double(x).requires_grad_() for x in (0.05, A, B))
    compand(v, a, b).backward()
    assert (v.grad.item(), a.grad.item(), b.grad.item()) == pytest.approx((1.0, 0.7853982, -1.0), abs=5e-8)


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_every_function_is_odd_increasing_and_has_its_slope_and_inverse(fn):
    v = torch.linspace(-0.3, 0.3, 61, dtype=torch.float64)
    w = compand(v, A, B, fn)
    assert torch.allclose(w, -w.flip(0), atol=1e-15)
    assert (w.diff() > 0).all()
    assert torch.allclose(expand(w, A, B, fn)[20:41], v[20:41], atol=1e-12)  # |v| <= 2 b: far from the clamp
    slope = compand(double(1e-9), A, B, fn).item() / 1e-9
    assert slope == pytest.approx(1.0 if fn == "identity" else 2.0, rel=1e-6)
    point, a, b = (double(x).requires_grad_() for x in (0.07, A, B))
    assert torch.autograd.gradcheck(lambda v, a, b: compand(v, a, b, fn), (point, a, b))


@pytest.mark.parametrize(
    ("fn", "bound"), [("arctan", A * math.pi / 2), ("tanh", A), ("softsign", A), ("erf", A)]
)
def test_bound_and_clamp(fn, bound):
    assert compand(double(1e9), A, B, fn).item() == pytest.approx(bound)
    beyond = expand(double(10.0, -10.0), A, B, fn)  # the tangent alone would wrap around
    assert beyond.isfinite().all()
    assert torch.allclose(compand(beyond, A, B, fn), double(0.99 * bound, -0.99 * bound), atol=1e-12)


def test_one_step_of_sgd_by_hand():
    """L = (w − 1)² / 2 from w = 0.05 with learning rate 0.01; plain weights would come to 0.0595."""
    v = expand(double(0.05), A, B).requires_grad_()
    (0.5 * (compand(v, A, B) - 1).square()).backward()
    assert v.grad.item() == pytest.approx(-1.4632872, abs=5e-8)
    moved = v.detach() - 0.01 * v.grad
    assert moved.item() == pytest.approx(0.0419480, abs=5e-8)
    assert compand(moved, A, B).item() == pytest.approx(0.0698050, abs=5e-8)


def test_effective_rate_and_decay_by_hand():
    """A step η on v moves w by η Psi'(v)², decay λ of v moves it by −η λ Psi'(v) v = −η λ (a / 2) sin(2 w / a)."""
    w = double(0.05, 0.0, 0.12, 0.15, 0.0785398)
    v = expand(w, A, B).requires_grad_()
    (slope,) = torch.autograd.grad(compand(v, A, B).sum(), v)
    assert torch.allclose(slope.square()[:4], double(2.3725312, 4.0, 0.0689621, 0.0001002), atol=5e-8)
    decay = (slope * v)[[0, 4, 2, 3]]
    assert torch.allclose(decay, double(0.0420735, 0.05, 0.0337732, 0.0070560), atol=5e-8)


@pytest.mark.parametrize(("r", "s", "point"), [(3, 1.25, 2.278), (2, 1.5, 1.935), (1, 2, 1.166)])
def test_fixed_points_in_standard_deviations(r, s, point):
    assert compand(double(point), r, r / s).item() == pytest.approx(point, abs=5e-4)


def test_share_of_gaussian_weights_that_is_clamped():
    for r, share in ((2, 0.0017), (1, 0.116)):  # erfc(0.99 r π / 2 / √2)
        w = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        start = compand(expand(w, r, r / 1.25), r, r / 1.25)
        assert (start - w).abs().gt(1e-9).double().mean().item() == pytest.approx(share, rel=0.15)


# -- the method ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", FUNCTIONS)
@pytest.mark.parametrize("learn_shape", [False, True])
def test_the_network_starts_as_without_the_method(fn, learn_shape):
    if (fn, learn_shape) == ("identity", True):
        pytest.skip("refused")
    image, _ = batch()
    expected = network().eval()(image)
    method = WeightCompander(network(), 5, fn=fn, learn_shape=learn_shape).eval()
    assert torch.allclose(method(image), expected, atol=1e-6)


def test_every_layer_has_its_own_shape_and_nothing_else_is_touched():
    plain = network()
    method = WeightCompander(network(), 5, rel_bound=2.0, slope=1.5)
    found = {
        name: parametrize.is_parametrized(layer)
        for name, layer in method.backbone.network.named_children()
        if list(layer.parameters())
    }
    assert found == {"0": True, "1": False, "3": True, "7": False, "8": True, "10": True}  # no norm layer
    for i in (0, 3, 8, 10):
        sigma = plain[i].weight.std(correction=0)
        shape = method.backbone.network[i].parametrizations.weight[0].shape
        assert shape.tolist() == pytest.approx([2 * sigma.item(), 2 * sigma.item() / 1.5], rel=1e-6)
        assert torch.equal(plain[i].bias, method.backbone.network[i].bias)
    fixed = WeightCompander(network(), 5, a=0.3, b=0.2).backbone.network[3].parametrizations.weight[0].shape
    assert fixed.tolist() == pytest.approx([0.3, 0.2])
    assert not parametrize.is_parametrized(
        WeightCompander(network(), 5, exclude_head=True).backbone.classifier
    )


def test_raw_start_puts_the_usual_weights_into_the_parameters():
    plain, method = network(), WeightCompander(network(), 5, init="raw", a=0.1, b=0.05)
    layer = method.backbone.network[8]
    assert torch.equal(layer.parametrizations.weight.original, plain[8].weight)
    assert torch.allclose(layer.weight, 0.1 * torch.atan(plain[8].weight / 0.05))


@pytest.mark.parametrize("options", [{"fn": "identity"}, {"a": 1000.0, "b": 1000.0}])
def test_in_the_limit_a_step_is_that_of_plain_training(options):
    """a = b = 1000: Psi(0.3) = 0.3 − 9e-9."""
    method, plain = WeightCompander(network(), 5, **options), NoRegularizer(network(), 5)
    for m in (method, plain):
        step(m, lr=0.1)
    image, _ = batch()
    assert compand(double(0.3), 1000, 1000).item() == pytest.approx(0.3 - 9e-9, abs=1e-11)
    # float32 rounds v / b and its multiple: 1e-7 of a weight
    assert torch.allclose(method.eval()(image), plain.eval()(image), atol=1e-6)


def test_linear_control_is_plain_training_of_the_weights_at_slope_squared_times_the_rate():
    method = WeightCompander(network(), 5, fn="linear", slope=2.0)
    plain = NoRegularizer(network(), 5)
    step(method, lr=0.05)
    plain.training_loss(batch()).backward()
    for i in (0, 3, 8, 10):
        layer = plain.backbone.network[i]
        moved = layer.weight - 0.05 * 4 * layer.weight.grad
        assert torch.allclose(method.backbone.network[i].weight, moved, atol=1e-6)
        assert torch.allclose(method.backbone.network[i].bias, layer.bias - 0.05 * layer.bias.grad, atol=1e-6)


@pytest.mark.parametrize("fn", CURVES)
def test_bound_holds_at_any_learning_rate(fn):
    method = WeightCompander(network(), 5, fn=fn)
    for _ in range(3):
        step(method, lr=1e4)
    for layer in method.backbone.modules():
        if parametrize.is_parametrized(layer):
            a = layer.parametrizations.weight[0].shape[0].item()
            assert layer.weight.abs().max().item() <= a * (math.pi / 2 if fn == "arctan" else 1) * (1 + 1e-6)


def test_folded_network_is_the_plain_one():
    method = WeightCompander(network(), 5, learn_shape=True)
    step(method, lr=0.1)
    image, _ = batch()
    expected = method.eval()(image)
    plain = method.plain_backbone()
    assert set(plain.network.state_dict()) == set(network().state_dict())
    assert torch.allclose(plain.eval()(image), expected, atol=1e-7)


def test_learnt_shape_has_its_own_rate_and_no_decay():
    method = WeightCompander(network(), 5, learn_shape=True, shape_lr_mult=0.2)
    (group,) = method.parameter_options()
    assert (group["weight_decay"], group["lr_factor"], len(group["params"])) == (0.0, 0.2, 4)
    before = [p.exp() for p in group["params"]]
    step(method, lr=0.1)
    assert all(
        (p.exp() > 0).all() and not torch.equal(p.exp(), old)
        for p, old in zip(group["params"], before, strict=True)
    )
    assert WeightCompander(network(), 5).parameter_options() == []
    assert {
        name for name in WeightCompander(network(), 5).state_dict() if "fixed_shape" in name
    }  # survives a resume


def test_a_layer_with_batch_norm_behind_it_gives_log_a_no_gradient():
    """The scale of such a layer's weights changes nothing: dL / d log a = Σ w dL / dw = 0."""
    method = WeightCompander(network(), 5, learn_shape=True)
    method.training_loss(batch()).backward()
    first, second = (method.backbone.network[i].parametrizations.weight[0].log_shape.grad for i in (0, 3))
    assert abs(first[0]) < 1e-3 * abs(first[1])
    assert abs(second[0]) > 1e-3 * abs(second[1])


def test_psi_in_single_precision():
    """Under autocast, and where the parameters themselves are 16-bit: the bound's neighbourhood stays finite."""
    method = WeightCompander(network(), 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method.backbone.network[8].weight.dtype == torch.float32
        method.training_loss(batch()).backward()
    assert method.backbone.network[8].parametrizations.weight.original.grad.isfinite().all()
    half = Compander("arctan", torch.tensor(0.1), torch.tensor(0.08), learn=False)
    w = torch.tensor([0.05, 0.2, -1.0], dtype=torch.float16)
    back = half(half.right_inverse(w))
    assert back.dtype == torch.float16
    assert back.tolist() == pytest.approx([0.05, 0.99 * 0.157080, -0.99 * 0.157080], rel=2e-3)


def test_on_top_of_another_parametrisation_the_bound_holds_and_the_start_is_the_same():
    backbone = network()
    expected = backbone[8].weight.detach().clone()
    parametrizations.weight_norm(backbone[8])
    method = WeightCompander(backbone, 5)
    layer = method.backbone.network[8]
    assert [type(p).__name__ for p in layer.parametrizations.weight] == ["_WeightNorm", "Compander"]
    assert torch.allclose(layer.weight, expected, atol=1e-6)
    step(method, lr=1e4)
    a = layer.parametrizations.weight[1].shape[0].item()
    assert layer.weight.abs().max().item() <= a * math.pi / 2 * (1 + 1e-6)


def test_on_top_of_something_without_an_inverse_it_is_refused():
    class Square(nn.Module):
        def forward(self, x):
            return x.square()

    backbone = network()
    parametrize.register_parametrization(backbone[8], "weight", Square())
    with pytest.raises(UserError, match="parametrised already, by something without"):
        WeightCompander(backbone, 5)
    WeightCompander(network(), 5, init="raw")


def test_layers_that_it_can_not_take_are_refused():
    shared = network()
    shared.add_module("again", nn.Linear(32, 16))
    shared[-1].weight = shared[8].weight
    with pytest.raises(UserError, match="share one weight"):
        WeightCompander(shared, 5)
    zero = network()
    nn.init.zeros_(zero[10].weight)
    with pytest.raises(UserError, match="start all alike"):
        WeightCompander(zero, 5)
    WeightCompander(zero, 5, exclude_head=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fn": "arctann"}, "Did you mean arctan"),
        ({"init": "inverted"}, "Did you mean inverse"),
        ({"rel_bound": 0.0}, "rel_bound=0.0"),
        ({"slope": -1.0}, "slope=-1.0"),
        ({"shape_lr_mult": -0.1}, "shape_lr_mult=-0.1"),
        ({"a": 0.1}, "give both"),
        ({"a": 0.1, "b": 0.0}, "b=0.0"),
        ({"fn": "identity", "learn_shape": True}, "no shape to learn"),
    ],
)
def test_mistakes_stop_at_construction(options, message):
    with pytest.raises(UserError, match=message):
        WeightCompander(network(), 5, **options)


# -- the measures --------------------------------------------------------------------------------------------


def test_participation_ratio_of_known_distributions():
    assert participation_ratio(double(2, -2, 2, 2)).item() == 1.0
    assert participation_ratio(double(0, 0, 5, 0)).item() == 0.25
    n = 400_000
    p = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    normal = torch.erfinv(2 * p - 1) * math.sqrt(2)
    assert participation_ratio(2 * p - 1).item() == pytest.approx(5 / 9, abs=1e-4)
    assert participation_ratio(normal).item() == pytest.approx(1 / 3, abs=1e-3)
    laplace = -(1 - 2 * p).abs().log() * (2 * p - 1).sign()
    assert participation_ratio(laplace).item() == pytest.approx(1 / 6, abs=2e-3)
    companded = compand(normal, 1.0, 0.5)  # a = σ, slope 2
    assert participation_ratio(companded).item() == pytest.approx(0.691, abs=1e-3)


def test_spread_by_hand():
    # σ² = (0 + 0.01 + 4 + 4) / 4 − mean²; mean = 0.025
    sigma = math.sqrt(8.01 / 4 - 0.025**2)
    found = spread(double(0.0, 0.1, 2.0, -2.0)).tolist()
    assert found == pytest.approx([8.01**2 / (4 * 32.0001), 2 / sigma, 0.5])


def test_pruning_zeroes_the_smallest_effective_weights_of_a_copy():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, -0.1, 0.2, -0.4]]))
    method = WeightCompander(layer, 1)
    cut = pruned(method.backbone, 0.5)
    assert torch.allclose(cut.network.weight, torch.tensor([[0.3, 0.0, 0.0, -0.4]]), atol=1e-6)
    assert torch.allclose(layer.weight, torch.tensor([[0.3, -0.1, 0.2, -0.4]]), atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_callback_measures_any_method(tmp_path, share):
    import pytorch_lightning as pl

    method = WeightCompander(network(), 5)
    image, label = batch()
    data = DataLoader([{"image": x, "label": y} for x, y in zip(image, label, strict=True)], batch_size=6)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[Weights(share)],
                         default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(method, data)
    assert {"train/participation_ratio", "train/max_over_sigma", "train/near_zero"} <= set(
        trainer.callback_metrics
    )
    (found,) = trainer.test(method, data, verbose=False)
    layers = [m for m in method.backbone.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    expected = torch.stack([spread(layer.weight) for layer in layers]).mean(0)
    names = ("participation_ratio", "max_over_sigma", "near_zero")
    assert [found[f"test/{name}"] for name in names] == pytest.approx(expected.tolist(), rel=1e-6)
    assert ("test/pruning_drop" in found) == bool(share)
    if share:
        cut = pruned(method.backbone, share).eval()(image).argmax(1).eq(label).float().mean()
        assert found["test/pruning_drop"] == pytest.approx(found["test/accuracy"] - cut.item(), abs=1e-6)


def test_callback_refuses_a_share_that_leaves_nothing():
    with pytest.raises(UserError, match="share=1"):
        Weights(1.0)
