"""Points and paths: what they are by their definition, and against the released code's data."""

import pytest
import torch

from regbench.data.builtin import load_digits
from regbench.data.points import FlattenedImages, load_annuli, load_mnist
from regbench.data.samples import SampleDataModule
from regbench.data.sde_paths import load_spiral_sde
from regbench.errors import UserError

SEEDS = {"data": 3, "order": 4}


def test_annuli_have_their_radii_and_all_angles():
    sets = load_annuli(train=4000, seed=1)
    point, label = sets.train.fields["point"], sets.train.fields["label"]
    radius = point.norm(dim=1)
    assert label.bincount().tolist() == [2000, 2000]
    for which, low in ((0, 0.0), (1, 1.0)):
        own = radius[label == which]
        assert low <= own.min() < low + 0.01
        assert low + 0.49 < own.max() <= low + 0.5
        assert own.mean().item() == pytest.approx(low + 0.25, abs=0.02)
    assert point.mean(0).abs().max() < 0.05
    assert (len(sets.val), len(sets.test), sets.shape, sets.outputs) == (500, 1000, (2,), 2)


def test_a_seed_names_the_points_and_splits_differ():
    one, same, other = (load_annuli(train=10, val=10, test=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.train.fields["point"], same.train.fields["point"])
    assert not torch.equal(one.train.fields["point"], other.train.fields["point"])
    assert not torch.equal(one.train.fields["point"], one.val.fields["point"])
    assert one.fingerprint == other.fingerprint != load_annuli(train=12).fingerprint


def test_images_become_vectors_in_the_unit_interval():
    node = {
        "name": "digits_points",
        "load": {"_target_": "regbench.data.builtin.load_digits"},
        "val_fraction": 0.1,
    }
    data = FlattenedImages(node, SEEDS)
    sets, images = data.sets, load_digits()
    assert "0.1 of each class" in data.describe()["validation"]
    assert torch.equal(sets.test.fields["point"], images.test.images.flatten(1) / 255)
    assert torch.equal(sets.test.fields["label"], images.test.labels)
    assert len(sets.train) + len(sets.val) == len(images.train)
    assert (sets.shape, sets.outputs, sets.fingerprint) == ((64,), 10, images.fingerprint)
    whole = FlattenedImages(node | {"val_fraction": 0}, SEEDS)
    assert whole.sets.val is None
    assert whole.describe()["validation"] == "none"
    assert len(whole.sets.train) == len(images.train)
    assert next(iter(whole.train_loader()))["point"].shape == (1438, 64)


def test_the_spiral_has_the_moments_of_the_released_data():
    """Means and variances at four of the 30 times in data/sde_demo.bson of avik-pal/RegNeuralDE.jl."""
    path = load_spiral_sde(train=4000, val=2, test=2, seed=0).train.fields["path"].double()
    mean, variance = path.mean(0), path.var(0)
    for time, their_mean, their_variance in (
        (0, (2.0, 0.0), (0.0, 0.0)),
        (1, (1.9709, 0.5415), (0.0051, 0.0013)),
        (10, (-1.0991, 1.6344), (0.2451, 0.0310)),
        (20, (-1.1152, -1.0695), (0.4344, 0.5002)),
        (29, (0.5838, -0.9851), (0.9185, 0.6309)),
    ):
        assert mean[time].tolist() == pytest.approx(their_mean, abs=0.05)
        assert variance[time].tolist() == pytest.approx(their_variance, abs=0.06)


def test_paths_come_with_their_times_through_the_data_module():
    load = {
        "_target_": "regbench.data.sde_paths.load_spiral_sde",
        "train": 5,
        "val": 3,
        "test": 3,
        "times": 4,
    }
    (batch,) = SampleDataModule({"name": "spiral_sde", "load": load}, SEEDS).train_loader()
    assert batch["path"].shape == (5, 4, 2)
    torch.testing.assert_close(batch["time"][2], torch.tensor([0, 1 / 3, 2 / 3, 1]))
    again = load_spiral_sde(train=5, val=3, test=3, times=4, seed=3).train.fields["path"]
    assert torch.equal(batch["path"], again)


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        load_annuli(val=1)
    with pytest.raises(UserError, match="at least 2"):
        load_spiral_sde(times=1)
    with pytest.raises(UserError, match="MNIST is not under"):
        load_mnist(str(tmp_path))
    node = {"name": "d", "load": {"_target_": "regbench.data.builtin.load_digits"}, "val_fraction": 0.1}
    with pytest.raises(UserError, match="Take a smaller batch"):
        _ = FlattenedImages(node | {"batch_size": 2000}, SEEDS).sets
