"""Training a noise predictor, its samples, its network and its pictures."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from regbench.backbones import build
from regbench.backbones.unet import PretrainedUNet, UNet, time_code
from regbench.data import pictures
from regbench.data.builtin import load_mnist5k
from regbench.data.pictures import load_crops, load_digits
from regbench.errors import UserError
from regbench.functional.diffusion import alpha_bars, ddim_shares, denoised, noised, time_grid
from regbench.regularizers.diffusion import ddpm
from regbench.regularizers.diffusion.ddpm import DDPM, noise_loss
from support import history, ranks_of_two, read_result, weights

BARS = alpha_bars(1000, 1e-4, 0.02)
TINY = ["regularizer=ddpm", "dataset.size=8", "dataset.test=10", "backbone.channels=[8,8]", "trainer.max_epochs=1",
        "trainer.limit_train_batches=2", "logger=none", "progress=none"]  # fmt: skip


class Gaussian(nn.Module):
    """The exact eps of pixels that are independently N(1, .25)."""

    def forward(self, xt, time=None):
        ab = BARS[0 if time is None else int(time[0])]
        return math.sqrt(1 - ab) * (xt - math.sqrt(ab)) / (ab * 0.25 + 1 - ab)


def test_the_best_loss_of_a_gaussian():
    """Of N(1, s²) at a time with ab the best error is 1 − (1 − ab) / (ab s² + 1 − ab), here s² = .25 and t = 300."""
    draws = torch.Generator().manual_seed(0)
    x = 1 + 0.5 * torch.randn(64, 1, 32, 32, generator=draws)
    time, noise = torch.full((64,), 300), torch.randn(x.shape, generator=draws)
    found = noise_loss(Gaussian(), x, time, noise, torch.tensor(BARS).float())
    ab = BARS[300]
    assert found.item() == pytest.approx(1 - (1 - ab) / (ab * 0.25 + 1 - ab), rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_a_gaussian(eta):
    """Pixels of N(1, .25) in [−1, 1] are N(1, .0625) in [0, 1]."""
    found = DDPM(Gaussian(), 0).sample(4, (1, 24, 24), time_grid(250, 1000), eta=eta, seed=0)
    assert found.mean().item() == pytest.approx(1.0, abs=0.03)
    assert found.std().item() == pytest.approx(0.25, abs=0.025)


def test_denoised_undoes_noised():
    x, noise = torch.randn(4), torch.randn(4)
    torch.testing.assert_close(denoised(noised(x, noise, 0.3), noise, 0.3), x)
    torch.testing.assert_close(
        noised(x, noise, torch.tensor([0.3])), noised(x, noise, 0.3)
    )  # tensors of ab broadcast


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_shares_of_a_step_keep_the_variance(eta):
    fresh, kept = ddim_shares(0.4, 0.7, eta)
    assert fresh**2 + kept**2 == pytest.approx(0.3)


def test_steps_agree_with_diffusers():
    """A DDIM step with eta .5 of diffusers' scheduler, given the same variance noise."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(10)  # 900, 800 …
    xt, eps, z = torch.randn(3, 1, 1, 4, 4)
    theirs = scheduler.step(eps, 500, xt, eta=0.5, variance_noise=z).prev_sample
    fresh, kept = ddim_shares(BARS[500], BARS[400], 0.5)
    ours = math.sqrt(BARS[400]) * denoised(xt, eps, BARS[500]) + fresh * z + kept * eps
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_trained_is_the_student_and_tested_its_average(train):
    code, folder = train(*TINY, "regularizer.decay=0.5")
    assert code == 0
    state = weights(folder)
    pairs = {
        name.removeprefix("student."): value for name, value in state.items() if name.startswith("student.")
    }
    assert any(not torch.equal(value, state[f"backbone.{name}"]) for name, value in pairs.items())
    assert (
        0.5 < read_result(folder)["metrics"]["test/mse"] < 1.5
    )  # that of a network that predicts 0 is near 1
    assert "val/mse" in history(folder)[-1]


def test_the_average_takes_a_step_with_each_step_of_the_optimiser(train, monkeypatch):
    """Four batches, two for a step: decays (1 + 1) / (10 + 1), (1 + 2) / (10 + 2)."""
    decays = []
    monkeypatch.setattr(ddpm, "step_average", lambda average, network, decay: decays.append(decay))
    code, _ = train(*TINY, "trainer.limit_train_batches=4", "trainer.accumulate_grad_batches=2")
    assert code == 0
    assert decays == pytest.approx([2 / 11, 3 / 12])


