"""The Hugging Face Hub's parquet layout of image sets: a column of encoded pictures and one of labels."""

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regbench.data.files import cached, damaged, decode_all, open_image
from regbench.data.sets import ImageSets, Split, in_memory
from regbench.errors import UserError

TEST_NAMES = ("test", "valid", "validation")


def find(root: Path, name: str) -> dict[str, list[Path]] | None:
    """{"train": files, "test": files} of the first layout that exists under `root`, else None.

    Looked for in `name/`, `name/name`, `name/plain_text`, `name/data`, `plain_text` and `data`; files are
    `<split>-*.parquet`. Where there is no test split, the validation split is the test set, as is usual for
    sets with unpublished test labels.
    """
    inside = [root / name / part for part in ("", name, "plain_text", "data")]
    for folder in (*inside, root / "plain_text", root / "data"):
        train = sorted(folder.glob("train-*.parquet"))
        test = next((found for t in TEST_NAMES if (found := sorted(folder.glob(f"{t}-*.parquet")))), [])
        if train and test:
            return {"train": train, "test": test}
    return None


def load(
    root: Path, files: dict[str, list[Path]], image: str, label: str, class_names: list[str], size: int = 32
) -> ImageSets:
    """Decodes RGB pictures of size × size from the columns `image` (struct with bytes) and `label` (int)."""

    def decode() -> ImageSets:
        splits = {name: _read(paths, image, label, len(class_names), size) for name, paths in files.items()}
        return in_memory(splits["train"], splits["test"], class_names)

    return cached(root, [p for paths in files.values() for p in paths], f"{image} {label} {size}", decode)


def stored_names(path: Path, label: str, count: int) -> list[str]:
    """The class names that the Hub's tools store in the file's schema; the numbers where there are none."""
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError, OSError):
        names = []
    return names if len(names) == count else [str(i) for i in range(count)]


def _read(paths: list[Path], image: str, label: str, classes: int, size: int) -> Split:
    images, labels = [], []
    for path in paths:
        column, targets = _columns(path, image, label)
        if targets.min() < 0 or targets.max() >= classes:
            raise damaged(
                path, f"labels from {targets.min()} to {targets.max()}, expected 0 to {classes - 1}"
            )
        images.append(decode_all(partial(_picture, path, column, size), len(column), size))
        labels.append(torch.from_numpy(targets))
    return Split(torch.cat(images), torch.cat(labels))


def _picture(path: Path, column: list[bytes | None], size: int, row: int) -> Image.Image:
    picture = open_image(io.BytesIO(column[row] or b""), f"{path}, row {row},")
    if picture.size != (size, size):
        raise damaged(path, f"row {row} is {picture.width} × {picture.height}, expected {size} × {size}")
    return picture


def _columns(path: Path, image: str, label: str) -> tuple[list[bytes | None], np.ndarray]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=[image, label])
        column = table.column(image).combine_chunks().field("bytes").to_pylist()
        targets = table.column(label).to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, AttributeError) as error:
        raise damaged(path, error) from None
    if not column:
        raise UserError(f"{path} holds no images.")
    return column, targets
