"""Every on-disk layout, written here as its owner writes it, and read back; damaged and malicious files."""

import io
import os
import pickle
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from regbench.errors import UserError

SMALL = ("dataset.batch_size=2", "dataset.val_fraction=0")


def pictures(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_batch(path: Path, pixels: np.ndarray, labels: list[int], key: bytes, protocol: int = 2) -> None:
    """One of CIFAR's pickles: rows of 3,072 values, all red, then all green, then all blue."""
    content = {
        b"data": pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1),
        key: labels,
        b"batch_label": b"x",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


def write_cifar10(root: Path) -> np.ndarray:
    pixels = pictures(24)
    for i in range(5):
        labels = [(4 * i + j) % 10 for j in range(4)]
        write_batch(
            root / f"cifar-10-batches-py/data_batch_{i + 1}", pixels[4 * i : 4 * i + 4], labels, b"labels"
        )
    write_batch(root / "cifar-10-batches-py/test_batch", pixels[20:], [0, 1, 2, 3], b"labels")
    return pixels


def write_parquet(path: Path, image: str, encoded: list[bytes], labels: dict[str, list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array([{"bytes": content, "path": None} for content in encoded])
    pq.write_table(pa.table({image: column, **labels}), path)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


# -- CIFAR -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_pickles(make, tmp_path, protocol):
    pixels = write_cifar10(tmp_path)
    write_batch(tmp_path / "cifar-10-batches-py/test_batch", pixels[20:], [9, 1, 2, 3], b"labels", protocol)
    sets = make("cifar10", f"dataset.root={tmp_path}", *SMALL).sets
    assert torch.equal(sets.train.images, as_tensor(pixels[:20]))
    assert sets.train.labels.tolist() == [i % 10 for i in range(20)]
    assert torch.equal(sets.test.images, as_tensor(pixels[20:]))
    assert sets.class_names[sets.test.labels[0]] == "truck"


def test_cifar100_pickles(make, tmp_path):
    pixels, folder = pictures(3), tmp_path / "cifar-100-python"
    write_batch(folder / "train", pixels[:2], [0, 99], b"fine_labels")
    write_batch(folder / "test", pixels[2:], [7], b"fine_labels")
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [f"n{i}".encode() for i in range(100)]}))
    sets = make("cifar100", f"dataset.root={tmp_path}", *SMALL).sets
    assert torch.equal(sets.train.images, as_tensor(pixels[:2]))
    assert [sets.class_names[i] for i in sets.train.labels] == ["n0", "n99"]


@pytest.mark.parametrize("folder", ["cifar10/plain_text", "plain_text", "cifar10"])
def test_cifar10_parquet(make, tmp_path, folder):
    pixels = pictures(5)
    for name, part in (("train", slice(0, 3)), ("test", slice(3, 5))):
        path = tmp_path / folder / f"{name}-00000-of-00001.parquet"
        write_parquet(path, "img", [png(p) for p in pixels[part]], {"label": list(range(5))[part]})
    sets = make("cifar10", f"dataset.root={tmp_path}", *SMALL).sets
    assert torch.equal(sets.train.images, as_tensor(pixels[:3]))
    assert sets.test.labels.tolist() == [3, 4]


def test_parquet_and_pickles_of_the_same_pixels_have_one_fingerprint(make, tmp_path):
    pixels = write_cifar10(tmp_path / "a")
    labels = {"label": [i % 10 for i in range(20)] + [0, 1, 2, 3]}
    for name, part in (("train", slice(0, 20)), ("test", slice(20, 24))):
        path = tmp_path / "b/plain_text" / f"{name}-00000-of-00001.parquet"
        write_parquet(path, "img", [png(p) for p in pixels[part]], {"label": labels["label"][part]})
    first, second = (make("cifar10", f"dataset.root={tmp_path / name}", *SMALL) for name in "ab")
    assert first.sets.fingerprint == second.sets.fingerprint


def test_cifar100_parquet(make, tmp_path):
    for name in ("train", "test"):
        path = tmp_path / f"cifar100/cifar100/{name}-00000-of-00001.parquet"
        write_parquet(
            path, "img", [png(p) for p in pictures(2)], {"fine_label": [0, 42], "coarse_label": [0, 1]}
        )
    sets = make("cifar100", f"dataset.root={tmp_path}", *SMALL).sets
    assert sets.train.labels.tolist() == [0, 42]


