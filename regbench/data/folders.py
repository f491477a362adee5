"""Pictures in class folders: a user's own, and ImageNet."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from regbench.data.files import cached, decode_all, missing, open_image, resize_and_crop
from regbench.data.sets import ImageSets, Split, fingerprint, in_memory, split_off
from regbench.errors import UserError
from regbench.paths import data_root

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
VAL_NAMES = ("val", "valid", "validation")
IN_MEMORY = 2**30  # bytes of decoded images; larger sets are streamed
TEST_FRACTION = 0.2


@dataclass
class PathImages:
    """An `ImageSource` of files, decoded as RGB when asked for."""

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return open_image(self.paths[index])

    def select(self, index: Tensor) -> "PathImages":
        return PathImages([self.paths[i] for i in index.tolist()])


def load_image_folder(root: str | None, image_size: int) -> ImageSets:
    """A folder of class folders of pictures, of any size and colour mode, as RGB.

    `root` holds either the class folders, or `train` (and, as far as there are any, `val` and `test`) with
    the class folders in them. Where there is no test split, a fixed fifth of each class is taken for it. Sets
    of up to 1 GiB are decoded once, the shorter side resized to `image_size` and the central square kept;
    larger ones are streamed.

    Raises:
        UserError: names the folder or the file that is not as it should be.
    """
    if root is None:
        raise UserError(
            "dataset=image_folder needs dataset.root=<a folder with one folder of pictures for each class>."
        )
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"dataset.root={root} is not a folder (looked for {root.absolute()}).")
    leveled = (root / "train").is_dir()
    train, names = scan(root / "train" if leveled else root)
    if len(names) < 2:
        raise UserError(f"{root} has one class folder, {names[0]}. A classifier needs two or more.")
    folders = {} if not leveled else {"val": next((root / n for n in VAL_NAMES if (root / n).is_dir()), None)}
    folders["test"] = root / "test" if leveled and (root / "test").is_dir() else None
    splits = {name: scan(folder, names)[0] for name, folder in folders.items() if folder is not None}
    notes = ""
    if "test" not in splits:
        train, splits["test"] = split_off(train, TEST_FRACTION, "test")
        notes = f"The folder has no test split: a fixed {TEST_FRACTION:.0%} of each class of train was taken."
    splits["train"] = train
    if sum(len(split) for split in splits.values()) * 3 * image_size**2 > IN_MEMORY:
        return _streamed(root, splits, names, notes)
    paths = [Path(path) for split in splits.values() for path in split.images.paths]
    return cached(
        root, paths, f"{image_size} {names} {notes}", partial(_decode, splits, names, notes, image_size)
    )


def load_imagenet(root: str | None) -> ImageSets:
    """ImageNet (ILSVRC 2012): `train` and `val` with one folder for each class, named by its WordNet id;
    streamed.

    The official validation folder is the test split, as in papers; validation images are held out of `train`.
    """
    root = data_root(root)
    root = root / "imagenet" if (root / "imagenet").is_dir() else root
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        layout = "the folders train and val, each with one folder of pictures for each class (n01440764, …)"
        raise missing(
            "ImageNet", root, [layout], "It can't be downloaded without an account at image-net.org."
        )
    train, names = scan(root / "train")
    test, _ = scan(root / "val", names)
    return _streamed(
        root, {"train": train, "test": test}, names, "The official validation folder is the test split."
    )


def scan(folder: Path, names: list[str] | None = None) -> tuple[Split, list[str]]:
    """(split of `PathImages`, class names in alphabetical order); hidden files and folders are skipped.

    Args:
        names: the classes of the training split; others are an error, and missing ones are not.
    """
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise UserError(f"{folder} has no class folders. It needs one folder of pictures for each class.")
    strange = sorted(set(found) - set(names or found))
    if strange:
        raise UserError(f"{folder} has classes that the training split lacks: {', '.join(strange[:5])}.")
    paths, labels = [], []
    for name in found:
        of_class = sorted(
            str(path)
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        if not of_class:
            raise UserError(f"{folder / name} has no pictures ({', '.join(SUFFIXES)}). Fill it or remove it.")
        paths += of_class
        labels += [(names or found).index(name)] * len(of_class)
    return Split(PathImages(paths), torch.tensor(labels)), names or found


def decode_split(split: Split, image_size: int) -> Split:
    """The split of `PathImages` in memory: uint8 (N, 3, image_size, image_size)."""

    def decode(index: int) -> Image.Image:
        return resize_and_crop(split.images[index], image_size)

    return Split(decode_all(decode, len(split), image_size), split.labels)


def _decode(splits: dict[str, Split], names: list[str], notes: str, image_size: int) -> ImageSets:
    decoded = {name: decode_split(split, image_size) for name, split in splits.items()}
    return in_memory(decoded["train"], decoded["test"], names, decoded.get("val"), notes)


def _streamed(root: Path, splits: dict[str, Split], names: list[str], notes: str) -> ImageSets:
    """The fingerprint covers the files' names, sizes and classes: their content would take hours to read."""
    parts: list[Tensor | str] = []
    for name in sorted(splits):
        files = [Path(path) for path in splits[name].images.paths]
        parts += [name, splits[name].labels, *(f"{p.relative_to(root)} {p.stat().st_size}" for p in files)]
    return ImageSets(
        splits["train"], splits["test"], splits.get("val"), names, fingerprint(*parts, *names), notes
    )
