"""`ImageDataModule`: early checks, fixed splits, Lightning, and the sets that need no download."""

import pytest
import pytorch_lightning as pl
import torch

from regbench.data import photos
from regbench.errors import UserError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.batch_size=0", "1 or more"),
        ("dataset.eval_batch_size=-3", "1 or more"),
        ("dataset.val_fraction=1", r"\[0, 1\)"),
        ("dataset.val_fraction=-0.1", r"\[0, 1\)"),
        ("dataset.val_fraction=many", r"\[0, 1\)"),
        ("dataset.train_size=0", "1 or more"),
        ("dataset.mean=[0.5]", "go together"),
        ("dataset.augment.crop_padding=-1", "number of pixels"),
        ("+dataset.augment.blur=1", "no augmentation 'blur'"),
    ],
)
def test_check_stops_before_any_data_is_read(make, override, message):
    module = (
        make("cifar10", override, "dataset.root=/nowhere")
        if "mean" not in override
        else make("digits", override)
    )
    with pytest.raises(UserError, match=message):
        module.check()


def test_check_of_the_number_of_processes(make):
    make("digits", "dataset.batch_size=96").check(world=3)
    with pytest.raises(UserError, match="multiple of 3"):
        make("digits").check(world=3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.batch_size=2000", "2000 is more than the 1295 training images"),
        ("dataset.train_size=1296", "between the number of classes"),
        ("dataset.train_size=9", "between the number of classes"),
        ("dataset.num_classes=11", "the data has 10 classes"),
        ("dataset.val_fraction=0.001", "leaves one side empty"),
    ],
)
def test_mistakes_that_only_the_data_shows(make, override, message):
    with pytest.raises(UserError, match=message):
        make("digits", override).train_loader()


def test_reflection_needs_enough_pixels(make):
    module = make("digits", "dataset.augment.crop_padding=8", "dataset.augment.crop_mode=reflect")
    with pytest.raises(UserError, match="only 7 pixels to reflect"):
        module.train_loader()


def rows(split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("digits", (1295, 143, 359), (1, 8, 8)),
        ("mnist5k", (3600, 400, 1000), (1, 28, 28)),
        ("photo_patches", (4480, 1120, 1680), (3, 32, 32)),
    ],
)
def test_sets_without_download(make, name, sizes, shape):
    module = make(name)
    sets = module.sets
    assert (len(sets.train), len(sets.val), len(sets.test)) == sizes
    assert module.shape == shape
    assert sum(map(len, map(rows, (sets.train, sets.val, sets.test)))) == sum(sizes)  # no image occurs twice
    assert not rows(sets.train) & rows(sets.val)
    assert not rows(sets.test) & (rows(sets.train) | rows(sets.val))
    for split in (sets.train, sets.val, sets.test):
        assert split.images.dtype == torch.uint8
        assert len(split.labels.unique()) == module.num_classes
    batch = next(iter(module.train_loader()))
    assert batch["image"].shape == (128, *shape)
    assert abs(float(batch["image"].mean())) < 0.2
    assert module.describe()["fingerprint"] == make(name).describe()["fingerprint"]


def test_splits_do_not_depend_on_the_seed(make):
    one, other = make("digits", seed=0), make("digits", seed=1)
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(one.sets, name).images, getattr(other.sets, name).images)
    first, second = (next(iter(module.train_loader()))["index"] for module in (one, other))
    assert not torch.equal(first, second)


def test_no_validation_split(make):
    module = make("digits", "dataset.val_fraction=0")
    assert module.val_loader() is None
    assert module.describe()["val"] == 0
    assert len(module.sets.train) == 1438
    assert torch.equal(module.sets.test.images, make("digits").sets.test.images)


def test_train_size_leaves_validation_and_test_alone(make):
    small, large = make("digits", "dataset.train_size=100", "dataset.batch_size=10"), make("digits")
    assert small.sets.train.labels.bincount().tolist() == [10] * 10
    assert rows(small.sets.train) < rows(large.sets.train)
    assert torch.equal(small.sets.val.images, large.sets.val.images)


def test_statistics_are_those_of_the_training_split(make):
    module = make("digits")
    mean, std = module.mean_std
    pixels = module.sets.train.images.double() / 255
    assert mean == pytest.approx([float(pixels.mean())])
    assert std == pytest.approx([float(pixels.std(correction=0))])


def test_mean_and_std_need_one_number_a_channel(make):
    with pytest.raises(UserError, match="each of the 1 channels"):
        make("digits", "dataset.mean=[0,0,0]", "dataset.std=[1,1,1]").train_loader()


def test_photo_patches_of_different_splits_share_no_pixel():
    for photo, file in photos.PHOTOS.items():
        pixels = photos.read_photo(file)
        owner = torch.zeros(
            pixels.shape[:2], dtype=torch.int64
        )  # bit k: some patch of split k covers the pixel
        for k, positions in enumerate(photos.patch_positions(photo, pixels).values()):
            assert len(positions) == len(set(positions))
            for y, x in positions:
                assert 0 <= y <= pixels.shape[0] - 32
                assert 0 <= x <= pixels.shape[1] - 32
                owner[y : y + 32, x : x + 32] |= 1 << k
        assert set(owner.unique().tolist()) <= {0, 1, 2, 4}


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[int, list[int]] = {}
        self.evaluated = {"val": 0, "test": 0}

    def training_step(self, batch):
        self.seen.setdefault(self.current_epoch, []).extend(batch["index"].tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch):
        self.evaluated["val"] += len(batch["label"])

    def test_step(self, batch):
        self.evaluated["test"] += len(batch["label"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(folder, epochs: int) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@pytest.mark.parametrize("fraction", [0.1, 0])
def test_lightning_sets_the_epoch_also_after_a_resume(make, tmp_path, fraction):
    override = f"dataset.val_fraction={fraction}"
    whole, first, second = Recorder(), Recorder(), Recorder()
    trainer(tmp_path / "a", 3).fit(whole, datamodule=make("digits", override))
    begun = trainer(tmp_path / "b", 1)
    begun.fit(first, datamodule=make("digits", override))
    begun.save_checkpoint(tmp_path / "one.ckpt")
    resumed = trainer(tmp_path / "c", 3)
    resumed.fit(
        second, datamodule=make("digits", override), ckpt_path=tmp_path / "one.ckpt", weights_only=False
    )
    assert {**first.seen, **second.seen} == whole.seen
    batches = make("digits", override).train_loader()
    batches.set_epoch(2)
    assert whole.seen[2] == torch.cat([batch["index"] for batch in batches]).tolist()
    assert whole.evaluated["val"] == (3 * 143 if fraction else 0)
    resumed.test(second, datamodule=make("digits", override), verbose=False)
    assert second.evaluated["test"] == 359