# -- the cache ---------------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path):
    """Writes both files with `count` training pictures, and returns the root."""

    def write(count: int = 4, seed: int = 0) -> Path:
        for name in ("train", "test"):
            path = tmp_path / f"root/plain_text/{name}-00000-of-00001.parquet"
            write_parquet(
                path, "img", [png(p) for p in pictures(count, seed=seed)], {"label": [0, 1] * (count // 2)}
            )
        return tmp_path / "root"

    return write


def test_second_read_comes_from_the_cache(make, parquet, monkeypatch):
    root = parquet()
    first = make("cifar10", f"dataset.root={root}", *SMALL).sets
    monkeypatch.setattr("regbench.data.parquet.open_image", None)
    second = make("cifar10", f"dataset.root={root}", *SMALL).sets
    assert torch.equal(first.train.images, second.train.images)
    assert (first.fingerprint, first.class_names) == (second.fingerprint, second.class_names)
    assert not [path for path in (root / ".regbench-cache").iterdir() if "finished" in path.name]


def test_changed_files_are_decoded_anew(make, parquet):
    root = parquet()
    first = make("cifar10", f"dataset.root={root}", *SMALL).sets
    parquet(count=6, seed=1)
    second = make("cifar10", f"dataset.root={root}", *SMALL).sets
    assert (len(first.train), len(second.train)) == (4, 6)
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("damage", ["truncate", "pickle", "remove"])
def test_damaged_cache_is_written_anew(make, parquet, damage):
    root = parquet()
    first = make("cifar10", f"dataset.root={root}", *SMALL).sets
    (array,) = root.glob(".regbench-cache/*/train_images.npy")
    if damage == "truncate":
        array.write_bytes(array.read_bytes()[:-100])
    elif damage == "pickle":
        np.save(array, np.array([print], dtype=object), allow_pickle=True)
    else:
        array.unlink()
    assert torch.equal(make("cifar10", f"dataset.root={root}", *SMALL).sets.train.images, first.train.images)
    assert np.load(array, allow_pickle=False).shape == (4, 3, 32, 32)


def test_read_only_root_is_left_as_it_is(make, parquet, tmp_path):
    root = parquet()
    root.chmod(0o555)
    try:
        make("cifar10", f"dataset.root={root}", *SMALL).train_loader()
        assert sorted(path.name for path in root.iterdir()) == ["plain_text"]
        assert list((tmp_path / "user-cache").rglob("train_images.npy"))
    finally:
        root.chmod(0o755)


# -- damaged, malicious, missing ---------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("payload", [Bomb(), {b"data": Bomb()}, {b"data": np.array([Bomb()], dtype=object)}])
def test_malicious_pickle_is_refused(make, tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(payload))
    with pytest.raises(UserError, match=r"data_batch_3 is refused.*system"):
        make("cifar10", f"dataset.root={tmp_path}", *SMALL).train_loader()
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"\x00" * len(content),
        lambda content: pickle.dumps({b"labels": [0]}),
        lambda content: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 10]}),
        lambda content: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0]}),
    ],
)
def test_damaged_pickle_is_named(make, tmp_path, damage):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_2"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="data_batch_2 is damaged or incomplete"):
        make("cifar10", f"dataset.root={tmp_path}", *SMALL).train_loader()


