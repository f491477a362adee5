"""Crops, flips, cutout by hand on small integer images; RandAugment against torchvision's on PIL."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import autoaugment
from torchvision.transforms import functional as pil

from regbench.data import augment, randaugment
from regbench.data.augment import Augment, crop, cutout, draw, normalization, normalize
from regbench.errors import UserError

IMAGE = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8)


def one(corner, padding, mode="zeros", flip=None):
    flip = None if flip is None else torch.tensor([flip])
    return crop(IMAGE[None, None], torch.tensor([corner]), padding, mode, flip)[0, 0].tolist()


def test_crop_at_the_centre_changes_nothing():
    assert one((1, 1), 1) == IMAGE.tolist()
    assert one((2, 2), 2, "reflect") == IMAGE.tolist()


def test_crop_with_zeros():
    assert one((0, 0), 1) == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
    assert one((2, 1), 1) == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]


def test_crop_with_reflection():
    assert one((0, 0), 1, "reflect") == [[5, 4, 5], [2, 1, 2], [5, 4, 5]]
    assert one((0, 0), 2, "reflect") == [[9, 8, 7], [6, 5, 4], [3, 2, 1]]
    assert one((2, 2), 1, "reflect") == [[5, 6, 5], [8, 9, 8], [5, 6, 5]]


def test_crop_then_flip():
    assert one((0, 0), 1, flip=1) == [[0, 0, 0], [2, 1, 0], [5, 4, 0]]
    assert one((0, 2), 1, flip=1) == [[0, 0, 0], [0, 3, 2], [0, 6, 5]]
    assert one((0, 2), 1, flip=0) == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 8)])
def test_crop_of_a_batch_agrees_with_pil(mode, height, width):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (16, 3, height, width), dtype=torch.uint8, generator=generator)
    corner = torch.randint(7, (16, 2), generator=generator)
    flip = torch.randint(2, (16,), generator=generator)
    result = crop(images, corner, 3, mode, flip)
    for i in range(16):
        picture = Image.fromarray(images[i].permute(1, 2, 0).numpy())
        picture = pil.pad(picture, 3, padding_mode="constant" if mode == "zeros" else mode)
        picture = pil.crop(picture, *corner[i].tolist(), height, width)
        picture = pil.hflip(picture) if flip[i] else picture
        assert torch.equal(result[i], pil.pil_to_tensor(picture))


def test_cutout_is_clipped_at_the_borders():
    images = torch.ones(3, 2, 4, 4)
    cutout(images, torch.tensor([[2, 2], [0, 0], [3, 1]]), 2)
    assert images[0, 1].tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert images[1, 0].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert images[2, 0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_cutout_of_odd_size():
    images = torch.ones(1, 1, 5, 5)
    assert int((cutout(images, torch.tensor([[2, 2]]), 3) == 0).sum()) == 9


def test_normalize():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalize(images, *normalization([0.5, 0.2, 0.0], [0.25, 0.5, 2.0]))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor([-2.0, 0.0, 0.5]))


def test_translate_moves_by_the_drawn_pixels():
    draws = {"translate": torch.tensor([[0, 1]])}  # 0 of 0..2: down by one; 1: not sideways
    images = augment.apply(IMAGE[None, None], Augment(translate=1), draws, *normalization([0.0], [1 / 255]))
    torch.testing.assert_close(images[0, 0], torch.tensor([[0.0, 0, 0], [1, 2, 3], [4, 5, 6]]))


def test_flip_alone():
    draws = {"flip": torch.tensor([1])}
    images = augment.apply(IMAGE[None, None], Augment(flip=True), draws, *normalization([0.0], [1 / 255]))
    torch.testing.assert_close(images[0, 0, 0], torch.tensor([3.0, 2, 1]))


def test_draws_cover_their_ranges_evenly():
    config = Augment(crop_padding=2, translate=1, flip=True, cutout=2, randaugment={"n": 3, "m": 5})
    draws = draw(config, 30_000, (6, 4), torch.Generator().manual_seed(0))
    for values, cells in (
        (draws["crop"][:, 1], 5),
        (draws["translate"][:, 0], 3),
        (draws["flip"], 2),
        (draws["cutout"][:, 0], 6),
        (draws["cutout"][:, 1], 4),
        (draws["randaugment"][:, 2], 28),
    ):
        share = values.bincount().double() / 30_000
        assert len(share) == cells
        # five standard deviations of a binomial share
        assert (share - 1 / cells).abs().max() < 5 * (1 / cells * (1 - 1 / cells) / 30_000) ** 0.5


OPERATIONS = {
    "shear_x": ("ShearX", lambda m: 0.3 * m),
    "shear_y": ("ShearY", lambda m: 0.3 * m),
    "translate_x": ("TranslateX", lambda m: 150 / 331 * 20 * m),
    "translate_y": ("TranslateY", lambda m: 150 / 331 * 16 * m),
    "rotate": ("Rotate", lambda m: 30 * m),
    "brightness": ("Brightness", lambda m: 0.9 * m),
    "color": ("Color", lambda m: 0.9 * m),
    "contrast": ("Contrast", lambda m: 0.9 * m),
    "sharpness": ("Sharpness", lambda m: 0.9 * m),
    "posterize": ("Posterize", lambda m: 8 - round(4 * abs(m))),
    "solarize": ("Solarize", lambda m: 255 * (1 - abs(m))),
    "autocontrast": ("AutoContrast", lambda m: 0.0),
    "equalize": ("Equalize", lambda m: 0.0),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("negative", [0, 1])
def test_randaugment_agrees_with_torchvision_on_pil(name, negative):
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(2, 3, 4, 5, generator=generator) * 200 + 20
    images = torch.nn.functional.interpolate(coarse, size=(16, 20), mode="bilinear").to(torch.uint8)
    choice = 2 * list(randaugment.OPERATIONS).index(name) + negative
    result = randaugment.apply(images, torch.full((2, 1), choice), 18)
    op, magnitude = OPERATIONS[name]
    for before, after in zip(images, result, strict=True):
        picture = autoaugment._apply_op(
            pil.to_pil_image(before),
            op,
            magnitude(-0.6 if negative else 0.6),
            pil.InterpolationMode.NEAREST,
            None,
        )
        difference = (pil.pil_to_tensor(picture).int() - after.int()).abs()
        assert (difference > 3).double().mean() < 0.05  # PIL rounds the colours and the edges otherwise


def test_randaugment_transforms_each_image_on_its_own():
    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    before = images.clone()
    choices = randaugment.draw(2, 40, torch.Generator().manual_seed(4))
    together = randaugment.apply(images, choices, 9)
    alone = torch.cat([randaugment.apply(images[i : i + 1], choices[i : i + 1], 9) for i in range(40)])
    assert torch.equal(together, alone)
    assert torch.equal(images, before)
    assert not torch.equal(together, images)


def test_randaugment_of_grey_images():
    images = torch.randint(256, (56, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    assert randaugment.apply(images, torch.arange(28).repeat(2)[:, None], 20).shape == images.shape


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"crop_paddin": 4}, "Did you mean crop_padding"),
        ({"crop_padding": -1}, "number of pixels"),
        ({"crop_padding": 1.5}, "number of pixels"),
        ({"crop_mode": "edge"}, "Known: reflect, zeros"),
        ({"flip": 0.5}, "true or false"),
        ({"randaugment": {"n": 2}}, "n: operations"),
        ({"randaugment": {"n": 0, "m": 9}}, "1 or more"),
        ({"randaugment": {"n": 2, "m": 31}}, "between 0 and 30"),
    ],
)
def test_mistakes_in_the_config(node, message):
    with pytest.raises(UserError, match=message):
        Augment.from_config(node)
