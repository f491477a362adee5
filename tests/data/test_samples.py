"""Sets of samples with named fields: what batches hold, their order, and what is refused."""

import pytest
import torch

from regbench.backbones import build
from regbench.data.samples import SampleDataModule, Samples, SampleSets
from regbench.errors import UserError
from regbench.training import describe_data

SEEDS = {"data": 3, "order": 4}


def load_counted(root=None, *, count: int, seed: int = 0) -> SampleSets:
    """Sample i has x = i; y is the seed."""

    def split(n: int) -> Samples:
        return Samples(
            {"x": torch.arange(n).float()[:, None], "y": torch.full((n,), seed)},
            {"clean": torch.arange(n) % 2},
        )

    return SampleSets(split(count), None, split(3), (1,), 2, "counted")


def module(**node) -> SampleDataModule:
    load = {"_target_": f"{__name__}.load_counted", "count": 10}
    return SampleDataModule({"name": "counted", "load": load, **node}, SEEDS)


def test_a_batch_without_a_size_is_the_split_in_its_order_with_the_seed_of_the_stream_data():
    data = module()
    (batch,) = data.train_loader()
    assert batch["x"].flatten().tolist() == list(range(10))
    assert batch["y"].tolist() == [3] * 10
    assert batch["index"].tolist() == list(range(10))
    assert "clean" not in batch
    assert data.clean_labels.tolist() == [0, 1] * 5
    assert data.val_loader() is None
    assert [len(b["x"]) for b in data.test_loader()] == [3]


def test_batches_of_an_epoch_hold_each_sample_once_in_another_order_than_the_next_epochs():
    loader = module(batch_size=5).train_loader()
    epochs = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(b["x"]) for b in batches] == [5, 5]
        assert all(torch.equal(b["x"].flatten().long(), b["index"]) for b in batches)
        epochs.append(torch.cat([b["index"] for b in batches]).tolist())
        assert sorted(epochs[-1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_two_processes_share_the_batches_of_one():
    whole = [b["index"] for b in module(batch_size=4).train_loader()]
    parts = [[b["index"] for b in module(batch_size=4).train_loader(rank=r, world=2)] for r in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.stack([first, second], 1).flatten(), batch)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"batch_size": 11}, "more than the 10 training samples"),
        ({"batch_size": 0}, "dataset.batch_size=0"),
        ({"eval_batch_size": "many"}, "dataset.eval_batch_size=many"),
    ],
)
def test_mistakes(node, says):
    with pytest.raises(UserError, match=says):
        _ = module(**node).sets


def test_fields_of_different_lengths_are_refused():
    with pytest.raises(UserError, match="as many rows"):
        Samples({"x": torch.zeros(3), "y": torch.zeros(2)})


def test_the_data_in_words():
    text = describe_data(module().describe())
    assert text.startswith("counted: 10 training, 0 validation, 3 test samples of 1, 2 outputs.")


def test_a_network_of_samples_is_tried_on_their_shape():
    mlp = {"_target_": "torch.nn.LazyLinear", "name": "lazy", "out_features": 2}
    assert build(mlp, shape=(7,), num_classes=2)(torch.zeros(5, 7)).shape == (5, 2)
    with pytest.raises(UserError, match=r"gives \(1, 2\) for one sample, not logits \(1, 3\)"):
        build(mlp, shape=(7,), num_classes=3)
    assert build(mlp, shape=(7,), num_classes=0)(torch.zeros(5, 7)).shape == (
        5,
        2,
    )  # logits are not asked for
