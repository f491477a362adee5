"""The adapter `dataset.labelled`: which labels are kept, what a batch holds, and that nothing changes without it."""

import pytest
import torch

from regbench import catalogue, registry
from regbench.checks import check
from regbench.composing import compose_config
from regbench.data.loaders import SemiSupervisedLoader, TrainLoader
from regbench.data.sets import Split
from regbench.errors import UserError

OPTIONS = ("dataset.labelled=30", "dataset.batch_size=8", "dataset.unlabelled.ratio=3")


def batches(loader, epoch: int = 0) -> dict[str, torch.Tensor]:
    loader.set_epoch(epoch)
    rows = list(loader)
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def test_an_epoch_takes_each_unlabelled_image_once_and_the_labelled_ones_evenly(make):
    data = make("digits", *OPTIONS)
    loader = data.train_loader()
    assert isinstance(loader, SemiSupervisedLoader)
    count = len(data.sets.train)
    epoch = batches(loader)
    assert len(loader) == (count - 30) // 24
    assert epoch["image"].shape[:2] == (len(loader), 8)
    assert epoch["unlabelled_weak"].shape == epoch["unlabelled_strong"].shape == (len(loader), 24, 1, 8, 8)
    labelled, other = epoch["index"].flatten(), epoch["unlabelled_index"].flatten()
    assert len(set(other.tolist())) == len(other) == 24 * len(loader)
    assert not set(labelled.tolist()) & set(other.tolist())
    times = labelled.bincount()
    times = times[times > 0]
    assert len(times) == 30
    assert times.max() - times.min() <= 1
    kept = data.sets.train.labels[labelled.unique()]
    assert kept.bincount().tolist() == [3] * 10


def test_labels_of_unlabelled_images_are_nowhere_in_loader_or_batch(make):
    """With these labels replaced by others, every batch is bit for bit the same, and the loader holds only thirty."""
    data = make("digits", *OPTIONS)
    loader, labels = data.train_loader(), data.sets.train.labels
    wrong = torch.full_like(labels, 10**6)
    wrong[loader.labelled] = labels[loader.labelled]
    changed = SemiSupervisedLoader(
        Split(loader.images, wrong), loader.labelled, loader.plans, loader.normalization
    )
    one, two = batches(loader, 2), batches(changed, 2)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(one["label"], labels[one["index"]])
    assert len(loader.labels) == 30
    held = [value for value in vars(loader).values() if isinstance(value, torch.Tensor)]
    assert not any(len(value) == len(labels) and value is not loader.images for value in held)
    assert set(one) == {"image", "label", "index", *registry.ADAPTERS["labelled"]}


def test_the_choice_of_labels_is_the_same_for_every_seed_and_that_of_train_size(make):
    one, two = (make("digits", *OPTIONS, seed=seed).train_loader() for seed in (0, 1))
    assert torch.equal(one.labelled, two.labelled)
    assert not torch.equal(batches(one)["index"], batches(two)["index"])
    few = make("digits", "dataset.train_size=30", "dataset.batch_size=8")
    assert torch.equal(few.sets.train.images, one.images[one.labelled])


def test_epochs_and_ranks(make):
    whole = make("digits", *OPTIONS, "dataset.augment.translate=1")
    one = batches(whole.train_loader(), 4)
    assert not torch.equal(one["index"], batches(whole.train_loader(), 5)["index"])
    again = whole.train_loader()
    list(again)  # any other epoch before
    assert all(torch.equal(one[key], value) for key, value in batches(again, 4).items())
    parts = [batches(whole.train_loader(rank=rank, world=2), 4) for rank in (0, 1)]
    for key, value in one.items():
        assert torch.equal(torch.stack([part[key] for part in parts], dim=2).flatten(1, 2), value), key


def test_views(make):
    """Without augmentation the weak view is the image, and the strong one has a hole; options change one view only."""
    data = make("digits", *OPTIONS, "dataset.unlabelled.strong.randaugment=null")
    epoch = batches(data.train_loader())
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in data.mean_std)
    expected = (data.sets.train.images[epoch["unlabelled_index"]] / 255 - mean) / std
    torch.testing.assert_close(epoch["unlabelled_weak"], expected, rtol=1e-4, atol=1e-5)
    hole = (epoch["unlabelled_strong"] != epoch["unlabelled_weak"]) & (epoch["unlabelled_strong"] != 0)
    assert not hole.any()  # only the square of 8 // 2 pixels, which is 0
    assert (epoch["unlabelled_strong"] == 0).flatten(2).sum(2).max() <= 16
    weak = make("digits", *OPTIONS, "dataset.unlabelled.weak={translate: 3}")
    assert not torch.equal(batches(weak.train_loader())["unlabelled_weak"], epoch["unlabelled_weak"])
    assert torch.equal(batches(weak.train_loader())["image"], epoch["image"])


def test_labelled_images_may_be_fewer_than_a_batch(make):
    epoch = batches(make("digits", "dataset.labelled=10", "dataset.batch_size=16").train_loader())
    assert epoch["index"].shape[1] == 16
    assert all(9 <= len(set(row.tolist())) <= 10 for row in epoch["index"])


def test_without_it_loader_and_batches_are_those_of_before(make):
    """The numbers were read before the adapter was there."""
    loader = make("digits", "dataset.batch_size=64", "dataset.augment.translate=1").train_loader()
    assert type(loader) is TrainLoader
    batch = next(iter(loader))
    assert set(batch) == {"image", "label", "index"}
    assert batch["index"][:5].tolist() == [1131, 1154, 348, 1253, 799]
    assert batch["image"].double().sum().item() == pytest.approx(-205.11824876070023, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.labelled=0"], "1 or more"),
        (["dataset.labelled=5"], "each of the 10 classes"),
        (["dataset.labelled=5000"], "fewer than the 1295"),
        (["dataset.labelled=30", "dataset.batch_size=181"], "= 1267 unlabelled images, but there are 1265"),
        ([*OPTIONS, "dataset.unlabelled.ratio=0"], "1 or more"),
        ([*OPTIONS, "dataset.unlabelled.weak={blur: 1}"], "unlabelled.weak .*blur"),
        ([*OPTIONS, "dataset.unlabelled.strong.cutout=-1"], "unlabelled.strong .*cutout"),
        ([*OPTIONS, "dataset.unlabelled.weak={crop_padding: 9, crop_mode: reflect}"], "only 7 pixels"),
    ],
)
def test_mistakes(make, overrides, message):
    with pytest.raises(UserError, match=message):
        make("digits", *overrides).train_loader()


def test_task_and_fields():
    with pytest.raises(UserError, match=r"with dataset.labelled=<number>"):
        check(compose_config(["regularizer=fixmatch", "dataset=digits"]))
    check(compose_config(["regularizer=fixmatch", "dataset=digits", "dataset.labelled=30"]))
    check(compose_config(["regularizer=none", "dataset=digits", "dataset.labelled=30"]))
    assert {"digits", "cifar100"} <= set(catalogue.datasets_with(registry.TASKS["semi_supervised"]))
