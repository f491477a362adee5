"""The networks: published parameter counts, shapes, features, and the config files that build them."""

import copy
import importlib
import inspect
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from torch import nn

from regbench.backbones import build
from regbench.backbones.resnet import PreActBlock
from regbench.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "backbone"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
# Those that classify no images, or route them by value (not on the meta device): modules of regbench/backbones, each
# with tests of its own.
ELSEWHERE = ("autoencoder", "differential_equations", "dncnn", "graph", "lpn", "modular", "moe", "unet")
OTHERS = [
    name
    for name in NAMES
    if any(f"backbones.{module}." in (CONFIGS / f"{name}.yaml").read_text() for module in ELSEWHERE)
]
OWN = [name for name in NAMES if name not in ("timm", "custom", "none", *OTHERS)]


def config(name: str, **options) -> dict:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | options


def parameters(name: str, num_classes: int = 10, shape=(3, 32, 32), **options) -> int:
    with torch.device("meta"):
        backbone = build(config(name, **options), shape=shape, num_classes=num_classes)
    return sum(p.numel() for p in backbone.parameters())


def test_counts_of_resnets():
    """kuangliu/pytorch-cifar's networks for 10 classes, as several repositories print them."""
    assert parameters("resnet18_cifar") == 11_173_962
    assert parameters("resnet34_cifar") == 21_282_122
    assert parameters("resnet50_cifar") == 23_520_842
    assert parameters("resnet50_cifar", depth=101) == 42_512_970
    assert parameters("preact_resnet18") == 11_171_146
    assert parameters("preact_resnet18", depth=34) == 21_279_306
    assert parameters("preact_resnet18", final_norm=True) == 11_171_146 + 2 * 512


def test_count_of_resnext():
    """torchvision states 25,028,904 for its ResNeXt-50 32x4d with a 7×7 stem and 1000 classes."""
    stem, classifier = 64 * 3 * (7 * 7 - 3 * 3), (1000 - 100) * (2048 + 1)
    assert parameters("resnext50_32x4d_cifar", num_classes=100) == 25_028_904 - stem - classifier


def test_counts_of_wide_resnets():
    """WRN-28-10 and -16-10 as pytorchcv states them; WRN-16-8 and -28-8 added up by hand, layer by layer."""
    assert parameters("wide_resnet_28_10") == 36_479_194
    assert parameters("wide_resnet_28_10", num_classes=100) == 36_536_884
    assert parameters("wide_resnet_28_10", depth=16) == 17_116_634

    stages_16_8 = (
        (32 + 18_432 + 256 + 147_456 + 2_048) + (256 + 147_456 + 256 + 147_456),
        (256 + 294_912 + 512 + 589_824 + 32_768) + (512 + 589_824 + 512 + 589_824),
        (512 + 1_179_648 + 1_024 + 2_359_296 + 131_072) + (1_024 + 2_359_296 + 1_024 + 2_359_296),
    )
    stem, norm, classifier = 432, 1_024, 5_130
    assert parameters("wide_resnet_16_8") == stem + sum(stages_16_8) + norm + classifier == 10_961_370
    # two more blocks a stage: two norms and two convolutions each
    more = 4 * (256 + 147_456) + 4 * (512 + 589_824) + 4 * (1_024 + 2_359_296)
    assert parameters("wide_resnet_28_8") == 10_961_370 + more == 23_354_842