def test_processes_draw_their_rows_of_the_same_noise(monkeypatch):
    """Of two, one has images 0 and 2, the other one 1 and 3; what the network is shown is that of one process."""
    seen = []

    class Seeing(nn.Module):
        def forward(self, xt, time):
            seen.append((xt, time))
            return xt

    image = torch.rand(4, 1, 8, 8)
    DDPM(Seeing(), 0).training_loss({"image": image})
    for rank in ranks_of_two(monkeypatch):
        DDPM(Seeing(), 0).training_loss({"image": image[rank::2]})
        for whole, own in zip(seen[0], seen[-1], strict=True):
            assert torch.equal(own, whole[rank::2])


def test_half_precision_trains(train):
    code, folder = train(*TINY, "accelerator.precision=bf16-true")
    assert code == 0
    assert 0.5 < read_result(folder)["metrics"]["test/mse"] < 1.5


def test_a_frozen_network_stays_as_it_came(train):
    _, folder = train(*TINY, "regularizer.frozen=true")
    state = weights(folder)
    assert state["backbone.network.head.weight"].abs().sum() == 0  # as it starts
    assert state["student.network.head.weight"].abs().sum() == 0


def test_the_loss_reaches_the_student_alone():
    method = DDPM(UNet(1, (8, 8), channels=[8, 8]), 0)
    method.training_loss({"image": torch.rand(4, 1, 8, 8)}).backward()
    assert all(p.grad is None for p in method.backbone.parameters())
    assert method.student.network.head.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match="decay"):
        DDPM(UNet(1, (8, 8), channels=[8, 8]), 0, decay=1.0)


# -- networks ----------------------------------------------------------------------------------------------------------


def test_unet_keeps_the_shape_starts_at_zero_and_knows_the_time():
    torch.manual_seed(0)
    network = UNet(3, (8, 12), channels=[8, 16, 16])
    image = torch.randn(2, 3, 8, 12)
    assert torch.equal(network(image, torch.tensor([5, 700])), torch.zeros_like(image))
    nn.init.normal_(network.head.weight)
    early, late = network(image, torch.tensor([5, 5])), network(image, torch.tensor([700, 700]))
    assert not torch.allclose(early, late)
    torch.testing.assert_close(network(image, torch.tensor([5, 700]))[1], late[1])
    torch.testing.assert_close(network(image), network(image, torch.zeros(2, dtype=torch.long)))


def test_unet_by_its_config():
    """Parameters of one level of 8 channels on grey pictures, added up by hand."""
    convolution = 9 * 8 * 8 + 8
    block = (
        16 + 16 + convolution + convolution + (32 * 8 + 8)
    )  # two norms, two convolutions, the code of 32 numbers
    up = (
        32 + 16 + (9 * 16 * 8 + 8) + convolution + (32 * 8 + 8) + (16 * 8 + 8)
    )  # from 16 channels, with a shortcut
    expected = (8 * 32 + 32) + (32 * 32 + 32) + (9 * 8 + 8) + 2 * block + up + 16 + (9 * 8 + 1)
    config = {"_target_": "regbench.backbones.unet.UNet", "name": "unet", "channels": [8]}
    network = build(config, shape=(1, 8, 8), num_classes=0)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_time_code_by_hand():
    found = time_code(torch.tensor([1]), 4)  # frequencies 1 and 1 / 10,000
    torch.testing.assert_close(
        found, torch.tensor([[math.cos(1), math.cos(1e-4), math.sin(1), math.sin(1e-4)]])
    )


def test_unet_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="multiple of 4"):
        UNet(1, (14, 14), channels=[8, 8, 8])
    with pytest.raises(UserError, match="multiple of 8"):
        UNet(1, (16, 16), channels=[12])


def test_a_pretrained_network_comes_from_a_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=2, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours, image, time = (
        PretrainedUNet(1, folder=str(tmp_path)),
        torch.randn(2, 1, 8, 8),
        torch.tensor([3, 900]),
    )
    torch.testing.assert_close(ours(image, time), theirs(image, time).sample)
    with pytest.raises(UserError, match="channels"):
        PretrainedUNet(3, folder=str(tmp_path))
    with pytest.raises(UserError, match=r"config\.json"):
        PretrainedUNet(1, folder=str(tmp_path / "missing"))


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_digits_as_pictures(monkeypatch):
    originals = load_mnist5k()
    monkeypatch.setattr(pictures, "load_mnist5k", lambda: originals)
    sets = load_digits(size=28, test=20)
    assert (len(sets.train), len(sets.val), len(sets.test)) == (3600, 400, 20)
    image = sets.test.fields["image"]
    pixels = (image * 255).round().to(torch.uint8)
    assert all((originals.test.images == one).flatten(1).all(1).any() for one in pixels)
    small = load_digits(size=16, test=20)
    assert small.shape == (1, 16, 16)
    assert small.fingerprint != sets.fingerprint
    assert small.test.fields["image"].mean().item() == pytest.approx(image.mean().item(), rel=0.03)
    for options, says in (({"size": 4, "test": 20}, "size=4"), ({"size": 16, "test": 5}, "test=5")):
        with pytest.raises(UserError, match=says):
            load_digits(**options)


