"""Sets whose labels people or web pages got wrong: CIFAR-10N and CIFAR-100N, ANIMAL-10N, Clothing1M."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regbench.data.cifar import load_cifar10, load_cifar100
from regbench.data.files import cached, damaged, missing
from regbench.data.folders import PathImages, decode_split
from regbench.data.sets import ImageSets, Split, fingerprint, in_memory, rank_in_class
from regbench.errors import UserError, unknown
from regbench.paths import data_root

# -- CIFAR-10N and CIFAR-100N ------------------------------------------------------------------------------

CIFAR10N = {  # our name → the file's; shares of wrong labels 9.0, 17.2, 18.1, 17.6 and 40.2 %
    "aggregate": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worst": "worse_label",
}
CIFAR100N = {"noisy": "noisy_label"}  # 40.2 %
# What a NumPy array asks for, under NumPy 1's name of it too; torch.load runs no other code of the file.
_ARRAY_GLOBALS = [
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (np._core.multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    type(np.dtype(np.int64)),
]


def load_cifar10n(root: str | None, labels: str) -> ImageSets:
    """CIFAR-10 with the training labels of people (Wei et al. 2022); the official ones are kept as the true ones.

    Args:
        labels: random1, random2, random3 (one person each), aggregate (the majority of the three), or worst (a wrong
            one of the three wherever there is one).
    """
    return _with_human_labels(load_cifar10, root, "CIFAR-10", CIFAR10N, labels)


def load_cifar100n(root: str | None, labels: str) -> ImageSets:
    """CIFAR-100 with the fine training labels of one person each (Wei et al. 2022)."""
    return _with_human_labels(load_cifar100, root, "CIFAR-100", CIFAR100N, labels)


def _with_human_labels(
    load: Callable[[str | None], ImageSets], root: str | None, name: str, keys: dict[str, str], labels: str
) -> ImageSets:
    if labels not in keys:
        raise unknown("dataset.labels", labels, keys)
    folder, file = data_root(root), f"{name}_human.pt"
    path = next((p for p in (folder / file, folder / "cifar-10-100n" / "data" / file) if p.is_file()), None)
    if path is None:
        layouts = [f"the file {file}, or a clone cifar-10-100n, of github.com/UCSC-REAL/cifar-10-100n"]
        raise missing(f"{name}N", folder, layouts, f"Its images are those of {name}, read from there too.")
    content, sets = _load_arrays(path), load(root)
    clean, given = (
        _classes(content, key, len(sets.class_names), path) for key in ("clean_label", keys[labels])
    )
    if not torch.equal(clean, sets.train.labels):
        raise UserError(
            f"{path} does not fit the images of {name}: its clean_label is not their order of classes. It has "
            "torchvision's order; take the images from there, and not the file named _ordered, which has TensorFlow's."
        )
    if len(given) != len(clean):
        raise damaged(path, f"'{keys[labels]}' has {len(given)} labels for {len(clean)} images")
    train = Split(sets.train.images, given, clean)
    mark = fingerprint(sets.fingerprint, given)
    note = f"{(given != clean).double().mean():.1%} of the training labels are wrong, given by people."
    return ImageSets(train, sets.test, sets.val, sets.class_names, mark, note)


def _load_arrays(path: Path) -> dict:
    """A dict of arrays and plain values that torch.save wrote. Runs no code from the file."""
    try:
        with torch.serialization.safe_globals(_ARRAY_GLOBALS):
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        # A damaged file can raise nearly anything; torch's own message says how to run the file's code all the same.
        reason = f"{type(error).__name__}: it holds more than arrays of whole numbers, or only a part of them"
        raise damaged(path, reason) from None
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, no dict")
    return content


def _classes(content: dict, key: str, classes: int, path: Path) -> Tensor:
    """int64 (N,)."""
    if key not in content:
        raise damaged(path, f"it has no '{key}'")
    values = torch.as_tensor(np.asarray(content[key]))
    if values.ndim != 1 or values.is_floating_point() or not len(values):
        raise damaged(path, f"'{key}' is no list of classes")
    if int(values.min()) < 0 or int(values.max()) >= classes:
        raise damaged(path, f"'{key}' has classes outside 0 … {classes - 1}")
    return values.long()


# -- ANIMAL-10N --------------------------------------------------------------------------------------------

ANIMALS = [
    "cat",
    "lynx",
    "wolf",
    "coyote",
    "cheetah",
    "jaguar",
    "chimpanzee",
    "orangutan",
    "hamster",
    "guinea pig",
]
SIDE = 64
# A record of the binary version; its four-byte numbers are big-endian, as SELFIE's reader has them.
RECORD = np.dtype([("id", ">i4"), ("label", ">i4"), ("image", "u1", (3, SIDE, SIDE))])


def load_animal10n(root: str | None) -> ImageSets:
    """50,000 + 5,000 RGB pictures of 64 × 64, five pairs of animals that people confuse (Song et al. 2019).

    About 8 % of the training labels are wrong, by its authors' estimate; which ones nobody knows. Test labels are true.
    """
    root = data_root(root)
    for folder in (root / place for place in ("animal10n", "ANIMAL-10N", "raw_image", ".")):
        if (folder / "training").is_dir() and (folder / "testing").is_dir():
            return _load_pictures(root, folder)
        if (folder / "data_batch_1.bin").is_file() and (folder / "test_batch.bin").is_file():
            batches = sorted(folder.glob("data_batch_*.bin"), key=lambda path: (len(path.name), path.name))
            parts = [_records(path) for path in batches]
            train = Split(torch.cat([s.images for s in parts]), torch.cat([s.labels for s in parts]))
            return in_memory(train, _records(folder / "test_batch.bin"), ANIMALS)
    layouts = [
        "the folders training and testing of the raw image version, with pictures <label>_<id>.jpg",
        "the files data_batch_1.bin, … and test_batch.bin of the binary version",
    ]
    raise missing("ANIMAL-10N", root, layouts, "Ask for it at dm.kaist.ac.kr/datasets/animal-10n.")


def _load_pictures(root: Path, folder: Path) -> ImageSets:
    train, test = (_named_pictures(folder / name) for name in ("training", "testing"))

    def decode() -> ImageSets:
        return in_memory(decode_split(train, SIDE), decode_split(test, SIDE), ANIMALS)

    return cached(root, [Path(path) for s in (train, test) for path in s.images.paths], "animal10n", decode)


def _named_pictures(folder: Path) -> Split:
    """Pictures <label>_<id>.jpg, in the order of their names."""
    paths = sorted(path for path in folder.glob("*.jpg") if not path.name.startswith("."))
    heads = [path.name.partition("_")[0] for path in paths]
    wrong = [
        path for path, head in zip(paths, heads, strict=True) if not (head.isdecimal() and int(head) < 10)
    ]
    if wrong or not paths:
        reason = f"{wrong[0].name} does not begin with a class from 0 to 9" if wrong else "it has no pictures"
        raise damaged(folder, reason)
    return Split(PathImages([str(path) for path in paths]), torch.tensor([int(head) for head in heads]))


def _records(path: Path) -> Split:
    if path.stat().st_size == 0 or path.stat().st_size % RECORD.itemsize:
        raise damaged(path, f"its {path.stat().st_size:,} bytes are no multiple of {RECORD.itemsize:,}")
    content = np.fromfile(path, RECORD)
    labels = torch.from_numpy(content["label"].astype(np.int64))
    if int(labels.min()) < 0 or int(labels.max()) >= len(ANIMALS):
        raise damaged(path, f"it has labels outside 0 … {len(ANIMALS) - 1}")
    return Split(torch.from_numpy(content["image"].copy()), labels)


# -- Clothing1M --------------------------------------------------------------------------------------------

LISTS = {"train": "noisy_train", "val": "clean_val", "test": "clean_test"}
CLOTHES = 14


def load_clothing1m(root: str | None, balanced: int | str | None, subset: int) -> ImageSets:
    """A million pictures of clothes from shops, labelled by their surrounding text (Xiao et al. 2015); streamed.

    Training takes `noisy_train`, whose true classes are not known. `clean_val` and `clean_test` have true labels; the
    third clean list, `clean_train`, is not used, as is usual.

    Args:
        balanced: train on this many pictures of each class only; `smallest`: on as many as the smallest class has;
            null: on all.
        subset: which balanced subset, from 0; another number draws another one.
    """
    smallest = balanced == "smallest"
    if not smallest and balanced is not None and (not isinstance(balanced, int) or balanced < 1):
        raise UserError(
            f"dataset.balanced={balanced}: a number of pictures of each class, smallest, or null."
        )
    root = data_root(root)
    places = [root / place for place in ("clothing1m", "Clothing1M", ".")]
    folder = next((f for f in places if _annotations(f) is not None), None)
    if folder is None:
        names = ", ".join(f"{name}_key_list.txt" for name in LISTS.values())
        layout = (
            f"in a folder clothing1m the files category_names_eng.txt, noisy_label_kv.txt, clean_label_kv.txt, {names} "
            "and the folder images"
        )
        raise missing(
            "Clothing1M", root, [layout], "Its authors send it on request: github.com/Cysu/noisy_label."
        )
    notes = _annotations(folder)
    names = _lines(notes / "category_names_eng.txt")
    if len(names) != CLOTHES:
        raise damaged(notes / "category_names_eng.txt", f"{len(names)} of {CLOTHES} class names")
    labels = {kind: _label_file(notes / f"{kind}_label_kv.txt") for kind in ("noisy", "clean")}
    splits = {}
    for name, of in LISTS.items():
        path = notes / f"{of}_key_list.txt"
        keys, known = _lines(path), labels[of.partition("_")[0]]
        lost = next((key for key in keys if key not in known), None)
        if lost is not None:
            raise damaged(path, f"{lost} has no label in {of.partition('_')[0]}_label_kv.txt")
        splits[name] = Split(PathImages(keys), torch.tensor([known[key] for key in keys]))
    text = ""
    if balanced is not None:
        counts = splits["train"].labels.bincount(minlength=CLOTHES)
        each = int(counts.min()) if smallest else balanced
        if each > int(counts.min()):
            raise UserError(
                f"dataset.balanced={each}: the class {names[int(counts.argmin())]} has {int(counts.min())} training "
                "pictures. Take fewer, or dataset.balanced=smallest."
            )
        rank = rank_in_class(splits["train"].labels, f"clothing1m {subset}")
        splits["train"] = splits["train"].select((rank < each).nonzero().flatten())
        text = f"Training takes {each} pictures of each class, subset {subset}."
    # Some copies of the set lack the folder images, and have what belongs into it beside the lists.
    inside = (folder / "images").is_dir()
    parts: list[Tensor | str] = []
    for name, split in splits.items():
        keys = split.images.paths
        paths = [str(folder / (key if inside else key.removeprefix("images/"))) for key in keys]
        # The content of a million pictures would take hours to read: their names, sizes and classes stand for it.
        parts += [
            name,
            split.labels,
            *(f"{key} {_size(path)}" for key, path in zip(keys, paths, strict=True)),
        ]
        splits[name] = Split(PathImages(paths), split.labels)
    return ImageSets(splits["train"], splits["test"], splits["val"], names, fingerprint(*parts, *names), text)


def _annotations(folder: Path) -> Path | None:
    """Where the lists are: beside the pictures, as released, or in a folder annotations, as DivideMix's code has it."""
    return next(
        (f for f in (folder, folder / "annotations") if (f / "noisy_train_key_list.txt").is_file()), None
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path} is missing. Put all of Clothing1M's text files there.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise damaged(path, "it is empty")
    return lines


def _label_file(path: Path) -> dict[str, int]:
    """Key → class, of lines `images/7/24/1234.jpg 5`."""
    found = {}
    for line in _lines(path):
        key, _, label = line.rpartition(" ")
        if not key or not label.isdecimal() or int(label) >= CLOTHES:
            raise damaged(path, f"the line '{line}' is no key with a class from 0 to {CLOTHES - 1}")
        found[key.strip()] = int(label)
    return found


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        raise UserError(
            f"{path} is missing, which Clothing1M's lists name. Unpack its pictures again."
        ) from None