def test_counts_of_small_networks():
    """Added up by hand."""
    # 3→32→64→128 channels without biases, norms of 2 per channel, 128 features
    assert parameters("small_cnn") == 864 + 18_432 + 73_728 + 2 * (32 + 64 + 128) + 1_290 == 94_762
    # biases instead of norms; at 8×8 pixels one position is left: 128·512 + 512, then 512·10 + 10
    flat = 288 + 18_432 + 73_728 + (32 + 64 + 128) + 66_048 + 5_130
    assert parameters("small_cnn", shape=(1, 8, 8), head="flatten", norm="none") == flat
    assert (
        parameters("mlp", shape=(1, 28, 28), hidden=[300, 100]) == 784 * 300 + 300 + 30_100 + 1_010 == 266_610
    )
    assert parameters("mlp", shape=(1, 28, 28), hidden=[]) == 7_850
    # dim 96, patches of 4×4×3 = 48 numbers, 8×8 of them; a layer: qkv, projection, MLP 96→192→96, two norms
    layer = (3 * 96 * 96 + 3 * 96) + (96 * 96 + 96) + (96 * 192 + 192) + (192 * 96 + 96) + 2 * 192
    assert parameters("small_vit") == (48 * 96 + 96) + 64 * 96 + 4 * layer + 192 + 970 == 311_146
    # width 16: kuangliu's ResNet-18 with a quarter of the channels, 3·3·(input·output) a convolution
    conv = 9 * (3 * 16 + 4 * 16**2 + 16 * 32 + 3 * 32**2 + 32 * 64 + 3 * 64**2 + 64 * 128 + 3 * 128**2)
    shortcuts = 16 * 32 + 32 * 64 + 64 * 128
    norms = 2 * (5 * 16 + 5 * 32 + 5 * 64 + 5 * 128)
    assert parameters("resnet18_cifar", width=16) == conv + shortcuts + norms + 1_290


@pytest.mark.parametrize("name", NAMES)
def test_configs_show_all_options(name):
    node = config(name)
    assert node["name"] == name
    module, _, function = node["_target_"].rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters.values()
    options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if node["_target_"].endswith("resnet.resnet") and "groups" not in node:
        options -= {"groups", "base_width"}  # of ResNeXt
    assert set(node) == {"name", "_target_"} | options


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64)])
@pytest.mark.parametrize("name", OWN)
def test_shapes(name, shape):
    with torch.device("meta"):
        backbone = build(config(name), shape=shape, num_classes=7)
        out = backbone.outputs(torch.zeros(2, *shape), collect=backbone.stages)
    assert out.logits.shape == (2, 7)
    assert out.features.shape == (2, backbone.num_features)
    assert list(out.activations) == list(backbone.stages)
    assert len(backbone.stages) >= 2
    assert all(activation.shape[0] == 2 for activation in out.activations.values())


# One network of each kind, thin, so that it runs: the others differ in their numbers of channels and blocks.
THIN = {
    "resnet18_cifar": {"width": 8},
    "resnext50_32x4d_cifar": {"width": 16},
    "preact_resnet18": {"width": 8},
    "wide_resnet_16_8": {"widen_factor": 1, "dropout": 0.3},
    "small_cnn": {"width": 8, "head": "flatten"},
    "mlp": {"hidden": [16, 8]},
    "small_vit": {"dim": 16, "dropout": 0.1},
}


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize("training", [False, True])
def test_features_and_stages(name, training):
    torch.manual_seed(0)
    backbone = build(config(name, **THIN[name]), shape=(3, 16, 16), num_classes=5)
    assert backbone.training
    backbone.train(training)
    image = torch.randn(4, 3, 16, 16)
    out = backbone.outputs(image, collect=backbone.stages)
    torch.testing.assert_close(backbone.classifier(out.features), out.logits)
    if training:
        return
    plain = backbone.network(image)
    for stage in backbone.stages:
        # Swapping two images at a stage swaps their logits: all that comes later is applied image by image.
        swapped = backbone(image, at=stage, apply=lambda x: x[[1, 0, 2, 3]])
        torch.testing.assert_close(swapped, plain[[1, 0, 2, 3]])
        zeroed = backbone(image, at=stage, apply=torch.zeros_like)
        assert (zeroed[0] - plain[0]).abs().max() > 1e-4
        torch.testing.assert_close(zeroed[0], zeroed[1])  # nothing of the image gets past a zeroed stage


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("size", [8, 13, 28, 64])
def test_small_cnn_sizes(norm, size):
    backbone = build(config("small_cnn", norm=norm, head="flatten"), shape=(1, size, size), num_classes=3)
    backbone(torch.randn(2, 1, size, size)).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize(("size", "side"), [(8, 8), (28, 7), (32, 8), (64, 8), (13, 13)])
def test_small_vit_patches(size, side):
    backbone = build(config("small_vit", depth=1), shape=(1, size, size), num_classes=3)
    layer1 = backbone.outputs(torch.zeros(1, 1, size, size), collect=("layer1",)).activations["layer1"]
    assert layer1.shape == (1, side**2, 96)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_resnets_are_torchvisions_with_another_stem(name):
    network = build(config(f"{name}_cifar"), shape=(3, 16, 16), num_classes=5).eval().network
    reference = getattr(torchvision.models, name)(num_classes=5).eval()
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    reference.load_state_dict(network.state_dict())
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(network(image), reference(image))


