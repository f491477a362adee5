"""Reading other people's files: where they lie, pickles without code, pictures of any kind, and a cache."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import platformdirs
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from regbench.data.sets import ImageSets, Split
from regbench.errors import UserError

CACHE_VERSION = 1  # raise it when the same files are decoded to other arrays
WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "PPM",
    "TIFF",
)  # naming them also halves the time of a small picture
CHUNK = 500  # pictures that a process decodes at a time
Image.MAX_IMAGE_PIXELS = 10**9  # photographs; PIL's own limit warns at 90 million pixels


def missing(name: str, root: Path, layouts: Sequence[str], reason: str = "") -> UserError:
    """The error for a set that is not under `root`, saying what would be read from where."""
    wanted = "; or ".join(layouts)
    text = f"{name} is not under {root.absolute()} (dataset.root). Put there {wanted}."
    return UserError(f"{text} {reason}".strip())


# -- pickles -----------------------------------------------------------------------------------------------

# What NumPy's arrays need to come back; bytes, str, int, list and dict need nothing.
_PICKLED_NAMES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _PICKLED_NAMES:
            raise UserError(f"it asks for {module}.{name}, which data has no need of")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def unpickle(path: Path) -> dict:
    """A pickled dict of arrays and plain values; text of Python 2 becomes bytes. Runs no code from the file.

    Raises:
        UserError: names the file where it is damaged, or asks for anything but NumPy arrays and plain types.
    """
    try:
        with path.open("rb") as file:
            content = _DataUnpickler(file, encoding="bytes").load()
    except UserError as error:
        raise UserError(f"{path} is refused: {error}. Fetch it again from a source that you trust.") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise damaged(path, error) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where a dict was expected.")
    return content


def damaged(path: str | os.PathLike, reason: object) -> UserError:
    """The error for a file that does not hold what it should."""
    return UserError(f"{path} is damaged or incomplete ({reason}). Delete it and fetch it again.")


# -- pictures ----------------------------------------------------------------------------------------------


def open_image(source: str | os.PathLike | io.BytesIO, name: str = "") -> Image.Image:
    """A decoded picture, as RGB. Grey and palette pictures, CMYK and 16 bits are converted; transparency is
    laid on white.

    Raises:
        UserError: names the file (`name` where `source` is bytes) that can't be decoded.
    """
    try:
        image = Image.open(source, formats=FORMATS)
        image.load()
        return _to_rgb(image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise damaged(name or source, error) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits; PIL's own conversion clips at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, size: int, shorter_side: int | None = None) -> Image.Image:
    """Resizes the shorter side to `shorter_side` (default `size`); keeps the central size × size pixels."""
    shorter_side = shorter_side or size
    width, height = image.size
    ratio = shorter_side / min(width, height)
    width, height = max(size, round(width * ratio)), max(size, round(height * ratio))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image if (width, height) == (size, size) else image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB picture → uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class _Chunks(Dataset):
    """Pictures as uint8 (n, size, size, 3), CHUNK at a time; a damaged one as the text of its UserError."""

    def __init__(self, decode: Callable[[int], Image.Image], count: int, size: int):
        self.decode, self.count, self.size = decode, count, size

    def __len__(self) -> int:
        return -(-self.count // CHUNK)

    def __getitem__(self, chunk: int) -> torch.Tensor | str:
        rows = range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count))
        array = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        try:
            for out, row in zip(array, rows, strict=True):
                out[:] = np.asarray(self.decode(row))
        except UserError as error:
            return str(error)
        return torch.from_numpy(array)


def decode_all(decode: Callable[[int], Image.Image], count: int, size: int) -> torch.Tensor:
    """uint8 (count, 3, size, size): `decode(i)` for each i, an RGB picture of size × size; in processes where
    it pays.

    Processes, because PIL holds Python's lock while it decodes; those of torch's DataLoader, because they
    start safely beside torch's threads. Raises the UserError of the first picture that can't be decoded.
    """
    parallel = count > 10 * CHUNK and not multiprocessing.current_process().daemon
    workers = (
        min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) if parallel else 0
    )
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    done = 0
    chunks = _Chunks(decode, count, size)
    for chunk in DataLoader(chunks, batch_size=None, num_workers=workers, generator=torch.Generator()):
        if isinstance(chunk, str):
            raise UserError(chunk)
        images[done : done + len(chunk)] = chunk.permute(0, 3, 1, 2)
        done += len(chunk)
    return images


# -- cache -------------------------------------------------------------------------------------------------


def cached(root: Path, sources: Iterable[Path], options: str, decode: Callable[[], ImageSets]) -> ImageSets:
    """`decode()`, remembered as .npy files; done anew when a source's path, size or time of change is
    another.

    The cache lies in `root/.regbench-cache`, or in the user's cache folder where `root` can't be written to
    or is marked read-only; where neither can, every run decodes anew. It holds arrays and JSON only.
    `options` says how `decode` was asked to decode.
    """
    state = hashlib.sha256(f"{CACHE_VERSION}\n{options}\n".encode())
    for path in sources:
        about = path.stat()
        state.update(f"{path.absolute()}\n{about.st_size} {about.st_mtime_ns}\n".encode())
    key = state.hexdigest()[:24]
    folders = [Path(platformdirs.user_cache_dir("regbench", appauthor=False)) / "data"]
    if (
        root.stat().st_mode & WRITABLE
    ):  # the mark, and not os.access: root may write anywhere and still should not
        folders.insert(0, root / ".regbench-cache")
    for folder in folders:
        if (folder / key).is_dir():
            try:
                return _read_cache(folder / key)
            except (OSError, ValueError, KeyError):
                continue  # damaged; decoded and written anew below
    sets = decode()
    for folder in folders:
        try:
            _write_cache(folder, key, sets)
            break
        except OSError:
            continue
    return sets


def _read_cache(folder: Path) -> ImageSets:
    about = json.loads((folder / "about.json").read_text())

    def split(name: str) -> Split:
        arrays = (np.load(folder / f"{name}_{part}.npy", allow_pickle=False) for part in ("images", "labels"))
        return Split(*map(torch.from_numpy, arrays))

    val = split("val") if about.pop("has_val") else None
    return ImageSets(train=split("train"), test=split("test"), val=val, **about)


def _write_cache(folder: Path, key: str, sets: ImageSets) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="unfinished-") as beside:
        for name in ("train", "val", "test"):
            split = getattr(sets, name)
            if split is not None:
                np.save(Path(beside, f"{name}_images.npy"), split.images.numpy(), allow_pickle=False)
                np.save(Path(beside, f"{name}_labels.npy"), split.labels.numpy(), allow_pickle=False)
        about = {k: getattr(sets, k) for k in ("class_names", "fingerprint", "notes")}
        about["has_val"] = sets.val is not None
        Path(beside, "about.json").write_text(json.dumps(about))
        Path(beside).chmod(0o755)
        _replace_folder(Path(beside), folder / key)


def _replace_folder(source: Path, target: Path) -> None:
    """Renames the content of `source` to `target`, which may be a damaged older copy or another process's."""
    finished = source.with_name(source.name.replace("unfinished-", "finished-"))
    source.rename(finished)
    source.mkdir()  # what TemporaryDirectory will remove
    if target.exists():
        target.rename(source / "old")
    finished.rename(target)
