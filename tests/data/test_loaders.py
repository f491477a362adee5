"""Order, augmentation and sharding of the batches."""

import pytest
import torch

from regbench.data.augment import Augment, normalization
from regbench.data.loaders import EpochPlan, EvalLoader, TrainLoader, even_batches
from regbench.data.sets import Split

RANDOM = Augment(crop_padding=1, flip=True, translate=1, cutout=2, randaugment={"n": 1, "m": 9})


def split(count: int = 50, channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, 6, 6), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 7)


def loader(data: Split, batch_size=16, augment=RANDOM, seed=0, rank=0, world=1) -> TrainLoader:
    plan = EpochPlan(len(data), batch_size, augment, (6, 6), seed, rank, world)
    return TrainLoader(data, plan, normalization([0.5] * 3, [0.25] * 3))


def epoch(batches, number: int) -> dict[str, torch.Tensor]:
    """All batches of an epoch, joined."""
    batches.set_epoch(number)
    rows = list(batches)
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def test_an_epoch_takes_each_sample_at_most_once_and_drops_the_rest():
    data = split()
    batches = loader(data)
    result = epoch(batches, 0)
    assert len(batches) == 3
    assert result["image"].shape == (3, 16, 3, 6, 6)
    assert result["image"].dtype == torch.float32
    assert result["label"].dtype == result["index"].dtype == torch.int64
    assert len(set(result["index"].flatten().tolist())) == 48
    assert torch.equal(result["label"], data.labels[result["index"]])


def test_without_augmentation_images_are_the_normalised_pixels():
    data = split()
    result = epoch(loader(data, augment=Augment()), 3)
    expected = (data.images[result["index"]] / 255 - 0.5) / 0.25
    torch.testing.assert_close(result["image"], expected)


def test_order_is_a_function_of_seed_and_epoch():
    data = split()
    batches = loader(data)
    first, second = epoch(batches, 5), epoch(batches, 6)
    again, other = epoch(loader(data), 5), epoch(loader(data, seed=1), 5)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["index"], second["index"])
    assert not torch.equal(first["index"], other["index"])


def test_augmentation_does_not_change_the_order():
    data = split()
    assert torch.equal(epoch(loader(data), 2)["index"], epoch(loader(data, augment=Augment()), 2)["index"])


def test_epochs_advance_by_themselves_in_a_plain_loop():
    data = split()
    batches = loader(data)
    plain = [torch.cat([batch["index"] for batch in batches]) for _ in range(2)]
    assert [p.tolist() for p in plain] == [epoch(loader(data), e)["index"].flatten().tolist() for e in (0, 1)]


def test_the_iterator_reads_the_epoch_at_its_first_batch():
    batches = loader(split())
    iterator = iter(batches)
    batches.set_epoch(4)  # as Lightning does on resuming
    assert torch.equal(next(iterator)["index"], epoch(loader(split()), 4)["index"][0])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_see_the_global_batches(world):
    data = split()
    whole = epoch(loader(data), 1)
    parts = [epoch(loader(data, rank=rank, world=world), 1) for rank in range(world)]
    for key in ("index", "label", "image"):
        joined = torch.empty_like(whole[key])
        for rank in range(world):
            joined[:, rank::world] = parts[rank][key]
        assert torch.equal(joined, whole[key])


def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    epoch(loader(split()), 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_sampler_is_the_loader():
    batches = loader(split())
    batches.sampler.set_epoch(3)
    assert batches.epoch == 3


@pytest.mark.parametrize("count", [5, 8, 17, 64, 65, 1000])
@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [10, 60])
def test_even_batches_cover_everything_once(count, world, batch_size):
    ranks = [even_batches(count, batch_size, rank, world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    sizes = [len(batch) for batches in ranks for batch in batches]
    assert min(sizes) >= 1
    assert max(sizes) <= -(-batch_size // world) + 1
    assert sorted(torch.cat([batch for batches in ranks for batch in batches]).tolist()) == list(range(count))


def test_evaluation_is_in_order_and_not_augmented():
    data = split(10)
    batches = list(EvalLoader(data, 4, normalization([0.0] * 3, [1 / 255] * 3)))
    assert [len(batch["label"]) for batch in batches] == [4, 3, 3]
    torch.testing.assert_close(torch.cat([batch["image"] for batch in batches]), data.images.float())
    assert torch.equal(torch.cat([batch["index"] for batch in batches]), torch.arange(10))