def test_crops_of_photographs(tmp_path):
    """Files as load_crops looks for them: a ramp of rows, 21 pictures to train and validate, one to test."""
    ramp = np.arange(16, dtype=np.uint8)[:, None] * np.ones((1, 24), dtype=np.uint8)
    for name, count in (("Train400", 21), ("Set12", 1), ("BSD68", 1)):
        (tmp_path / "denoising" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(ramp + i).save(tmp_path / "denoising" / name / f"{i:02}.png")
    sets = load_crops(tmp_path, size=8, each=3, test_each=6)
    assert (len(sets.train), len(sets.val), len(sets.test)) == (60, 3, 6)
    test = (sets.test.fields["image"] * 255).round()
    assert test[:, 0, 0, 0].tolist() == [0, 0, 0, 8, 8, 8]  # two rows of three crops
    assert torch.equal(test[0, 0, :, 0], torch.arange(8.0))
    first = (sets.train.fields["image"][:3, 0, 0, 0] * 255).round().tolist()
    assert first == sorted(first)  # three of the six of one picture, in their order
    assert torch.equal(
        load_crops(tmp_path, size=8, each=3, test_each=6).val.fields["image"], sets.val.fields["image"]
    )
    assert len(load_crops(tmp_path, size=8, each=1, test_each=2, pictures="BSD68").test) == 2
    with pytest.raises(UserError, match="denoising/Train400"):
        load_crops(tmp_path / "elsewhere", size=8, each=1, test_each=1)
    with pytest.raises(UserError, match="each=0"):
        load_crops(tmp_path, size=8, each=0, test_each=1)
    with pytest.raises(UserError, match="Set12"):
        load_crops(tmp_path, size=8, each=1, test_each=1, pictures="Set14")
    for options, says in (
        ({"pictures": "BSD68", "train": "Set12"}, "Train400"),
        ({"pictures": "BSD68", "train": "BSD68"}, "1 pictures are too few to split"),
        ({"colour": True}, "grey"),
    ):
        with pytest.raises(UserError, match=says):
            load_crops(tmp_path, size=8, each=1, test_each=1, **options)


def test_crops_larger_than_a_picture_are_refused(tmp_path):
    for name, count, side in (("Train400", 21, 24), ("Set12", 1, 16)):
        (tmp_path / "denoising" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (32, side)).save(tmp_path / "denoising" / name / f"{i:02}.png")
    with pytest.raises(UserError, match=r"size=20 .*Set12.* 16 × 32"):
        load_crops(tmp_path, size=20, each=1, test_each=1)


def test_crops_of_colour_photographs(tmp_path):
    """22 pictures of (i, i + 100, 255 - i) train, validate and test: the last 20 are the test's, one validates."""
    folder = tmp_path / "denoising" / "CBSD68"
    folder.mkdir(parents=True)
    for i in range(22):
        Image.new("RGB", (16, 9), (i, i + 100, 255 - i)).save(folder / f"{i:02}.png")
    options = {"size": 8, "each": 2, "test_each": 1, "pictures": "CBSD68", "train": "CBSD68"}
    sets = load_crops(tmp_path, **options, colour=True)
    assert sets.shape == (3, 8, 8)
    pixels = {
        name: (getattr(sets, name).fields["image"][:, :, 3, 3] * 255).round().tolist()
        for name in ("train", "val", "test")
    }
    assert pixels["train"] == 2 * [[0, 100, 255]]
    assert pixels["val"] == 2 * [[1, 101, 254]]
    assert pixels["test"] == [[i, i + 100, 255 - i] for i in range(2, 22)]

    grey = load_crops(tmp_path, **options)
    assert grey.shape == (1, 8, 8)
    # ITU-R 601: .299 R + .587 G + .114 B
    assert grey.train.fields["image"][0, 0, 0, 0].item() * 255 == pytest.approx(58.7 + 0.114 * 255, abs=0.5)
