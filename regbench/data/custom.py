"""A user's own map-style torch Dataset, by its dotted name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object
from PIL import Image
from torch import Tensor

from regbench.data.files import resize_and_crop
from regbench.data.folders import IN_MEMORY
from regbench.data.sets import ImageSets, Split, fingerprint, in_memory
from regbench.errors import UserError


@dataclass
class DatasetImages:
    """An `ImageSource` of a user's dataset: its images as RGB pictures."""

    dataset: Any
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(_pixels(self.dataset[int(self.index[index])][0])).convert("RGB")

    def select(self, index: Tensor) -> "DatasetImages":
        return DatasetImages(self.dataset, self.index[index])


def load_custom(
    root: str | None,
    target: str | None,
    kwargs: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    stream: bool | None = None,
) -> ImageSets:
    """Calls `target(train=True, **kwargs)` and `target(train=False, **kwargs)` for the training and the test
    split.

    Args:
        root: passed as `root=` where it is not None.
        target: dotted name of a class or function that gives a map-style dataset of (image, label). The image
            is a PIL picture, a uint8 array (H, W) or (H, W, C), or a uint8 tensor (C, H, W), with C of 1 or
            3; the label an int from 0. Augmentation and normalisation are RegBench's: leave the dataset's own
            off.
        image_size: side in pixels; null where all images have one size already.
        stream: decode in worker processes, batch by batch; null: where the set takes more than 1 GiB.

    Raises:
        UserError: where the target can't be found, or gives something else than described.
    """
    if not target:
        raise UserError("dataset=custom needs dataset.target=<dotted name of your dataset class>.")
    try:
        make: Callable = get_object(target)
    except Exception as error:
        raise UserError(f"dataset.target={target} can't be imported: {error}") from None
    options = {**({} if root is None else {"root": root}), **(kwargs or {})}
    train, test = (make(train=flag, **options) for flag in (True, False))
    for dataset in (train, test):
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or len(dataset) == 0:
            raise UserError(
                f"{target} must give map-style datasets (with __len__ and __getitem__) that are not empty."
            )
    if stream is None:
        one = 3 * image_size**2 if image_size else _pixels(train[0][0]).size
        stream = one * (len(train) + len(test)) > IN_MEMORY
    if stream and image_size is None:
        raise UserError(f"{target} is streamed and needs dataset.image_size=<side in pixels>.")
    read = _stream if stream else _read
    splits = [read(dataset, image_size) for dataset in (train, test)]
    classes = getattr(train, "classes", None) or range(int(splits[0].labels.max()) + 1)
    if not stream:
        return in_memory(*splits, list(classes))
    content = fingerprint(target, repr(sorted(options.items())), *(split.labels for split in splits))
    return ImageSets(*splits, None, [str(name) for name in classes], content)


def _read(dataset: Any, image_size: int | None) -> Split:
    images, labels = [], []
    for i in range(len(dataset)):
        image, label = dataset[i]
        pixels = _pixels(image)
        if image_size is not None:
            pixels = np.asarray(resize_and_crop(Image.fromarray(pixels), image_size))
        pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
        if images and pixels.shape != images[0].shape:
            raise UserError(
                f"Image {i} is {pixels.shape} (height, width, channels) and the first {images[0].shape}. "
                "Give dataset.image_size=<side in pixels>, and one number of channels."
            )
        images.append(pixels)
        labels.append(int(label))
    return Split(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _stream(dataset: Any, image_size: int | None) -> Split:
    labels = getattr(
        dataset, "targets", None
    )  # torchvision's name; else every image is decoded for its label
    labels = [dataset[i][1] for i in range(len(dataset))] if labels is None else labels
    return Split(DatasetImages(dataset, torch.arange(len(dataset))), torch.as_tensor(labels).long())


def _pixels(image: Any) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3) of what a user's dataset gives."""
    if isinstance(image, Image.Image):
        return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise UserError(
            f"The dataset gives images as {kind}; they must be PIL pictures, or uint8 arrays or tensors."
        )
    image = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 3):
        raise UserError(f"The dataset gives images of shape {image.shape}; they must have 1 or 3 channels.")
    return image