@pytest.mark.parametrize(("out", "expected"), [(1, {2.0: 32.0, -1.0: -1.0}), (2, {2.0: 44.0, -1.0: 0.0})])
def test_preact_block_by_hand(out, expected):
    """One pixel, norms that do nothing, weights 3, 5 and 7: x + 5·relu(3·relu(x)), or with another number of
    channels 7·relu(x) + 5·relu(3·relu(x))."""
    block = PreActBlock(1, out, stride=1, dropout=0.0).eval()
    with torch.no_grad():
        for layer, value in ((block.conv1, 3), (block.conv2, 5), (block.shortcut, 7)):
            if layer is not None:
                layer.weight.zero_()
                middle = layer.weight.shape[-1] // 2
                layer.weight[0, 0, middle, middle] = value
        for x, y in expected.items():
            assert block(torch.full((1, 1, 1, 1), x))[0, 0].item() == pytest.approx(y, rel=1e-4)


@pytest.mark.parametrize("final_norm", [False, True])
def test_final_norm_makes_features_positive(final_norm):
    torch.manual_seed(0)
    options = {"width": 8, "final_norm": final_norm}
    backbone = build(config("preact_resnet18", **options), shape=(3, 8, 8), num_classes=5)
    assert (backbone.outputs(torch.randn(4, 3, 8, 8)).features >= 0).all() == final_norm


def test_initialisation():
    """He et al.: convolution weights have variance 2 / fan_out; WRN-10-4's last: fan_out 9 · 256."""
    torch.manual_seed(0)
    backbone = build(config("wide_resnet_16_8", depth=10, widen_factor=4), shape=(3, 8, 8), num_classes=10)
    weight = backbone.network.layer3[0].conv2.weight
    assert weight.var().item() == pytest.approx(2 / (9 * 256), rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=2e-4)
    assert backbone.classifier.bias.abs().sum() == 0


def test_dropout_of_wide_resnet_is_between_the_convolutions():
    torch.manual_seed(0)
    backbone = build(config("wide_resnet_16_8", widen_factor=1, dropout=0.3), shape=(3, 8, 8), num_classes=10)
    out = backbone.outputs(torch.randn(8, 3, 8, 8), collect=("layer2.0.dropout", "layer2.0.bn2"))
    kept, before = out.activations["layer2.0.dropout"], out.activations["layer2.0.bn2"].relu()
    positive = before > 0
    assert (kept[positive] == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)
    torch.testing.assert_close(kept[kept > 0], before[kept > 0] / 0.7)


def test_a_copy_is_independent():
    backbone = build(config("small_cnn", width=8), shape=(1, 8, 8), num_classes=3)
    clone = copy.deepcopy(backbone)
    torch.nn.init.zeros_(clone.classifier.weight)
    assert backbone.classifier.weight.abs().sum() > 0
    assert clone.outputs(torch.ones(2, 1, 8, 8), collect=("layer1",)).activations["layer1"].shape == (
        2,
        8,
        4,
        4,
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18_cifar", {"depth": 20}, "no ResNet of depth 20"),
        ("resnet18_cifar", {"groups": 32}, "bottleneck"),
        ("preact_resnet18", {"depth": 50}, "choose 18 or 34"),
        ("wide_resnet_28_10", {"depth": 27}, "6n . 4"),
        ("small_cnn", {"norm": "layer"}, "batch, group or none"),
        ("small_cnn", {"head": "mean"}, "pooled or flatten"),
        ("small_vit", {"patch_size": 5}, r"does not divide .* choose from \[1, 2, 4, 8, 16, 32\]"),
        ("small_vit", {"heads": 5}, "must divide dim"),
        (
            "mlp",
            {"dropuot": 0.1},
            r"no option of backbone 'mlp' 'dropuot'\. Did you mean dropout\? Known: dropout, hidden",
        ),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(UserError, match=message):
        build(config(name, **options), shape=(3, 32, 32), num_classes=10)


def test_small_images_are_refused():
    with pytest.raises(UserError, match="needs 8x8 pixels"):
        build(config("small_cnn"), shape=(1, 7, 7), num_classes=10)