def test_missing_batch_is_named(make, tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(UserError, match="test_batch is missing"):
        make("cifar10", f"dataset.root={tmp_path}", *SMALL).test_loader()


def test_truncated_parquet_is_named(make, parquet):
    root = parquet()
    path = root / "plain_text/test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"test-00000-of-00001.parquet is damaged"):
        make("cifar10", f"dataset.root={root}", *SMALL).train_loader()


@pytest.mark.parametrize(
    ("content", "message"), [(b"no picture", "row 1"), (None, "row 1"), (png(pictures(1, 16)[0]), "16 × 16")]
)
def test_damaged_picture_in_parquet_is_named(make, parquet, content, message):
    root = parquet()
    encoded = [png(pictures(1)[0]), content]
    write_parquet(root / "plain_text/train-00000-of-00001.parquet", "img", encoded, {"label": [0, 1]})
    with pytest.raises(UserError, match=f"train-00000-of-00001.parquet.*{message}"):
        make("cifar10", f"dataset.root={root}", *SMALL).train_loader()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cifar10", "cifar-10-batches-py.*cifar10/plain_text/.*parquet"),
        ("cifar100", "cifar-100-python.*cifar100/cifar100/.*parquet"),
        ("stl10", "stl10_binary"),
        ("tiny_imagenet", "tiny-imagenet-200.*zh-plus/tiny-imagenet"),
        ("imagenet", "folders train and val"),
    ],
)
def test_missing_files_without_a_network(make, tmp_path, monkeypatch, name, wanted):
    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr("regbench.data.download.getproxies", dict)
    with pytest.raises(UserError, match=f"not under {tmp_path}.*{wanted}"):
        make(name, f"dataset.root={tmp_path}").train_loader()
    assert not list(tmp_path.glob("*.gz"))


def test_failed_download_is_reported(make, tmp_path, monkeypatch):
    class Refused:
        url = "https://example.invalid/cifar.tar.gz"

        def __init__(self, root, download):
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Refused)
    monkeypatch.setattr("regbench.data.download.getproxies", lambda: {"https": "http://proxy.invalid"})
    with pytest.raises(UserError, match=r"download from example.invalid failed: File not found or corrupted"):
        make("cifar10", f"dataset.root={tmp_path}").train_loader()


def test_download_goes_through_torchvision(make, tmp_path, monkeypatch):
    class Served:
        url = "https://example.invalid/cifar.tar.gz"

        def __init__(self, root, download):
            assert download
            write_cifar10(root)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Served)
    monkeypatch.setattr("regbench.data.download.getproxies", lambda: {"https": "http://proxy.invalid"})
    assert len(make("cifar10", f"dataset.root={tmp_path}", *SMALL).sets.train) == 20


