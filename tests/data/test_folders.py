"""Class folders, streaming, and a user's own Dataset."""

import numpy as np
import pytest
import torch
from PIL import Image

from regbench.data import custom, folders
from regbench.data.files import resize_and_crop
from regbench.data.streaming import random_resized_crop
from regbench.errors import UserError

SMALL = (
    "dataset.batch_size=4",
    "dataset.eval_batch_size=4",
    "dataset.image_size=16",
    "dataset.val_fraction=0.25",
)
COLOURS = {"ant": (200, 0, 0), "bee": (0, 200, 0), "cow": (0, 0, 200)}


def write_classes(folder, count=8, names=tuple(COLOURS)):
    """`count` pictures a class, each of its own size, all of the class's colour."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20 + 3 * i, 40 - 2 * i), COLOURS[name]).save(folder / name / f"{i}.png")


def colours(images: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(image[:, 8, 8].tolist()) for image in images]


def test_class_folders_without_levels(make, tmp_path):
    write_classes(tmp_path, 10)
    module = make("image_folder", f"dataset.root={tmp_path}", *SMALL)
    sets = module.sets
    assert sets.class_names == ["ant", "bee", "cow"]
    assert [len(s) for s in (sets.train, sets.val, sets.test)] == [18, 6, 6]
    assert sets.test.labels.bincount().tolist() == [2, 2, 2]
    for split in (sets.train, sets.val, sets.test):
        assert colours(split.images) == [list(COLOURS.values())[label] for label in split.labels]
    assert "fixed 20%" in module.describe()["notes"]
    assert module.shape == (3, 16, 16)
    again = make("image_folder", f"dataset.root={tmp_path}", *SMALL, seed=5)
    assert torch.equal(again.sets.test.images, sets.test.images)


def test_levels_are_kept(make, tmp_path):
    write_classes(tmp_path / "train", 4)
    write_classes(tmp_path / "valid", 2)
    write_classes(tmp_path / "test", 1, ("cow",))
    module = make("image_folder", f"dataset.root={tmp_path}", *SMALL)
    assert [len(s) for s in (module.sets.train, module.sets.val, module.sets.test)] == [12, 6, 1]
    assert module.sets.test.labels.tolist() == [2]
    assert module.describe()["validation"] == "the set's own"
    assert module.describe()["notes"] == ""
    assert (
        make("image_folder", f"dataset.root={tmp_path}", *SMALL, "dataset.val_fraction=0").val_loader()
        is None
    )


def test_odd_colour_modes_in_one_folder(make, tmp_path):
    write_classes(tmp_path, 8)
    Image.new("L", (30, 17), 9).save(tmp_path / "ant" / "grey.jpg")
    Image.new("P", (17, 30)).save(tmp_path / "ant" / "palette.gif")
    Image.new("RGBA", (5, 90), (1, 2, 3, 0)).save(tmp_path / "bee" / "alpha.PNG")
    Image.new("CMYK", (64, 64)).save(tmp_path / "cow" / "print.jpeg")
    (tmp_path / "cow" / "notes.txt").write_text("no picture")
    (tmp_path / "cow" / ".hidden.png").write_text("no picture")
    sets = make("image_folder", f"dataset.root={tmp_path}", *SMALL).sets
    assert sum(len(s) for s in (sets.train, sets.val, sets.test)) == 28


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "has no class folders"),
        (lambda root: write_classes(root, 3, ("ant",)), "one class folder, ant"),
        (lambda root: [write_classes(root, 3), (root / "dog").mkdir()], "dog has no pictures"),
        (
            lambda root: [write_classes(root / "train", 3), (root / "test").mkdir()],
            "test has no class folders",
        ),
        (
            lambda root: [write_classes(root / "train", 3, ("ant", "bee")), write_classes(root / "test", 1)],
            "classes that the training split lacks: cow",
        ),
        (lambda root: [write_classes(root), (root / "bee/9.jpg").write_bytes(b"x")], r"bee/9.jpg is damaged"),
    ],
)
def test_mistakes_are_named_before_training(make, tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(UserError, match=message):
        make("image_folder", f"dataset.root={tmp_path}", *SMALL).train_loader()


def test_root_is_needed_and_must_exist(make, tmp_path):
    with pytest.raises(UserError, match=r"needs dataset\.root"):
        make("image_folder").train_loader()
    with pytest.raises(UserError, match="is not a folder"):
        make("image_folder", f"dataset.root={tmp_path}/no").train_loader()


def test_truncated_file_is_named(make, tmp_path):
    write_classes(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = tmp_path / "ant" / "photo.jpg"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"ant/photo.jpg is damaged"):
        make("image_folder", f"dataset.root={tmp_path}", *SMALL).train_loader()


def test_resize_and_crop_keeps_the_centre():
    columns = np.repeat(np.arange(12, dtype=np.uint8)[None], 4, axis=0)
    image = Image.fromarray(np.stack([columns] * 3, axis=2))
    assert np.asarray(resize_and_crop(image, 4))[0, :, 0].tolist() == [4, 5, 6, 7]
    assert resize_and_crop(image, 8).size == (8, 8)
    assert resize_and_crop(image, 2, 4).size == (2, 2)


# -- streaming ---------------------------------------------------------------------------------------------


def write_noise(folder, count):
    generator = np.random.default_rng(3)
    for name in ("n01", "n02"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (30 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{i}.JPEG")


STREAM = (*SMALL, "dataset.num_classes=2", "dataset.augment.crop_padding=2", "dataset.augment.cutout=4")


@pytest.fixture
def imagenet(make, tmp_path):
    """A small ImageNet of 2 × 8 training and 2 × 3 test images; returns its data module."""
    write_noise(tmp_path / "train", 8)
    write_noise(tmp_path / "val", 3)

    def call(*overrides: str):
        return make("imagenet", f"dataset.root={tmp_path}", *STREAM, *overrides)

    return call


def run(loader, epoch):
    loader.set_epoch(epoch)
    rows = list(loader)
    assert len(rows) == len(loader)
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def same(a, b) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_streaming_does_not_depend_on_the_number_of_workers(imagenet):
    alone, two = (imagenet(f"dataset.workers={n}").train_loader() for n in (0, 2))
    assert same(run(alone, 3), run(two, 3))
    second = run(two, 4)  # the same workers, the next epoch
    assert same(run(alone, 4), second)
    assert not same(run(alone, 3), second)


def test_streaming_ranks_see_the_global_batches(imagenet):
    module = imagenet("dataset.workers=0")
    whole = run(module.train_loader(), 0)
    parts = [run(module.train_loader("cpu", rank, 2), 0) for rank in (0, 1)]
    for key in whole:
        assert torch.equal(torch.stack([p[key] for p in parts], dim=2).flatten(1, 2), whole[key])


def test_streaming_epoch_and_labels(imagenet):
    module = imagenet("dataset.workers=0")
    result = run(module.train_loader(), 0)
    assert result["image"].shape == (3, 4, 3, 16, 16)
    assert sorted(result["index"].flatten().tolist()) == list(range(12))
    assert torch.equal(result["label"], module.sets.train.labels[result["index"]])
    assert module.describe()["streams"]
    assert [len(s) for s in (module.sets.train, module.sets.val, module.sets.test)] == [12, 4, 6]


def test_streaming_evaluation_covers_everything_once(imagenet):
    module = imagenet("dataset.workers=2")
    parts = [list(module.test_loader("cpu", rank, 2)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1])
    index = torch.cat([batch["index"] for part in parts for batch in part])
    assert sorted(index.tolist()) == list(range(6))
    whole = torch.cat([batch["image"] for batch in module.test_loader()])
    assert torch.equal(whole[index], torch.cat([batch["image"] for part in parts for batch in part]))


def test_streaming_evaluation_is_the_central_crop(imagenet):
    module = imagenet("dataset.workers=0", "dataset.mean=[0,0,0]", "dataset.std=[1,1,1]")
    batch = next(iter(module.test_loader()))
    image = Image.open(module.sets.test.images.paths[0])  # 50 × 30; the shorter side becomes 16 · 8/7 = 18
    image = image.resize((30, 18), Image.Resampling.BILINEAR).crop((7, 1, 23, 17))
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(batch["image"][0], expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_file_in_a_stream_is_named(imagenet, tmp_path, workers):
    (tmp_path / "train/n02/n02_5.JPEG").write_bytes(b"x")
    with pytest.raises(UserError, match=r"^\S*n02_5.JPEG is damaged[^\n]*again\.$"):
        list(imagenet(f"dataset.workers={workers}", "dataset.val_fraction=0").train_loader())


def test_streaming_statistics_come_from_a_sample(imagenet):
    mean, std = imagenet("dataset.mean=null", "dataset.std=null").mean_std
    assert mean == pytest.approx([0.5] * 3, abs=0.05)  # uniform noise
    assert all(0.02 < s < 0.3 for s in std)


def test_large_folders_are_streamed(make, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "IN_MEMORY", 1000)
    write_classes(tmp_path, 10)
    module = make("image_folder", f"dataset.root={tmp_path}", *SMALL, "dataset.workers=0")
    assert module.describe()["streams"]
    assert run(module.train_loader(), 0)["image"].shape == (4, 4, 3, 16, 16)


def test_random_resized_crop_covers_the_promised_areas():
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (150, 1, 3))
    generator = torch.Generator().manual_seed(0)
    image, shares = Image.fromarray(ramp), []
    for _ in range(200):
        row = np.asarray(random_resized_crop(image, 50, generator))[25, :, 0].astype(float)
        shares.append((row[-1] - row[0]) / 49 * 50 / 200)  # share of the width that the window covers
    assert min(shares) > (0.08 * 150 * 200 * 3 / 4) ** 0.5 / 200 - 0.02
    assert max(shares) <= 1.02
    assert 0.5 < np.mean(shares) < 0.75


# -- a user's own Dataset ----------------------------------------------------------------------------------


class Squares(torch.utils.data.Dataset):
    """Images of one value, which is 10 · label."""

    classes = ("none", "ten", "twenty")
    kind = "tensor"
    size = 6

    def __init__(self, train: bool, root: str | None = None, count: int = 30):
        self.count = count if train else 6

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = index % 3
        image = torch.full((3, self.size, self.size), 10 * label, dtype=torch.uint8)
        if self.kind == "array":
            return image[0].numpy(), label
        if self.kind == "pil":
            return Image.fromarray(image.permute(1, 2, 0).numpy()), label
        return (image / 255 if self.kind == "float" else image), label


@pytest.fixture
def squares(make, monkeypatch):
    monkeypatch.setattr(custom, "get_object", lambda name: {"Squares": Squares}[name])

    def call(kind: str, *overrides: str):
        monkeypatch.setattr(Squares, "kind", kind)
        return make("custom", "dataset.target=Squares", "dataset.batch_size=4", *overrides)

    return call


@pytest.mark.parametrize(("kind", "channels"), [("tensor", 3), ("array", 1), ("pil", 3)])
def test_custom_dataset(squares, kind, channels):
    module = squares(kind, "+dataset.kwargs.count=60")
    assert module.shape == (channels, 6, 6)
    assert module.class_names == ["none", "ten", "twenty"]
    assert [len(s) for s in (module.sets.train, module.sets.val, module.sets.test)] == [54, 6, 6]
    images, labels = module.sets.train.images, module.sets.train.labels
    assert torch.equal(images[:, 0, 3, 3].long(), 10 * labels)


def test_custom_dataset_resized_and_streamed(squares):
    small = squares("pil", "dataset.image_size=3")
    streamed = squares("pil", "dataset.image_size=3", "+dataset.load.stream=true", "dataset.workers=0")
    assert small.shape == streamed.shape == (3, 3, 3)
    rows = list(streamed.train_loader())
    batch = rows[0]
    value = batch["image"][:, 0, 1, 1] * streamed.mean_std[1][0] + streamed.mean_std[0][0]
    torch.testing.assert_close(value * 255, 10.0 * batch["label"], atol=1e-3, rtol=0)
    assert torch.equal(batch["label"], streamed.sets.train.labels[batch["index"]])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dataset.target=null",), "needs dataset.target"),
        (("dataset.target=Sqares",), "can't be imported"),
        (("+dataset.load.stream=true",), "needs dataset.image_size"),
        (("+dataset.kwargs.count=0",), "not empty"),
    ],
)
def test_custom_mistakes(squares, overrides, message):
    with pytest.raises(UserError, match=message):
        squares("tensor", *overrides).train_loader()


def test_custom_dataset_must_not_normalise(squares):
    with pytest.raises(UserError, match="float32; they must be PIL"):
        squares("float").train_loader()
