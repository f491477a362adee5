"""Autoencoders: their shapes and sizes, and style blocks by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
import yaml

from regbench.backbones import build
from regbench.backbones.autoencoder import Autoencoder, StyleBlock, image_autoencoder, mlp_autoencoder
from regbench.errors import UserError
from regbench.paths import configs_dir


def connected(backbone, outputs: int = 6, inputs: int = 3) -> Autoencoder:
    torch.manual_seed(0)
    backbone.network.connect(outputs, inputs)
    return backbone.network


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_papers_encoder_and_decoder_added_up():
    """Of the released code's encoder image and decoder style_image, for 64 × 64 colours and 12 latents."""
    config = yaml.safe_load((configs_dir() / "backbone/autoencoder_image.yaml").read_text())
    with torch.device("meta"):
        network = connected(build(config, shape=(3, 64, 64), num_classes=0), 12, 12)
    convolutions = 9 * (3 * 32 + 32 * 32) + 16 * 32 * 32
    before = 32
    for width in (64, 128, 256):
        convolutions += 9 * (before * width + width * width) + 16 * width * width
        before = width
    norms = 2 * 3 * (32 + 64 + 128 + 256)
    dense = (4096 * 256 + 256) + (256 * 256 + 256)
    assert size(network.encoder) == convolutions + norms + dense
    assert size(network.head) == 256 * 12 + 12
    assert size(network.stem) == 12 * 256 + 256
    back, before, styles = 0, 256, 0
    for width in (256, 128, 64, 32):
        back += 9 * (before * width + width * width) + 16 * width * width
        styles += 3 * (256 * 2 * width + 2 * width)
        before = width
    constant, second, last = 256 * 4 * 4, 256 * 256 + 256, 9 * 32 * 3
    assert size(network.decoder) == back + styles + constant + second + last


@pytest.mark.parametrize("style", [True, False])
@pytest.mark.parametrize("repeats", [1, 2])
def test_images_come_back_in_their_shape(style, repeats):
    backbone = image_autoencoder(3, (16, 8), widths=(4, 8), repeats=repeats, dense=(7, 5), style=style)
    network = connected(backbone)
    image = torch.rand(2, 3, 16, 8)
    code = network.encode(image)
    assert code.shape == backbone(image).shape == (2, 6)
    out = network.decode(code[:, :3])
    assert out.shape == image.shape
    out.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_style_block_by_hand():
    """One channel; the kernel's middle is −2, so the picture is doubled and mirrored, leaky where it is negative."""
    block = StyleBlock(1, 1, 2, 3, 1)
    with torch.no_grad():
        block.convolution.weight.zero_()
        block.convolution.weight[0, 0, 1, 1] = -2
        block.style.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        block.style.bias.zero_()
    x = torch.tensor([[[[-1.0, 1.0], [-2.0, 2.0]]]])
    y = torch.tensor([[2.0, -0.4], [4.0, -0.8]])  # of −2 x, a fifth where negative
    normal = (y - y.mean()) / (y.var(unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(block(x, torch.tensor([[3.0, 0.5]]))[0, 0], 3 * normal + 0.5)
    # a negative scale or shift is cut off by the ReLU
    torch.testing.assert_close(block(x, torch.tensor([[3.0, -0.5]]))[0, 0], 3 * normal)
    assert not block(x, torch.tensor([[-3.0, 0.0]])).any()


def test_the_constant_starts_at_a_tenth():
    network = image_autoencoder(1, (16, 16), widths=(4, 8), dense=(5,)).network
    assert network.decoder.constant.shape == (8, 4, 4)
    assert network.decoder.constant.unique().item() == pytest.approx(0.1)


def test_dense_layers_by_hand():
    network = connected(mlp_autoencoder(1, (2, 3), hidden=(5, 4)))
    first, second = network.encoder[1], network.encoder[3]
    image = torch.rand(2, 1, 2, 3)
    code = network.head(F.relu(second(F.relu(first(image.flatten(1))))))
    torch.testing.assert_close(network.encode(image), code)
    back, last = network.decoder[0], network.decoder[2]
    z = torch.rand(2, 3)
    out = last(F.relu(back(F.relu(network.stem(z))))).view(2, 1, 2, 3)
    torch.testing.assert_close(network.decode(z), out)
    assert size(network) == (6 * 5 + 5) + (5 * 4 + 4) + (4 * 6 + 6) + (3 * 4 + 4) + (4 * 5 + 5) + (5 * 6 + 6)


def test_layers_start_as_pytorchs():
    """Uniform up to 1/√inputs, which is the released code's (Equinox) too."""
    network = connected(mlp_autoencoder(1, (8, 8), hidden=(50,)))
    assert network.encoder[1].weight.abs().max().item() == pytest.approx(1 / math.sqrt(64), rel=0.01)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: image_autoencoder(1, (24, 24)), r"24x24 pixels don't divide by 16"),
        (lambda: image_autoencoder(1, (16, 16), widths=()), "backbone.widths="),
        (lambda: image_autoencoder(1, (16, 16), repeats=0), "backbone.repeats=0"),
        (lambda: mlp_autoencoder(1, (4, 4), hidden=()), "backbone.hidden="),
    ],
)
def test_mistakes(make, says):
    with pytest.raises(UserError, match=says):
        make()
