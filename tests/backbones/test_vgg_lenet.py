"""VGG against torchvision's, LeNet against a count by hand."""

import pytest
import torch
import torchvision
from torch import nn

from regbench.backbones.lenet import lenet
from regbench.backbones.vgg import vgg
from regbench.errors import UserError


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_has_torchvisions_features_and_one_linear_layer(depth):
    with torch.device("meta"):
        count = sum(p.numel() for p in vgg(3, 10, depth=depth).parameters())
        features = getattr(torchvision.models, f"vgg{depth}_bn")().features
    assert count == sum(p.numel() for p in features.parameters()) + 512 * 10 + 10
    assert depth != 19 or count == 20_040_522


def test_vgg_computes_what_torchvisions_features_do():
    torch.manual_seed(0)
    network = vgg(3, 10, depth=11).eval().network
    features = torchvision.models.vgg11_bn().features.eval()
    own = [value for name, value in network.state_dict().items() if not name.startswith("fc")]
    features.load_state_dict(dict(zip(features.state_dict(), own, strict=True)))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(image), network.fc(features(image).flatten(1)))


def test_lenet_by_hand():
    network = lenet(1, (28, 28), 10)
    counts = [6 * 25 + 6, 16 * 6 * 25 + 16, 256 * 120 + 120, 120 * 84 + 84, 84 * 10 + 10]
    assert [
        sum(p.numel() for p in part.parameters()) for part in network.network if list(part.parameters())
    ] == counts
    assert sum(counts) == 44_426
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert isinstance(network.classifier, nn.Linear)


def test_mistakes():
    with pytest.raises(UserError, match="no depth of vgg '12'"):
        vgg(3, 10, depth=12)
    with pytest.raises(UserError, match="needs 16x16 pixels"):
        lenet(1, (8, 8), 10)
