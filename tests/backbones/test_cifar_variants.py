"""DenseNet-121, ResNeXt-29, PyramidNet-200 and ResNet-101 for CIFAR: parameter counts, and what each layer does."""

from pathlib import Path

import pytest
import torch
import yaml

from regbench.backbones import build
from regbench.backbones.cifar_variants import PyramidBlock
from regbench.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "backbone"


def network(name: str, num_classes: int = 10, **options):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | options
    return build(config, shape=(3, 32, 32), num_classes=num_classes)


def parameters(name: str, num_classes: int = 10, **options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in network(name, num_classes, **options).parameters())


def test_count_of_densenet():
    """torchvision states 7,978,856 for its DenseNet-121 with a 7×7 stem, its norm, and 1000 classes."""
    stem, norm, classifier = 64 * 3 * (7 * 7 - 3 * 3), 2 * 64, (1000 - 10) * (1024 + 1)
    assert parameters("densenet121_cifar") == 7_978_856 - stem - norm - classifier == 6_956_298


def test_count_of_resnext():
    """Added up by hand; Xie et al. 2017 state 34.4 M."""

    def block(into: int, middle: int, out: int, first: bool) -> int:
        grouped = 9 * middle * middle // 8
        shortcut = into * out + 2 * out if first else 0
        return into * middle + grouped + middle * out + 2 * (2 * middle) + 2 * out + shortcut

    stages = 0
    into = 64
    for middle, out in ((512, 256), (1024, 512), (2048, 1024)):
        stages += block(into, middle, out, True) + 2 * block(out, middle, out, False)
        into = out
    assert parameters("resnext29_8x64d") == 9 * 3 * 64 + 2 * 64 + stages + 10 * 1025
    assert parameters("resnext29_8x64d") == pytest.approx(34.4e6, abs=0.05e6)


def test_count_of_pyramidnet():
    """pytorchcv states 26,752,702. By hand for depth 11."""
    assert parameters("pyramidnet200") == 26_752_702
    # widths 16 + 8, 16 + 16, 16 + 24: channels 16 → 96 → 128 → 160
    count = 9 * 3 * 16 + 2 * 16
    for into, width in ((16, 24), (96, 32), (128, 40)):
        count += into * width + 9 * width**2 + 4 * width**2 + 2 * (into + 2 * width + 4 * width)
    assert parameters("pyramidnet200", depth=11, alpha=24) == count + 2 * 160 + 10 * 161


def test_count_of_resnet101():
    assert (
        parameters("resnet101_cifar") == 42_512_970
    )  # kuangliu/pytorch-cifar's, as several repositories print it


def test_pyramid_block_fills_up_with_zeros_and_pools():
    """With a zero last norm the block is its shortcut: averages of 2 × 2 pixels, then channels of zeros."""
    block = PyramidBlock(2, 3, stride=2).eval()
    torch.nn.init.zeros_(block.bn4.weight)
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = block(x)
    assert out.shape == (1, 12, 2, 2)
    assert out[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]  # the mean of 0, 1, 4, 5 and so on
    assert out[0, 2:].abs().sum() == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("densenet121_cifar", {"growth_rate": 4, "blocks": [2, 2]}),
        ("resnext29_8x64d", {"depth": 11, "groups": 2, "base_width": 4}),
        ("pyramidnet200", {"depth": 11, "alpha": 9}),
    ],
)
def test_a_stage_is_all_that_comes_after_it_sees(name, options):
    torch.manual_seed(0)
    backbone = network(name, **options).eval()
    image = torch.randn(4, 3, 16, 16)
    out = backbone.outputs(image, collect=backbone.stages)
    torch.testing.assert_close(backbone.classifier(out.features), out.logits)
    for stage in backbone.stages:
        swapped = backbone(image, at=stage, apply=lambda x: x[[1, 0, 2, 3]])
        torch.testing.assert_close(swapped, out.logits[[1, 0, 2, 3]])
        zeroed = backbone(image, at=stage, apply=torch.zeros_like)
        torch.testing.assert_close(zeroed[0], zeroed[1])
    backbone.train()(image).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize("name", ["resnext29_8x64d", "pyramidnet200"])
def test_a_depth_that_is_not_9n_plus_2_is_refused(name):
    with pytest.raises(UserError, match=r"9n \+ 2"):
        network(name, depth=30)
