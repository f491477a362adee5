"""Networks from elsewhere: timm's by name, the user's by dotted name, and what errors say."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from regbench.backbones import Backbone, build
from regbench.errors import UserError


class Net(nn.Module):
    def __init__(self, num_classes: int, in_channels: int, width: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, num_classes)

    def forward(self, image):
        return self.fc(self.body(image))


def needs_secret(num_classes, secret):
    return Net(num_classes, 3, secret)


def takes_size(image_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size[0] * image_size[1], num_classes))


def features_only(in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def wants_backbone(num_classes, in_channels):
    return Backbone(Net(num_classes, in_channels), stages=("body.0",))


CONSTANT = 3


def custom(target: str, shape=(3, 8, 8), num_classes: int = 6, **options) -> Backbone:
    node = {"_target_": "regbench.backbones.factory.custom", "name": "custom", "target": target}
    return build(node | {"options": options}, shape=shape, num_classes=num_classes)


def timm_backbone(model_name: str, shape=(3, 32, 32), pretrained: bool = False, **options) -> Backbone:
    node = {"_target_": "regbench.backbones.timm_models.timm_model", "name": "timm", "model_name": model_name}
    return build(node | {"pretrained": pretrained, "options": options}, shape=shape, num_classes=6)


def test_custom_gets_what_its_signature_names():
    backbone = custom(f"{__name__}.Net", shape=(2, 8, 8), width=5)
    assert backbone.network.body[0].weight.shape == (5, 2, 1, 1)
    assert backbone.classifier.weight.shape == (6, 5)
    assert backbone.stages == ("body",)
    assert custom(f"{__name__}.takes_size", shape=(1, 4, 7)).num_features == 28
    assert custom(f"{__name__}.wants_backbone").stages == ("body.0",)


def test_custom_passes_the_classes_through_kwargs():
    """torchvision states 11,689,512 parameters for 1000 classes; 6 classes have 994 rows of 513 fewer."""
    with torch.device("meta"):
        backbone = custom("torchvision.models.resnet18", shape=(3, 64, 64))
    assert sum(p.numel() for p in backbone.parameters()) == 11_689_512 - 994 * 513
    assert backbone.stages == ("layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("Net", {"widht": 3}, r"no option of backbone '.*Net' 'widht'\. Did you mean width\? Known: width"),
        ("Nett", {}, "'Nett'. Did you mean Net"),
        ("CONSTANT", {}, "no class or function but of type int"),
        ("needs_secret", {}, "missing a required argument: 'secret'"),
        (
            "features_only",
            {},
            r"with 3x8x8 images and 6 classes gives \(1, 8\) for one image, not logits \(1, 6\)",
        ),
    ],
)
def test_custom_errors(target, options, message):
    with pytest.raises(UserError, match=message):
        custom(f"{__name__}.{target}", **options)


def test_custom_imports(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no_such_package.*PYTHONPATH"):
        custom("no_such_package.Net")
    with pytest.raises(UserError, match="'Net' is no dotted name"):
        custom("Net")
    (tmp_path / "regbench_broken_net.py").write_text("def net(:\n")
    (tmp_path / "regbench_lacking_net.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="SyntaxError"):
        custom("regbench_broken_net.net")
    with pytest.raises(UserError, match="No module named 'no_such_dependency'"):
        custom("regbench_lacking_net.net")
    with pytest.raises(UserError, match="unexpected keyword argument 'wdith'"):
        custom("torchvision.models.resnet18", wdith=3)


def test_image_that_does_not_fit():
    """AlexNet's third max-pool finds one pixel left of a 32×32 image."""
    with pytest.raises(UserError, match=r"'custom' with 3x32x32 images and 6 classes fails .*\(small_cnn"):
        custom("torchvision.models.alexnet", shape=(3, 32, 32))


def test_timm_resnet_with_few_channels():
    """timm's ResNet-18 is torchvision's: 11,689,512 parameters for 3 channels and 1000 classes."""
    with torch.device("meta"):
        backbone = timm_backbone("resnet18", shape=(1, 32, 32))
    assert sum(p.numel() for p in backbone.parameters()) == 11_689_512 - 2 * 64 * 7 * 7 - 994 * 513
    assert backbone.stages == ("layer1", "layer2", "layer3", "layer4")
    assert backbone.num_features == 512


def test_timm_vit_gets_the_image_size_and_options():
    backbone = timm_backbone(
        "vit_tiny_patch16_224", shape=(1, 28, 28), patch_size=7, depth=2, drop_path_rate=0.1
    )
    assert backbone.network.pos_embed.shape == (1, 1 + 4 * 4, 192)
    assert backbone.stages == ("blocks.0", "blocks.1")
    backbone.eval()
    out = backbone.outputs(torch.randn(2, 1, 28, 28), collect=("blocks.1",))
    assert out.activations["blocks.1"].shape == (2, 17, 192)
    torch.testing.assert_close(backbone.classifier(out.features), out.logits)


def test_timm_network_with_a_convolution_as_classifier():
    backbone = timm_backbone("resnetv2_50", layers=(1, 1, 1, 1)).eval()
    out = backbone.outputs(torch.randn(2, 3, 32, 32))
    assert out.features.shape == (2, backbone.num_features) == (2, 2048)
    by_hand = out.features @ backbone.classifier.weight.flatten(1).T + backbone.classifier.bias
    torch.testing.assert_close(by_hand, out.logits)


def test_timm_errors():
    with pytest.raises(UserError, match=r"no model 'resnet5O'\. Did you mean .*resnet50"):
        timm_backbone("resnet5O")
    with pytest.raises(UserError, match="Invalid pretrained tag"):
        timm_backbone("resnet18.no_such_tag")
    with pytest.raises(UserError, match="unexpected keyword argument 'dorp_rate'"):
        timm_backbone("resnet18", dorp_rate=0.1)
    with pytest.raises(UserError, match=r"don't divide .*patch_size"):
        timm_backbone("vit_tiny_patch16_224", shape=(1, 28, 28), depth=1)


def test_timm_without_weights(monkeypatch):
    import timm.models

    def fail(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", fail)
    with pytest.raises(UserError, match=r"no route to host.*need a network .*pretrained=false"):
        timm_backbone("resnet18", pretrained=True)


def test_timm_is_imported_only_when_asked_for():
    program = (
        "import sys; from regbench.backbones import build;"
        "build({'_target_': 'regbench.backbones.resnet.resnet', 'width': 8}, shape=(1, 8, 8), num_classes=2);"
        "print('timm' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
