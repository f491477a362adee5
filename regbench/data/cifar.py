"""CIFAR-10 and CIFAR-100, from torchvision's pickled files or from the Hugging Face Hub's parquet files."""

from pathlib import Path

import numpy as np
import torch

from regbench.data import parquet
from regbench.data.download import download
from regbench.data.files import damaged, missing, unpickle
from regbench.data.sets import ImageSets, Split, in_memory
from regbench.errors import UserError
from regbench.paths import data_root

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def load_cifar10(root: str | None) -> ImageSets:
    """50,000 + 10,000 RGB images of 32 × 32, 10 classes (Krizhevsky 2009)."""
    root = data_root(root)
    files = parquet.find(root, "cifar10")
    if files:
        return parquet.load(root, files, "img", "label", CIFAR10_CLASSES)
    folder = _pickles("CIFAR-10", "CIFAR10", "cifar-10-batches-py", "cifar10/plain_text", root)
    train = [_read(folder / f"data_batch_{i}", b"labels", 10) for i in range(1, 6)]
    train = Split(torch.cat([s.images for s in train]), torch.cat([s.labels for s in train]))
    return in_memory(train, _read(folder / "test_batch", b"labels", 10), CIFAR10_CLASSES)


def load_cifar100(root: str | None) -> ImageSets:
    """50,000 + 10,000 RGB images of 32 × 32, 100 classes (the fine labels; Krizhevsky 2009)."""
    root = data_root(root)
    files = parquet.find(root, "cifar100")
    if files:
        return parquet.load(
            root, files, "img", "fine_label", parquet.stored_names(files["train"][0], "fine_label", 100)
        )
    folder = _pickles("CIFAR-100", "CIFAR100", "cifar-100-python", "cifar100/cifar100", root)
    names = unpickle(folder / "meta").get(b"fine_label_names", [])
    if len(names) != 100:
        raise damaged(folder / "meta", f"{len(names)} of 100 class names")
    splits = [_read(folder / name, b"fine_labels", 100) for name in ("train", "test")]
    return in_memory(*splits, [name.decode() for name in names])


def _pickles(name: str, torchvision_class: str, folder: str, hub: str, root: Path) -> Path:
    """The folder of the pickled files, after a download where it is not there."""
    if not (root / folder).is_dir():
        layouts = [
            f"torchvision's folder {folder}",
            f"the Hugging Face Hub's {hub}/{{train,test}}-00000-of-00001.parquet"
            f" (uoft-cs/{hub.partition('/')[0]})",
        ]
        download(torchvision_class, root, lambda reason: missing(name, root, layouts, reason))
    return root / folder


def _read(path: Path, label_key: bytes, classes: int) -> Split:
    if not path.is_file():
        raise UserError(f"{path} is missing. Delete the folder and fetch it again, or put the file there.")
    content = unpickle(path)
    data, labels = content.get(b"data"), content.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise damaged(path, "no uint8 array 'data' of 3,072 values a row")
    if (
        not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(isinstance(label, int) and 0 <= label < classes for label in labels)
    ):
        raise damaged(path, f"'{label_key.decode()}' does not give each of the {len(data)} images a class")
    return Split(torch.from_numpy(data.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels))
