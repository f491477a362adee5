"""What a dataset is to the rest of RegBench: splits of uint8 images and labels; how fixed splits are made."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from regbench import seeding
from regbench.errors import UserError

SPLIT_SEED = (
    20260101  # every split that RegBench makes itself comes from this constant, never from the run's seed
)


class ImageSource(Protocol):
    """Images too large for memory: decoded one at a time, in the loader's worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...

    def select(self, index: Tensor) -> "ImageSource": ...


@dataclass
class Split:
    """Images and their classes.

    Args:
        images: uint8 (N, C, H, W), or an `ImageSource` of length N where the set is streamed.
        labels: int64 (N,), each in [0, number of classes).
        clean: int64 (N,), the true classes where some labels are wrong and the truth is known. For measuring only: no
            loader gives them out.
    """

    images: Tensor | ImageSource
    labels: Tensor
    clean: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def streams(self) -> bool:
        return not isinstance(self.images, Tensor)

    def select(self, index: Tensor) -> "Split":
        """The samples at `index` (int64), in its order."""
        images = self.images.select(index) if self.streams else self.images[index]
        return Split(images, self.labels[index], None if self.clean is None else self.clean[index])


@dataclass
class ImageSets:
    """A dataset as its `load` function returns it.

    Args:
        val: None where the set brings no validation split; `ImageDataModule` then holds one out of `train`.
        class_names: one a class, in the order of the labels.
        fingerprint: hash of the content. Two sets with the same fingerprint give the same results.
        notes: what `load` decided itself and a reader of the results should know, in one sentence or none.
    """

    train: Split
    test: Split
    val: Split | None
    class_names: list[str]
    fingerprint: str
    notes: str = ""


def fingerprint(*parts: Tensor | str) -> str:
    """SHA-256 of the tensors' shapes, types and bytes, and of the strings."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy())
        else:
            digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def in_memory(
    train: Split, test: Split, class_names: Sequence[str], val: Split | None = None, notes: str = ""
):
    """`ImageSets` of splits that are tensors, with the fingerprint of all their bytes."""
    tensors = [t for split in (train, val, test) if split is not None for t in (split.images, split.labels)]
    names = [str(name) for name in class_names]
    return ImageSets(train, test, val, names, fingerprint(*tensors, *names), notes)


def rank_in_class(labels: Tensor, purpose: str) -> Tensor:
    """Position (N,) of each sample among those of its class, in a shuffle fixed by `purpose` and
    `SPLIT_SEED`.

    Thresholds on it give stratified splits, and sorting by it class-balanced subsets, each a part of any
    larger one.
    """
    order = torch.randperm(len(labels), generator=seeding.generator(SPLIT_SEED, purpose))
    order = order[labels[order].argsort(stable=True)]  # by class, shuffled within each
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - starts[labels[order]]
    return rank


def split_off(split: Split, fraction: float, purpose: str) -> tuple[Split, Split]:
    """(rest, part): `part` has round(fraction · n) of each class's n samples; both keep the original order.

    Raises:
        UserError: where one of the two would be empty.
    """
    quota = (split.labels.bincount().double() * fraction).round().long()
    taken = rank_in_class(split.labels, purpose) < quota[split.labels]
    if taken.all() or not taken.any():
        counts = split.labels.bincount()
        raise UserError(
            f"A {purpose} split of {fraction:g} of each class leaves one side empty: the classes have "
            f"between {int(counts.min())} and {int(counts.max())} images. Add images, or change the fraction "
            "(dataset.val_fraction)."
        )
    return split.select((~taken).nonzero().flatten()), split.select(taken.nonzero().flatten())


def balanced_subset(split: Split, size: int) -> Split:
    """`size` samples, as evenly over the classes as the set allows; a larger size holds the smaller ones."""
    return split.select(balanced_positions(split.labels, size))


def balanced_positions(labels: Tensor, size: int) -> Tensor:
    """Positions (size,), ascending, of the samples that `balanced_subset` takes of a split with these labels."""
    rank = rank_in_class(labels, "train_size")
    order = (rank * (int(labels.max()) + 1) + labels).argsort()
    return order[:size].sort().values


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), in units of the range [0, 1].

    A constant channel gets the standard deviation 1/255, so that nothing is divided by zero.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = images[:, channel].flatten().bincount(minlength=256).double()
        share /= share.sum()
        mean = share @ values
        means.append(float(mean))
        stds.append(max(float((share @ (values - mean) ** 2).sqrt()), 1 / 255))
    return means, stds
