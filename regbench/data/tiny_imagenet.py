"""Tiny ImageNet, from its original folder or from the Hugging Face Hub's parquet files."""

from pathlib import Path

import torch

from regbench.data import parquet
from regbench.data.files import cached, damaged, missing
from regbench.data.folders import PathImages, decode_split, scan
from regbench.data.sets import ImageSets, Split, in_memory
from regbench.errors import UserError
from regbench.paths import data_root

SIZE = 64


def load_tiny_imagenet(root: str | None) -> ImageSets:
    """100,000 + 10,000 RGB images of 64 × 64, 200 classes named by their WordNet ids (Le & Yang 2015).

    The official validation images are the test split, since the labels of the official test images are
    unpublished.
    """
    root = data_root(root)
    files = parquet.find(root, "tiny_imagenet") or parquet.find(root, "tiny-imagenet")
    if files:
        names = parquet.stored_names(files["train"][0], "label", 200)
        return parquet.load(root, files, "image", "label", names, SIZE)
    folder = next((f for f in (root / "tiny-imagenet-200", root) if (f / "wnids.txt").is_file()), None)
    if folder is None:
        layouts = [
            "the folder tiny-imagenet-200 of http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked",
            "the Hugging Face Hub's tiny-imagenet/data/{train,valid}-*.parquet (zh-plus/tiny-imagenet)",
        ]
        raise missing("Tiny ImageNet", root, layouts)
    train, names = scan(folder / "train")
    test = _validation(folder / "val", names)

    def decode() -> ImageSets:
        return in_memory(decode_split(train, SIZE), decode_split(test, SIZE), names)

    return cached(root, [Path(path) for s in (train, test) for path in s.images.paths], "tiny", decode)


def _validation(folder: Path, names: list[str]) -> Split:
    """Reads val_annotations.txt: file name, class and a box on each line, separated by tabs."""
    annotations = folder / "val_annotations.txt"
    if not annotations.is_file():
        raise UserError(f"{annotations} is missing. Unpack tiny-imagenet-200.zip again.")
    paths, labels = [], []
    for number, line in enumerate(annotations.read_text().splitlines(), start=1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        path = folder / "images" / file
        if name not in names or not path.is_file():
            raise damaged(
                annotations,
                f"line {number} names class '{name}' and the file {path}, one of which is missing",
            )
        paths.append(str(path))
        labels.append(names.index(name))
    if not paths:
        raise damaged(annotations, "it is empty")
    return Split(PathImages(paths), torch.tensor(labels))
