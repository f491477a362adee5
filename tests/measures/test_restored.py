"""The callbacks on restored pictures: what they log and draw, and whom they refuse."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from regbench.errors import UserError
from regbench.measures import restored
from regbench.measures.restored import draw_rows
from regbench.regularizers.diffusion.ddpm import DDPM
from regbench.regularizers.diffusion.pseudo_inverse import PseudoInverse
from regbench.regularizers.restoration.denoiser import Denoiser
from regbench.regularizers.restoration.total_variation import TotalVariation
from support import read_result

DIGITS = ["dataset=mnist5k_pictures", "dataset.size=8", "dataset.test=10", "logger=none", "progress=none"]


def test_rows_of_pictures_by_hand(tmp_path):
    true = torch.tensor([0.0, 0.2, 0.4, 0.6]).view(2, 1, 1, 2)
    draw_rows(tmp_path / "rows.png", [true, 1 - true])
    assert np.asarray(Image.open(tmp_path / "rows.png")).tolist() == [[0, 51, 102, 153], [255, 204, 153, 102]]
    draw_rows(tmp_path / "colour.png", [torch.ones(2, 3, 4, 5)])
    assert np.asarray(Image.open(tmp_path / "colour.png")).shape == (4, 10, 3)


def test_restored_pictures_are_measured_and_drawn(train, monkeypatch):
    """With the mean squared error in the place of LPIPS's network: 4 times that of pixels in [0, 1], clipped."""
    squared = torch.nn.Module()
    squared.forward = lambda one, other: (one - other).square().mean((1, 2, 3))
    monkeypatch.setattr(restored, "lpips", lambda network, weights: squared)
    code, folder = train("regularizer=pseudo_inverse", *DIGITS, "callbacks=[default,lpips,restored]",
                         "callbacks.restored.count=3", "dataset.eval_batch_size=2")  # fmt: skip
    assert code == 0
    picture = np.asarray(Image.open(folder / "figures" / "restored.png"))
    assert picture.shape == (3 * 8, 3 * 8)
    assert np.array_equal(picture[8:16], picture[16:])  # the pseudo-inverse restores nothing
    assert not np.array_equal(picture[:8], picture[8:16])
    assert 0 < read_result(folder)["metrics"]["test/lpips"] < 4


@pytest.mark.parametrize(
    "method",
    [
        Denoiser(nn.Identity(), sigma=0.2),
        TotalVariation(
            nn.Identity(), steps=2, degradation={"kind": "inpainting", "missing": 0.5, "noise": 0.0}
        ),
        PseudoInverse(nn.Identity(), degradation={"kind": "hdr"}),
    ],
    ids=lambda method: method.slug,
)
def test_what_the_test_gives_are_pictures_between_0_and_1(method):
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    if isinstance(method, TotalVariation):
        method.on_test_start()
    found = method.test_step({"image": image, "index": torch.arange(2)}, 0)
    assert set(found) == set(restored.KINDS)
    torch.testing.assert_close(found["image"].float(), image)
    if method.slug == "denoiser":
        assert (found["degraded"] - image).std() == pytest.approx(0.2, rel=0.1)
    elif method.slug == "total_variation":
        assert 0.4 < (found["degraded"] == 0).float().mean() < 0.6  # half of the pixels are black
    else:  # of x in [−1, 1] clip(2 x, −1, 1) / 2: bright and dark pixels are brought to 3/4 and 1/4
        torch.testing.assert_close(found["degraded"], image.clamp(0.25, 0.75))


def test_methods_and_data_without_pictures_are_refused():
    callback, data = restored.RestoredPictures(), SimpleNamespace(shape=(1, 8, 8))
    callback.setup(SimpleNamespace(datamodule=data), Denoiser(nn.Identity()), "test")
    data.shape = (1,)  # numbers
    with pytest.raises(UserError, match="leave it out"):
        callback.setup(SimpleNamespace(datamodule=data), Denoiser(nn.Identity()), "test")
    data.shape = (1, 8, 8)
    with pytest.raises(UserError, match="leave it out"):
        callback.setup(SimpleNamespace(datamodule=data), DDPM(nn.Identity()), "fit")


def test_missing_weights_are_found_before_a_prior_is_trained(train, capsys, tmp_path):
    code, _ = train("regularizer=red_diff", *DIGITS, "callbacks=[default,lpips]",
                    f"callbacks.lpips.weights={tmp_path / 'none.pth'}", f"runs_dir={tmp_path / 'runs'}")  # fmt: skip
    assert code == 2
    assert "none.pth is no file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
