"""STL-10, from torchvision's binary files."""

from pathlib import Path

import numpy as np
import torch

from regbench.data.download import download
from regbench.data.files import damaged, missing
from regbench.data.sets import ImageSets, Split, in_memory
from regbench.errors import UserError
from regbench.paths import data_root

CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
SIZE = 96


def load_stl10(root: str | None) -> ImageSets:
    """The labelled part of STL-10 (Coates et al. 2011): 5,000 + 8,000 RGB images of 96 × 96, 10 classes.

    All 5,000 labelled training images are used, not the ten folds of 1,000.
    """
    root = data_root(root)
    folder = root / "stl10_binary"
    if not folder.is_dir():
        layouts = ["torchvision's folder stl10_binary (train_X.bin, train_y.bin, test_X.bin, test_y.bin)"]
        download("STL10", root, lambda reason: missing("STL-10", root, layouts, reason), split="train")
    return in_memory(_read(folder, "train"), _read(folder, "test"), CLASSES)


def _read(folder: Path, split: str) -> Split:
    images, labels = (_bytes(folder / f"{split}_{part}.bin") for part in "Xy")
    if len(images) == 0 or len(images) % (3 * SIZE * SIZE):
        raise damaged(folder / f"{split}_X.bin", f"{len(images)} bytes are not a whole number of images")
    images = images.reshape(-1, 3, SIZE, SIZE).transpose(0, 1, 3, 2)  # the files are column by column
    if len(labels) != len(images):
        raise damaged(folder / f"{split}_y.bin", f"{len(labels)} labels for {len(images)} images")
    if labels.min() < 1 or labels.max() > len(CLASSES):
        raise damaged(folder / f"{split}_y.bin", "labels outside 1 … 10")
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64) - 1)
    )


def _bytes(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path} is missing. Delete the folder and fetch it again, or put the file there.")
    return np.fromfile(path, np.uint8)
