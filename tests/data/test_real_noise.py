"""Sets with real label noise, written here as their owners write them, and read back."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regbench.data.loaders import Loader
from regbench.errors import UserError

SMALL = ("dataset.batch_size=2", "dataset.val_fraction=0")


def pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def labels_seen(loader: Loader) -> list[int]:
    batches = list(loader)
    index = torch.cat([batch["index"] for batch in batches])
    return torch.cat([batch["label"] for batch in batches])[index.argsort()].tolist()


# -- CIFAR-10N and CIFAR-100N ------------------------------------------------------------------------------

CLEAN = [i % 10 for i in range(20)]
HUMAN = {
    "clean_label": CLEAN,
    "aggre_label": [*CLEAN[:19], 0],
    "random_label1": [*CLEAN[:18], 0, 0],
    "random_label2": [*CLEAN[:17], 0, 0, 0],
    "random_label3": [*CLEAN[:16], 1, 0, 0, 0],
    "worse_label": [9 - label for label in CLEAN],
}


def write_cifar10(root: Path) -> None:
    pixels = pictures(24, 32)
    rows = pixels.transpose(0, 3, 1, 2).reshape(24, -1)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for i in range(5):
        part = slice(4 * i, 4 * i + 4)
        content = {b"data": rows[part], b"labels": CLEAN[part]}
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(content, 2))
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": rows[20:], b"labels": [0, 1, 2, 3]}, 2))


def write_human(path: Path, content: dict, numpy1: bool = True) -> None:
    """As torch.save wrote it in 2021: a zip whose pickle names NumPy 1's modules."""
    arrays = {key: np.array(value) if isinstance(value, list) else value for key, value in content.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(arrays, path)
    if numpy1:
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w") as file:
            for name, data in members.items():
                file.writestr(name, data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


@pytest.mark.parametrize("numpy1", [True, False])
@pytest.mark.parametrize("place", ["CIFAR-10_human.pt", "cifar-10-100n/data/CIFAR-10_human.pt"])
def test_cifar10n(make, tmp_path, place, numpy1):
    write_cifar10(tmp_path)
    write_human(tmp_path / place, HUMAN, numpy1)
    module = make("cifar10n", f"dataset.root={tmp_path}", *SMALL)  # worst is the default
    assert module.sets.train.labels.tolist() == HUMAN["worse_label"]
    assert module.clean_labels.tolist() == CLEAN
    assert labels_seen(module.train_loader()) == HUMAN["worse_label"]
    assert module.sets.test.labels.tolist() == [0, 1, 2, 3]
    assert "100.0% of the training labels are wrong" in module.describe()["notes"]


@pytest.mark.parametrize(
    ("labels", "key"),
    [
        ("aggregate", "aggre_label"),
        ("random1", "random_label1"),
        ("random2", "random_label2"),
        ("random3", "random_label3"),
    ],
)
def test_cifar10n_labels(make, tmp_path, labels, key):
    write_cifar10(tmp_path)
    write_human(tmp_path / "CIFAR-10_human.pt", HUMAN)
    sets = make("cifar10n", f"dataset.root={tmp_path}", f"dataset.labels={labels}", *SMALL).sets
    assert sets.train.labels.tolist() == HUMAN[key]
    assert sets.fingerprint != make("cifar10", f"dataset.root={tmp_path}", *SMALL).sets.fingerprint


def test_cifar100n(make, tmp_path):
    folder, rows = tmp_path / "cifar-100-python", pictures(4, 32).transpose(0, 3, 1, 2).reshape(4, -1)
    folder.mkdir()
    for name, part, fine in (("train", slice(0, 3), [5, 99, 7]), ("test", slice(3, 4), [0])):
        (folder / name).write_bytes(pickle.dumps({b"data": rows[part], b"fine_labels": fine}, 2))
    names = [f"n{i}".encode() for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}))
    human = {"clean_label": [5, 99, 7], "noisy_label": [5, 98, 7]}
    write_human(tmp_path / "CIFAR-100_human.pt", human)
    module = make("cifar100n", f"dataset.root={tmp_path}", *SMALL)
    assert module.sets.train.labels.tolist() == human["noisy_label"]
    assert module.clean_labels.tolist() == human["clean_label"]


