"""Mixing policies against closed forms, scipy's distributions, and the mixing of torchvision and timm."""

import regbench.torchvision_schemas  # noqa: F401  before anything that imports torchvision

# isort: split
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import timm.data.mixup
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from regbench.errors import UserError
from regbench.functional import mixing


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


# -- the share λ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_share_has_the_beta_distribution(alpha):
    generator = rng(3)
    draws = [mixing.beta(alpha, generator) for _ in range(4000)]
    assert scipy.stats.kstest(draws, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_share_of_a_tiny_alpha_is_a_coin():
    generator = rng()
    draws = torch.tensor([mixing.beta(1e-5, generator) for _ in range(2000)])
    assert not draws.isnan().any()
    assert ((draws < 1e-6) | (draws > 1 - 1e-6)).float().mean() > 0.99
    assert abs(draws.mean() - 0.5) < 0.05


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(UserError, match="above 0"):
        mixing.beta(alpha, rng())


# -- pure functions --------------------------------------------------------------------------------------


def test_interpolate_by_hand():
    image = torch.tensor([[0.0], [8.0], [16.0]])
    mixed = mixing.interpolate(image, torch.tensor([1, 2, 0]), 0.75)
    assert mixed.flatten().tolist() == [2.0, 10.0, 12.0]
    assert mixing.interpolate(image, torch.tensor([1, 2, 0]), 1.0).equal(image)


def test_cutmix_box_before_and_after_clipping():
    # λ = 0.75: sides 32 · sqrt(0.25) = 16; at the corner a quarter of the box stays: 8·8 of 1024 pixels.
    assert mixing.cutmix_box(32, 32, 0.75, (16, 16)) == ((8, 24, 8, 24), 0.75)
    assert mixing.cutmix_box(32, 32, 0.75, (0, 0)) == ((0, 8, 0, 8), 0.9375)
    assert mixing.cutmix_box(32, 32, 0.75, (31, 31)) == ((23, 32, 23, 32), 1 - 81 / 1024)
    assert mixing.cutmix_box(20, 40, 0.0, (10, 20)) == ((0, 20, 0, 40), 0.0)
    assert mixing.cutmix_box(32, 32, 1.0, (5, 5))[1] == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_box_is_torchvisions(seed):
    """torchvision draws from the global generator: replay its draws, then compare box and clipped λ."""
    height, width = 28, 40
    torch.manual_seed(seed)
    params = v2.CutMix(num_classes=10).make_params([torch.zeros(4, 3, height, width)])
    torch.manual_seed(seed)
    lam = float(v2.CutMix(num_classes=10)._dist.sample(()))
    x, y = int(torch.randint(width, size=(1,))), int(torch.randint(height, size=(1,)))
    (top, bottom, left, right), adjusted = mixing.cutmix_box(height, width, lam, (y, x))
    assert params["box"] == (left, top, right, bottom)
    assert params["lam_adjusted"] == pytest.approx(adjusted, abs=1e-12)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("seed", range(5))
def test_pixels_and_targets_are_timms(kind, seed):
    """timm pairs an image with the batch in reverse. Its boxes may be a pixel wider (it keeps odd sides)."""
    image, partner = images(6, 3, 16, 20), torch.arange(5, -1, -1)
    alphas = {"mixup_alpha": float(kind == "mixup"), "cutmix_alpha": float(kind == "cutmix")}
    engine = timm.data.mixup.Mixup(**alphas, label_smoothing=0.0, num_classes=10)
    np.random.seed(seed)
    mixed, target = engine(image.clone(), torch.arange(6))
    np.random.seed(seed)
    lam, _ = engine._params_per_batch()
    if kind == "cutmix":
        box = tuple(map(int, timm.data.mixup.cutmix_bbox_and_lam(image.shape, lam)[0]))
        ours, lam = mixing.paste(image, partner, box), mixing.box_lam(16, 20, box)
    else:
        ours = mixing.interpolate(image, partner, lam)
    assert torch.allclose(ours, mixed, atol=1e-6)
    assert target[0, 0].item() == pytest.approx(lam, abs=1e-6)
    assert target[0, 5].item() == pytest.approx(1 - lam, abs=1e-6)


def test_pixels_are_torchvisions():
    """torchvision pairs an image with the one before it."""
    image, partner = images(5, 3, 12, 12), torch.arange(5).roll(1)
    for transform in (v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)):
        for seed in range(5):
            torch.manual_seed(seed)
            params = transform.make_params([image])
            torch.manual_seed(seed)
            mixed, target = transform(image, torch.arange(5))
            if "box" in params:
                left, top, right, bottom = params["box"]
                ours, lam = mixing.paste(image, partner, (top, bottom, left, right)), params["lam_adjusted"]
            else:
                ours, lam = mixing.interpolate(image, partner, params["lam"]), params["lam"]
            assert torch.allclose(ours, mixed, atol=1e-6)
            assert target[0, 0].item() == pytest.approx(lam, abs=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_resize_paste_is_the_resized_partner_in_the_box(interpolation):
    image, partner = images(3, 2, 32, 28), torch.tensor([2, 0, 1])
    for size in ((1, 1), (5, 9), (16, 14), (25, 28)):
        box = (3, 3 + size[0], 0, size[1])
        mixed = mixing.resize_paste(image, partner, box, interpolation)
        small = F.interpolate(image[partner], size=size, mode=interpolation)
        inside = torch.zeros(32, 28, dtype=torch.bool)
        inside[box[0] : box[1], box[2] : box[3]] = True
        assert torch.allclose(mixed[..., inside], small.flatten(2), atol=1e-6)
        assert mixed[..., ~inside].equal(image[..., ~inside])
    assert mixing.resize_paste(image, partner, (4, 4, 4, 9), interpolation).equal(image)


def test_fourier_mask_has_exactly_its_share_of_ones():
    for height, width in ((28, 28), (32, 32), (15, 21)):
        noise = images(height, width // 2 + 1, 2)
        for lam in (0.0, 0.1, 0.5, 0.9999, 1.0):
            mask = mixing.fourier_mask(noise, width, lam)
            assert mask.shape == (height, width)
            assert int(mask.sum()) == round(lam * height * width)


def test_fourier_mask_of_one_wave():
    # All amplitude in the frequency 1 / 16 from left to right: cos(2πx / 16), whose seven highest columns are
    # 13 to 15 and 0 to 3.
    noise = torch.zeros(16, 9, 2)
    noise[0, 1, 0] = 1.0
    columns = mixing.fourier_mask(noise, 16, 7 / 16).all(0).nonzero().flatten().tolist()
    assert columns == [0, 1, 2, 3, 13, 14, 15]


def test_fourier_mask_is_the_highest_pixels_of_numpys_picture():
    height = width = 64
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.hypot(fy, fx)
    for decay in (1.0, 3.0):
        noise = images(height, width // 2 + 1, 2, dtype=torch.float64)
        spectrum = (noise[..., 0] + 1j * noise[..., 1]).numpy() / np.maximum(frequency, 1 / 64) ** decay
        highest = np.sort(np.argsort(np.fft.irfft2(spectrum, s=(height, width)).ravel())[-1000:])
        mask = mixing.fourier_mask(noise, width, 1000 / 4096, decay)
        assert mask.flatten().nonzero().flatten().numpy().tolist() == highest.tolist()


def test_rougher_masks_have_longer_edges():
    noise = images(32, 17, 2)

    def edge(mask):
        return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())

    lengths = [edge(mixing.fourier_mask(noise, 32, 0.5, decay)) for decay in (0.0, 1.0, 3.0)]
    assert lengths[0] > 1.5 * lengths[1]
    assert lengths[1] > 3 * lengths[2]


def test_mask_mix_copies_bit_for_bit():
    image, partner = images(4, 3, 8, 8), torch.tensor([1, 2, 3, 0])
    mask = images(8, 8, seed=1) > 0
    assert mixing.mask_mix(image, partner, mask).equal(torch.where(mask, image, image[partner]))


# -- saliency --------------------------------------------------------------------------------------------


def test_spectral_residual_of_a_dot_is_a_gaussian_at_the_dot():
    # A dot's log spectrum is flat, so the residual is 0, the dot comes back with amplitude 1, and the
    # smoothing turns it into a Gaussian of standard deviation 2.5 / 64 · 64 = 2.5 pixels.
    image = torch.zeros(64, 64)
    image[20, 41] = 7.0
    saliency = mixing.spectral_residual(image)
    dot = np.zeros((64, 64))
    dot[20, 41] = 1.0
    expected = scipy.ndimage.gaussian_filter(dot, 2.5, mode="constant", truncate=10)
    assert np.allclose(saliency.numpy(), expected, atol=1e-4)


def test_spectral_residual_ignores_contrast():
    image = images(3, 32, 32)
    saliency = mixing.spectral_residual(image)
    assert torch.allclose(mixing.spectral_residual(10 * image), saliency, atol=1e-4)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("seed", range(5))
def test_spectral_residual_finds_the_odd_one_out(size, seed):
    """A bright square, an eighth of the side, on noise with the 1 / f spectrum of natural images."""
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.fftfreq(size)).clamp(min=1 / size)
    image = torch.fft.ifft2(torch.fft.fft2(images(size, size, seed=seed)) / frequency).real
    image /= image.std()
    top, left, side = size // 8, 5 * size // 8, size // 8
    image[top : top + side, left : left + side] += 3
    y, x = divmod(int(mixing.spectral_residual(image).argmax()), size)
    assert top - 2 <= y <= top + side + 1
    assert left - 2 <= x <= left + side + 1


def test_spectral_residual_of_a_constant_image_is_finite():
    assert mixing.spectral_residual(torch.full((3, 16, 16), 2.0)).isfinite().all()
    assert mixing.spectral_residual(torch.zeros(1, 16, 16)).isfinite().all()


def has_contrib() -> bool:
    try:
        import cv2
    except ImportError:
        return False
    return hasattr(cv2, "saliency")


@pytest.mark.skipif(has_contrib(), reason="OpenCV's contrib modules are installed")
def test_fine_grained_names_its_extra():
    with pytest.raises(UserError, match=r"pip install regbench\[saliency\]"):
        mixing.bind("saliencymix", {"saliency": "fine_grained"})


@pytest.mark.skipif(not has_contrib(), reason="needs the extra saliency")
@pytest.mark.parametrize("channels", [1, 3])
def test_fine_grained_is_opencvs_map_of_the_8_bit_picture(channels):
    import cv2

    pixels = torch.randint(0, 256, (channels, 24, 32), dtype=torch.uint8, generator=rng())
    pixels[:, 0, 0], pixels[:, 0, 1] = 0, 255
    picture = pixels.flip(0).permute(1, 2, 0).contiguous().numpy() if channels == 3 else pixels[0].numpy()
    expected = cv2.saliency.StaticSaliencyFineGrained_create().computeSaliency(picture)[1]
    ours = mixing.fine_grained(3.5 * pixels.double() - 7)  # neither scale nor offset matters
    assert np.allclose(ours.numpy(), expected, atol=0.02)  # float rounding may move a pixel by one of 255


# -- policies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mixing.POLICIES)
def test_draws_are_valid_and_repeatable(name):
    image = images(8, 3, 16, 16)
    policy = mixing.bind(name, {"alpha": 1.0}, stages=3)
    before = image.clone()
    for seed in range(30):
        draw, again = policy(image, rng(seed)), policy(image, rng(seed))
        assert draw.partner.sort().values.equal(torch.arange(8))
        assert isinstance(draw.lam, float)
        assert 0 <= draw.lam <= 1
        assert draw.layer in (0, 1, 2)
        mixed = draw.mix(image)
        assert mixed.equal(again.mix(image))
        assert (draw.lam, draw.layer) == (again.lam, again.layer)
        assert mixed.shape == image.shape
    assert image.equal(before)


@pytest.mark.parametrize("name", mixing.POLICIES)
def test_share_is_that_of_the_pixels(name):
    """Image i is constant i, so the mean of a mixed image is λ i + (1 − λ) partner."""
    value = torch.arange(8.0)
    image = value.view(8, 1, 1, 1).expand(8, 1, 16, 16).contiguous()
    policy = mixing.bind(name, {"alpha": 1.0}, stages=3)
    for seed in range(20):
        draw = policy(image, rng(seed))
        expected = draw.lam * value + (1 - draw.lam) * value[draw.partner]
        assert torch.allclose(draw.mix(image).mean((1, 2, 3)), expected, atol=1e-4)


@pytest.mark.parametrize("name", mixing.POLICIES)
def test_one_odd_image(name):
    """A batch of one, and a picture that is not square, in one channel."""
    image = images(1, 1, 9, 14)
    draw = mixing.bind(name, {}, stages=3)(image, rng())
    assert draw.partner.tolist() == [0]
    assert draw.mix(image).isfinite().all()


def test_manifold_mixup_visits_every_layer_and_mixes_maps():
    policy = mixing.bind("manifold_mixup", {"layers": (0, 2, 3)}, stages=3)
    generator = rng()
    layers = [policy(torch.zeros(4, 1, 8, 8), generator).layer for _ in range(300)]
    assert scipy.stats.chisquare([layers.count(k) for k in (0, 2, 3)]).pvalue > 0.01
    draw = policy(torch.zeros(4, 1, 8, 8), generator)
    maps = images(4, 5, 3, 3).requires_grad_()
    draw.mix(maps).sum().backward()
    assert torch.allclose(
        maps.grad, torch.ones_like(maps), atol=1e-6
    )  # λ + (1 − λ): each image is used twice


def test_resizemix_scale():
    generator = rng()
    image = torch.zeros(2, 1, 1000, 1000)
    # Uniform: the box is at most 0.8 of each side. A centre in the middle would give 1 − τ².
    shares = [mixing.resizemix(image, generator).lam for _ in range(500)]
    assert min(shares) >= 1 - 0.8**2
    assert max(shares) <= 1 - (0.1 / 2) ** 2 + 1e-3
    # use_alpha with a large alpha: τ close to 0.5; unclipped boxes have share 0.75
    shares = [mixing.resizemix(image, generator, use_alpha=True, alpha=1e6).lam for _ in range(200)]
    assert min(shares) == pytest.approx(0.75, abs=0.01)
    # the same with a scope that excludes 0.5: always drawn again from the scope
    shares = [
        mixing.resizemix(image, generator, use_alpha=True, alpha=1e6, scope=(0.1, 0.2)).lam for _ in range(99)
    ]
    assert min(shares) >= 1 - 0.2**2


def test_saliencymix_centres_the_box_on_the_partners_salient_pixel():
    image = torch.zeros(2, 1, 32, 32)
    image[0, 0, 25, 6] = image[1, 0, 10, 20] = 5.0
    for seed in range(10):
        draw = mixing.saliencymix(image, rng(seed), alpha=1e6)  # λ near 0.5: a box of side 22
        y, x = ((25, 6), (10, 20))[int(draw.partner[0])]
        pasted = draw.mix(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 32, 32))
        if draw.partner.tolist() == [1, 0]:
            rows, columns = pasted[0, 0].nonzero().unbind(1)
            box = (int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)
            assert box == mixing.box_around(32, 32, 22 / 32, (y, x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cutmixx", {}, "Did you mean cutmix"),
        ("fmix", {"decy": 3}, "Did you mean decay"),
        ("fmix", {"decay": -1.0}, "decay"),
        ("mixup", {"alpha": 0}, "alpha=0"),
        ("resizemix", {"scope": (0.8, 0.1)}, "scope"),
        ("resizemix", {"interpolation": "cubic"}, "interpolation"),
        ("saliencymix", {"saliency": "fine"}, "fine_grained"),
        ("manifold_mixup", {"layers": ()}, "layers"),
        ("manifold_mixup", {"layers": (0, 4)}, "3 stages"),
    ],
)
def test_mistakes_show_when_bound(name, options, message):
    with pytest.raises(UserError, match=message):
        mixing.bind(name, options, stages=3)
