"""`dataset.image_size` on sets in memory: batches are resized on the device, the set itself stays as it is."""

import numpy as np
import pytest
import torch
from PIL import Image

from regbench.data import photos
from regbench.data.loaders import resized


def test_values_worked_out_by_hand():
    # Growing: the pixels' centres lie at -1/4, 1/4, 3/4 and 5/4 of the two old ones; outside, the edge is repeated.
    row = torch.tensor([[[[0, 100]]]], dtype=torch.uint8)
    assert resized(row, (1, 4)).tolist() == [[[[0, 25, 75, 100]]]]
    # Shrinking to a half: a triangle four pixels wide with weights 3/4, 3/4, 1/4 over their sum: 25 / 1.75 = 14.3.
    row = torch.tensor([[[[0, 0, 100, 100]]]], dtype=torch.uint8)
    assert resized(row, (1, 2)).tolist() == [[[[14, 86]]]]


@pytest.mark.parametrize(("side", "size"), [(32, 224), (64, 96), (96, 40)])
def test_as_pillow_resizes(side, size):
    picture = photos.read_photo(photos.PHOTOS["astronaut"])[100 : 100 + side, 200 : 200 + side]
    expected = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR), dtype=int)
    ours = resized(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None], (size, size))
    assert ours.dtype == torch.uint8
    difference = np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - expected)
    # Pillow also rounds between its two passes: half a level there, and half a level at the end.
    assert difference.max() <= 1
    assert difference.mean() < 0.35  # a grid that is off by half a pixel is off by several levels


def test_all_batches_have_the_size_and_the_set_stays_small(make):
    module = make("digits", "dataset.image_size=16")
    assert module.shape == module.describe()["shape"] == (1, 16, 16)
    for loader in (module.train_loader(), module.val_loader(), module.test_loader()):
        batch = next(iter(loader))
        assert batch["image"].shape == (len(batch["label"]), 1, 16, 16)
        assert batch["image"].dtype == torch.float32
    assert module.sets.train.images.shape == (1295, 1, 8, 8)
    assert module.sets.train.images.dtype == torch.uint8


def test_an_evaluated_image_is_the_resized_one_normalised(make):
    module = make("digits", "dataset.image_size=12", "dataset.mean=[0.5]", "dataset.std=[0.25]")
    batch = next(iter(module.test_loader()))
    image = Image.fromarray(module.sets.test.images[int(batch["index"][0]), 0].numpy())
    expected = np.asarray(image.resize((12, 12), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(batch["image"][0, 0] * 0.25 + 0.5, expected, atol=1.01 / 255)


def test_the_images_own_size_changes_nothing(make):
    plain, sized = make("digits"), make("digits", "dataset.image_size=8")
    for name in ("train_loader", "val_loader", "test_loader"):
        for one, other in zip(getattr(plain, name)(), getattr(sized, name)(), strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["index"], other["index"])


def test_augmentation_counts_in_the_new_pixels(make):
    # Eight pixels of reflection are more than an image of 8 x 8 has, but not more than one of 16 x 16.
    reflect = ["dataset.augment.crop_padding=8", "dataset.augment.crop_mode=reflect"]
    batch = next(iter(make("digits", "dataset.image_size=16", *reflect).train_loader()))
    assert batch["image"].shape[2:] == (16, 16)