def test_validation_images_keep_their_own_clean_labels(make, tmp_path):
    write_cifar10(tmp_path)
    write_human(tmp_path / "CIFAR-10_human.pt", HUMAN)
    options = ("dataset.val_fraction=0.5", "dataset.batch_size=2")
    sets = make("cifar10n", f"dataset.root={tmp_path}", *options).sets
    for split in (sets.train, sets.val):
        assert split.labels.tolist() == [9 - label for label in split.clean.tolist()]
    assert len(sets.train) == len(sets.val) == 10


def test_noise_on_top_of_human_labels_is_refused(make, tmp_path):
    write_cifar10(tmp_path)
    write_human(tmp_path / "CIFAR-10_human.pt", HUMAN)
    options = ("dataset.noise.kind=symmetric", "dataset.noise.rate=0.2")
    with pytest.raises(UserError, match="noisy already"):
        make("cifar10n", f"dataset.root={tmp_path}", *options, *SMALL).train_loader()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**HUMAN, "clean_label": CLEAN[::-1]}, "not their order of classes"),
        ({**HUMAN, "clean_label": CLEAN[:-1]}, "not their order of classes"),
        ({**HUMAN, "worse_label": [10] * 20}, "'worse_label' has classes outside 0 … 9"),
        ({**HUMAN, "worse_label": (0.5,) * 20}, "'worse_label' is no list of classes"),
        ({**HUMAN, "worse_label": CLEAN[:-1]}, "'worse_label' has 19 labels for 20 images"),
        ({"clean_label": CLEAN}, "no 'worse_label'"),
        ({**HUMAN, "worse_label": Bomb()}, "human.pt is damaged .*more than arrays"),
    ],
)
def test_wrong_human_labels_are_named(make, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    write_human(tmp_path / "CIFAR-10_human.pt", content)
    with pytest.raises(UserError, match=message):
        make("cifar10n", f"dataset.root={tmp_path}", *SMALL).train_loader()
    assert not (tmp_path / "exploded").exists()


def test_truncated_human_labels_are_named(make, tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "CIFAR-10_human.pt"
    write_human(path, HUMAN)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"human.pt is damaged or incomplete"):
        make("cifar10n", f"dataset.root={tmp_path}", *SMALL).train_loader()


def test_unknown_labels(make, tmp_path):
    with pytest.raises(UserError, match=r"worst"):
        make("cifar10n", f"dataset.root={tmp_path}", "dataset.labels=worse", *SMALL).train_loader()


# -- ANIMAL-10N --------------------------------------------------------------------------------------------


def write_animals(folder: Path, size: int = 64) -> None:
    pixels = pictures(6, size)
    for name, rows in (("training", (0, 1, 2, 3)), ("testing", (4, 5))):
        (folder / name).mkdir(parents=True)
        for row in rows:
            Image.fromarray(pixels[row]).save(folder / name / f"{9 - row}_{1000 + row}.jpg", quality=100)


@pytest.mark.parametrize("place", ["animal10n", "raw_image", "."])
def test_animal10n_pictures(make, tmp_path, place):
    write_animals(tmp_path / place)
    sets = make("animal10n", f"dataset.root={tmp_path}", *SMALL).sets
    assert sets.train.images.shape == (4, 3, 64, 64)
    assert sets.train.labels.tolist() == [6, 7, 8, 9]  # in the order of the files' names
    assert sets.test.labels.tolist() == [4, 5]
    assert sets.class_names[8:] == ["hamster", "guinea pig"]
    assert sets.train.clean is None  # nobody knows which labels are wrong
    red = torch.from_numpy(np.array(Image.open(tmp_path / place / "training/6_1003.jpg")))[..., 0]
    assert torch.equal(sets.train.images[0, 0], red)
    again = make("animal10n", f"dataset.root={tmp_path}", *SMALL).sets  # from the cache
    assert again.fingerprint == sets.fingerprint


def test_animal10n_pictures_of_another_size_are_resized(make, tmp_path):
    write_animals(tmp_path, size=80)
    assert make("animal10n", f"dataset.root={tmp_path}", *SMALL).shape == (3, 64, 64)


def record(number: int, label: int, pixels: np.ndarray) -> bytes:
    """Four bytes of id, four of the label (big-endian), then all red, all green, all blue values, row by row."""
    return number.to_bytes(4, "big") + label.to_bytes(4, "big") + pixels.transpose(2, 0, 1).tobytes()


def write_records(folder: Path) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = pictures(13, 64)
    for i in range(11):  # 11 files: data_batch_10 comes after data_batch_9
        (folder / f"data_batch_{i + 1}.bin").write_bytes(record(i, i % 10, pixels[i]))
    (folder / "test_batch.bin").write_bytes(record(11, 3, pixels[11]) + record(12, 4, pixels[12]))
    return pixels


def test_animal10n_records(make, tmp_path):
    pixels = torch.from_numpy(write_records(tmp_path / "animal10n")).permute(0, 3, 1, 2)
    sets = make("animal10n", f"dataset.root={tmp_path}", *SMALL).sets
    assert torch.equal(sets.train.images, pixels[:11])
    assert torch.equal(sets.test.images, pixels[11:])
    assert sets.train.labels.tolist() == [*range(10), 0]
    assert sets.test.labels.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "data_batch_2.bin is damaged or incomplete .its 12,295 bytes"),
        (lambda data: b"", "data_batch_2.bin is damaged or incomplete .its 0 bytes"),
        (lambda data: data[:4] + (10).to_bytes(4, "big") + data[8:], "labels outside 0 … 9"),
        (lambda data: data[:4] + (1).to_bytes(4, "little") + data[8:], "labels outside 0 … 9"),
    ],
)
def test_damaged_records_are_named(make, tmp_path, change, message):
    write_records(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        make("animal10n", f"dataset.root={tmp_path}", *SMALL).train_loader()


def test_pictures_without_a_class_are_named(make, tmp_path):
    write_animals(tmp_path)
    (tmp_path / "training/6_1003.jpg").rename(tmp_path / "training/cat_1003.jpg")
    with pytest.raises(UserError, match=r"cat_1003.jpg does not begin with a class"):
        make("animal10n", f"dataset.root={tmp_path}", *SMALL).train_loader()


# -- Clothing1M --------------------------------------------------------------------------------------------

SHOP = ("dataset.batch_size=2", "dataset.image_size=32", "dataset.workers=0")
NOISY = {f"images/0/{i % 3}/{i}.jpg": label for i, label in enumerate([0, 1, 1, *range(14), 0, 2])}
CLEAN_VAL, CLEAN_TEST = {"images/1/0/100.jpg": 3, "images/1/0/101.jpg": 4}, {"images/2/5/200.jpg": 13}


def write_clothing1m(folder: Path, notes: Path | None = None, images: str = "images/") -> None:
    notes = notes or folder
    notes.mkdir(parents=True, exist_ok=True)
    names = ["T-Shirt", "Shirt", *(f"Class {i}" for i in range(2, 14))]
    (notes / "category_names_eng.txt").write_text("\n".join(names) + "\n")
    both = {**CLEAN_VAL, **CLEAN_TEST}
    for name, labels in (("noisy", {**NOISY, "images/9/9/9.jpg": 5}), ("clean", both)):
        lines = "".join(f"{key} {label}\n" for key, label in labels.items())
        (notes / f"{name}_label_kv.txt").write_text(lines)
    for name, labels in (("noisy_train", NOISY), ("clean_val", CLEAN_VAL), ("clean_test", CLEAN_TEST)):
        (notes / f"{name}_key_list.txt").write_text("".join(f"{key}\n" for key in labels))
    for row, key in enumerate([*NOISY, *both]):
        path = folder / (images + key.removeprefix("images/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, 40, seed=row)[0]).save(path)


@pytest.mark.parametrize(
    "layout",
    [
        lambda root: write_clothing1m(root / "clothing1m"),
        lambda root: write_clothing1m(root),
        lambda root: write_clothing1m(root / "Clothing1M", root / "Clothing1M/annotations"),
        lambda root: write_clothing1m(root / "clothing1m", images=""),
    ],
)
def test_clothing1m(make, tmp_path, layout):
    layout(tmp_path)
    module = make("clothing1m", f"dataset.root={tmp_path}", *SHOP)
    assert module.sets.train.labels.tolist() == list(NOISY.values())
    assert module.sets.val.labels.tolist() == [3, 4]
    assert module.sets.test.labels.tolist() == [13]
    assert module.clean_labels is None
    assert module.class_names[:2] == ["T-Shirt", "Shirt"]
    seen = next(iter(module.train_loader()))
    assert seen["image"].shape == (2, 3, 32, 32)
    assert seen["label"].tolist() == [list(NOISY.values())[i] for i in seen["index"]]
    assert [batch["label"].tolist() for batch in module.val_loader()] == [[3, 4]]


def test_balanced_subsets(make, tmp_path):
    write_clothing1m(tmp_path)

    def sets(*options: str):
        return make("clothing1m", f"dataset.root={tmp_path}", *SHOP, *options).sets

    one = sets("dataset.balanced=1")
    assert sorted(one.train.labels.tolist()) == list(range(14))
    assert [NOISY[f"images/{path.partition('images/')[2]}"] for path in one.train.images.paths] == (
        one.train.labels.tolist()
    )
    smallest = sets("dataset.balanced=smallest")  # class 3 has one picture
    assert smallest.train.images.paths == one.train.images.paths
    others = [sets("dataset.balanced=1", f"dataset.subset={i}") for i in range(1, 6)]
    assert any(other.train.images.paths != one.train.images.paths for other in others)
    assert len({s.fingerprint for s in (one, sets())}) == 2
    assert "1 pictures of each class, subset 0" in one.notes
    assert len(one.val) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dataset.balanced=2"], "balanced=2: the class Class 3 has 1 training"),
        (["dataset.balanced=0"], "balanced=0"),
        (["dataset.balanced=all"], "balanced=all"),
    ],
)
def test_balanced_subsets_that_there_are_not(make, tmp_path, options, message):
    write_clothing1m(tmp_path)
    with pytest.raises(UserError, match=message):
        make("clothing1m", f"dataset.root={tmp_path}", *SHOP, *options).train_loader()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("noisy_label_kv.txt", "images/0/0/0.jpg 0\n", "images/0/1/1.jpg has no label in noisy_label_kv.txt"),
        ("clean_label_kv.txt", "images/1/0/100.jpg 14\n", "no key with a class from 0 to 13"),
        ("clean_label_kv.txt", "images/1/0/100.jpg\n", "no key with a class from 0 to 13"),
        ("category_names_eng.txt", "Shirt\n", "1 of 14 class names"),
        ("clean_val_key_list.txt", "", "clean_val_key_list.txt is damaged .*it is empty"),
        ("clean_test_key_list.txt", None, "clean_test_key_list.txt is missing"),
        ("images/2/5/200.jpg", None, "images/2/5/200.jpg is missing, which Clothing1M's lists name"),
    ],
)
def test_damaged_lists_are_named(make, tmp_path, file, content, message):
    write_clothing1m(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        make("clothing1m", f"dataset.root={tmp_path}", *SHOP).train_loader()


# -- none there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cifar10n", r"CIFAR-10_human.pt.*UCSC-REAL/cifar-10-100n"),
        ("cifar100n", r"CIFAR-100_human.pt.*UCSC-REAL/cifar-10-100n"),
        ("animal10n", r"training and testing.*<label>_<id>.jpg.*data_batch_1.bin.*dm.kaist.ac.kr"),
        ("clothing1m", r"noisy_label_kv.txt.*noisy_train_key_list.txt.*images.*Cysu/noisy_label"),
    ],
)
def test_missing_sets_say_what_to_put_where(make, tmp_path, name, wanted):
    with pytest.raises(UserError, match=f"not under {tmp_path}.*{wanted}"):
        make(name, f"dataset.root={tmp_path}").train_loader()