def test_default_root_is_the_environments(make, tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setenv("REGBENCH_DATA", str(tmp_path))
    assert len(make("cifar10", *SMALL).sets.test) == 4


# -- STL-10 and Tiny ImageNet ------------------------------------------------------------------------------


def write_stl10(root: Path) -> np.ndarray:
    folder = root / "stl10_binary"
    folder.mkdir()
    pixels = pictures(6, 96)
    for name, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        (folder / f"{name}_X.bin").write_bytes(
            pixels[part].transpose(0, 3, 2, 1).tobytes()
        )  # column by column
        (folder / f"{name}_y.bin").write_bytes(bytes([1, 10, 2, 3, 4, 5][part]))
    return pixels


def test_stl10(make, tmp_path):
    pixels = write_stl10(tmp_path)
    module = make("stl10", f"dataset.root={tmp_path}", *SMALL)
    assert torch.equal(module.sets.train.images, as_tensor(pixels[:4]))
    assert module.sets.train.labels.tolist() == [0, 9, 1, 2]
    assert next(iter(module.train_loader()))["image"].shape == (2, 3, 96, 96)


@pytest.mark.parametrize(("file", "keep"), [("train_X.bin", -1), ("train_X.bin", 0), ("test_y.bin", 1)])
def test_truncated_stl10_is_named(make, tmp_path, file, keep):
    write_stl10(tmp_path)
    path = tmp_path / "stl10_binary" / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{file} is damaged"):
        make("stl10", f"dataset.root={tmp_path}", *SMALL).train_loader()


WNIDS = ["n01443537", "n01629819", "n01641577"]


def write_tiny_imagenet(root: Path) -> None:
    folder = root / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for i in range(2):
            Image.new("L" if i else "RGB", (64, 64), 80 * label if i else (80 * label,) * 3).save(
                images / f"{wnid}_{i}.JPEG", quality=100
            )
    (folder / "val/images").mkdir(parents=True)
    lines = []
    for i, label in enumerate((2, 0)):
        Image.new("RGB", (64, 64), (80 * label,) * 3).save(folder / f"val/images/val_{i}.JPEG", quality=100)
        lines.append(f"val_{i}.JPEG\t{WNIDS[label]}\t0\t0\t10\t10\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)))


def test_tiny_imagenet_folder(make, tmp_path):
    write_tiny_imagenet(tmp_path)
    sets = make("tiny_imagenet", f"dataset.root={tmp_path}", "dataset.num_classes=3", *SMALL).sets
    assert sets.class_names == WNIDS
    assert sets.test.labels.tolist() == [2, 0]
    for split in (sets.train, sets.test):
        assert split.images.shape[1:] == (3, 64, 64)
        assert (split.images[:, :, 0, 0].float() - 80 * split.labels[:, None]).abs().max() <= 2  # JPEG


def test_tiny_imagenet_annotation_of_an_unknown_class(make, tmp_path):
    write_tiny_imagenet(tmp_path)
    path = tmp_path / "tiny-imagenet-200/val/val_annotations.txt"
    path.write_text(path.read_text() + "val_0.JPEG\tn99999999\t0\t0\t1\t1\n")
    with pytest.raises(UserError, match=r"val_annotations.txt is damaged.*line 3"):
        make("tiny_imagenet", f"dataset.root={tmp_path}").train_loader()


def test_tiny_imagenet_broken_picture_is_named(make, tmp_path):
    write_tiny_imagenet(tmp_path)
    path = tmp_path / f"tiny-imagenet-200/train/{WNIDS[1]}/images/{WNIDS[1]}_0.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        make("tiny_imagenet", f"dataset.root={tmp_path}", "dataset.num_classes=3", *SMALL).train_loader()


def test_tiny_imagenet_parquet(make, tmp_path):
    pixels = pictures(3, 64)
    for name in ("train-00000-of-00001-ab12", "valid-00000-of-00001-cd34"):
        grey = png(np.full((64, 64), 9, np.uint8))
        path = tmp_path / f"tiny-imagenet/data/{name}.parquet"
        write_parquet(path, "image", [*map(png, pixels), grey], {"label": [0, 199, 3, 4]})
    sets = make("tiny_imagenet", f"dataset.root={tmp_path}", *SMALL).sets
    assert torch.equal(sets.train.images[:3], as_tensor(pixels))
    assert sets.test.images[3].unique().tolist() == [9]
    assert len(sets.class_names) == 200


# -- the real CIFAR-10 -------------------------------------------------------------------------------------


@pytest.mark.skipif(
    "REGBENCH_TEST_CIFAR10" not in os.environ, reason="REGBENCH_TEST_CIFAR10 names no folder with CIFAR-10"
)
def test_real_cifar10(make):
    module = make("cifar10", f"dataset.root={os.environ['REGBENCH_TEST_CIFAR10']}", "dataset.val_fraction=0")
    sets = module.sets
    assert sets.train.labels.bincount().tolist() == [5000] * 10
    assert sets.test.labels.bincount().tolist() == [1000] * 10
    assert sets.train.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    mean = sets.train.images.double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)


def test_pictures_of_every_colour_mode(tmp_path):
    from regbench.data.files import open_image

    half = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    cases = {
        "grey.png": (Image.new("L", (2, 1), 7), (7, 7, 7)),
        "grey16.png": (Image.fromarray(np.full((1, 2), 257 * 9, np.uint16)), (9, 9, 9)),
        "palette.png": (palette, (10, 20, 30)),
        "rgba.png": (half, (255, 0, 0)),
        "two.png": (Image.new("1", (2, 1), 1), (255, 255, 255)),
        "cmyk.tiff": (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), (255, 0, 0)),
    }
    for name, (image, colour) in cases.items():
        image.save(tmp_path / name)
        result = open_image(tmp_path / name)
        assert result.mode == "RGB"
        assert result.getpixel((0, 0)) == colour
    assert open_image(tmp_path / "rgba.png").getpixel((1, 0)) == (255, 255, 255)


def test_a_picture_of_absurd_size_is_refused(tmp_path):
    from regbench.data.files import open_image

    path = tmp_path / "bomb.png"
    content = bytearray(png(pictures(1)[0]))
    content[16:24] = struct.pack(">II", 2**16, 2**16)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bomb.png is damaged"):
        open_image(path)
    shutil.rmtree(tmp_path)
