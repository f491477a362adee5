"""Label noise: matrices and counts by hand, what is fixed by which seed, and that only measuring sees the truth."""

import math

import pytest
import torch

from regbench import registry
from regbench.data import module as data_module
from regbench.data.label_noise import draw_exact, draw_labels, instance_rows, random_map, transition_matrix
from regbench.data.sets import Split
from regbench.errors import UserError
from support import read_result, weights

NOISY = ["dataset.noise.kind=symmetric", "dataset.noise.rate=0.4"]
CIFAR10_MAP = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- which label becomes which --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"kind": "symmetric", "rate": 0.4, "keep_true": True}, 0.36),  # redrawn from all ten: 0.4 · 9/10
        ({"kind": "symmetric", "rate": 0.8, "keep_true": True}, 0.72),
        ({"kind": "symmetric", "rate": 0.4}, 0.4),
        ({"kind": "pairflip", "rate": 0.45}, 0.45),
        ({"kind": "asymmetric", "rate": 0.4, "class_map": CIFAR10_MAP}, 0.2),  # of five of the ten classes
    ],
)
def test_share_of_wrong_labels(options, wrong):
    matrix = transition_matrix(num_classes=10, **options)
    assert matrix.sum(1).tolist() == pytest.approx([1] * 10)
    assert 1 - matrix.diagonal().mean().item() == pytest.approx(wrong)
    label = torch.arange(10).repeat(2000)
    noisy = draw_labels(matrix[label], generator())
    # Six standard deviations of the share of 20,000 draws: 0.021 at most.
    assert (noisy != label).float().mean().item() == pytest.approx(wrong, abs=0.021)


def test_matrix_by_hand():
    symmetric = transition_matrix("symmetric", 0.3, 7)
    assert symmetric[2].tolist() == pytest.approx([0.05, 0.05, 0.7, 0.05, 0.05, 0.05, 0.05])
    asymmetric = transition_matrix("asymmetric", 0.4, 10, class_map=CIFAR10_MAP)
    assert asymmetric[9].tolist() == pytest.approx([0, 0.4, 0, 0, 0, 0, 0, 0, 0, 0.6])  # truck → automobile
    assert asymmetric[3, 5] == asymmetric[5, 3] == 0.4  # cat and dog become each other
    assert asymmetric[1].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_exact_counts_by_class():
    label = torch.tensor([0] * 500 + [1] * 7 + [2] * 10)
    noisy = draw_exact(label, transition_matrix("symmetric", 0.2, 3), generator())
    moved = noisy != label
    assert [int(moved[label == y].sum()) for y in range(3)] == [100, 2, 2]  # ceil(1.4) = 2
    noisy = draw_exact(label, transition_matrix("asymmetric", 0.5, 3, class_map={0: 2}), generator())
    assert noisy.bincount().tolist() == [250, 7, 260]


def test_a_random_map_moves_every_class():
    maps = [random_map(5, generator(seed)) for seed in range(20)]
    assert all(source != target for found in maps for source, target in found.items())
    assert {found[0] for found in maps} == {1, 2, 3, 4}


def test_instance_rows_by_hand():
    """One pixel of value 1: the scores are the weights' rows, 0 and ln 3 for the two other classes."""
    weight = torch.tensor([[[9.0, 0.0, math.log(3)]], [[0.0, 9.0, 0.0]], [[math.log(3), 0.0, 9.0]]])
    image, label = torch.full((3, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0, 1, 2])
    rows = instance_rows(image, label, 0.4, weight, generator())
    flip = (1 - rows.diagonal()).tolist()
    assert rows[0].tolist() == pytest.approx([1 - flip[0], flip[0] / 4, 3 * flip[0] / 4])
    assert rows[1].tolist() == pytest.approx([flip[1] / 2, 1 - flip[1], flip[1] / 2])
    assert rows[2].tolist() == pytest.approx([3 * flip[2] / 4, flip[2] / 4, 1 - flip[2]])


def test_instance_flip_rates_have_the_mean_and_spread_of_the_paper():
    many = torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8)
    rows = instance_rows(many, torch.zeros(20_000, dtype=torch.long), 0.4, torch.zeros(2, 1, 2), generator())
    flip = rows[:, 1]
    assert flip.mean().item() == pytest.approx(0.4, abs=0.005)  # seven standard errors
    assert flip.std().item() == pytest.approx(0.1, abs=0.005)
    assert 0 <= flip.min() <= flip.max() <= 1


# -- in the data module ---------------------------------------------------------------------------------------------


def seeded(make, seed, *overrides):
    module = make("digits", *NOISY, *overrides)
    module.seeds["noise"] = seed
    return module


def test_only_the_noise_seed_changes_the_labels(make):
    one, same, other = (seeded(make, seed).sets for seed in (0, 0, 1))
    assert one.train.labels.equal(same.train.labels)
    assert one.val.labels.equal(same.val.labels)
    assert not one.train.labels.equal(other.train.labels)
    assert one.train.clean.equal(other.train.clean)
    plain = make("digits").sets
    assert one.train.clean.equal(plain.train.labels)
    assert one.test.labels.equal(plain.test.labels)
    assert plain.train.clean is None


def test_training_and_validation_draw_apart(make):
    sets = seeded(make, 0, "dataset.val_fraction=0.5").sets
    count = min(len(sets.train), len(sets.val))
    wrong = [(split.labels != split.clean)[:count] for split in (sets.train, sets.val)]
    assert not wrong[0].equal(wrong[1])


def test_validation_can_stay_clean(make):
    sets = seeded(make, 0, "dataset.noise.validation=false").sets
    assert sets.val.labels.equal(make("digits").sets.val.labels)
    assert (sets.train.labels != sets.train.clean).any()


@pytest.mark.parametrize("kind", ["pairflip", "instance", "asymmetric"])
def test_other_kinds(make, kind):
    more = ["dataset.noise.class_map={0: 6, 6: 0}"] if kind == "asymmetric" else []
    sets = make("digits", f"dataset.noise.kind={kind}", "dataset.noise.rate=0.5", *more).sets
    train, wrong = sets.train, sets.train.labels != sets.train.clean
    if kind == "pairflip":
        assert train.labels[wrong].equal((train.clean[wrong] + 1) % 10)
    if kind == "asymmetric":
        assert set(train.clean[wrong].tolist()) == {0, 6}
    expected = 0.1 if kind == "asymmetric" else 0.5
    assert wrong.float().mean().item() == pytest.approx(
        expected, abs=0.09
    )  # 1,295 draws, six standard deviations


def test_batches_hold_the_noisy_labels_alone(make):
    module = seeded(make, 0)
    labels = module.sets.train.labels
    seen = torch.zeros(len(labels), dtype=torch.bool)
    for batch in module.train_loader():
        assert set(batch) == {"image", "label", "index"}
        assert batch["label"].equal(labels[batch["index"]])
        seen[batch["index"]] = True
    assert seen.float().mean() > 0.9  # an incomplete last batch is left out
    assert (labels != module.clean_labels).float().mean() > 0.3


NOISY_METHODS = [slug for slug, entry in registry.entries().items() if entry.task == "noisy_labels"]


@pytest.mark.parametrize("slug", NOISY_METHODS)
def test_training_never_sees_a_clean_label(train, monkeypatch, slug):
    """With other true labels beside them, the same noisy labels train the same weights, bit for bit."""
    run = [f"regularizer={slug}", "dataset=digits", *NOISY, "backbone=mlp", "trainer.max_epochs=2", "logger=none",
           "trainer.limit_train_batches=3", "dataset.batch_size=64", "progress=none"]  # fmt: skip
    code, first = train(*run, run_dir="first")
    assert code == 0
    monkeypatch.setattr(
        data_module,
        "Split",
        lambda images, labels, clean=None: Split(images, labels, None if clean is None else (clean + 3) % 10),
    )
    code, second = train(*run, run_dir="second")
    assert code == 0
    one, two = weights(first), weights(second)
    assert all(one[name].equal(two[name]) for name in one)
    assert read_result(first)["metrics"] == read_result(second)["metrics"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.noise.kind=symetric"], "Did you mean symmetric"),
        (["dataset.noise.rate=0.4"], "without a kind"),
        (["dataset.noise.kind=symmetric", "dataset.noise.rate=1.2"], "from 0 to 1"),
        (["dataset.noise.kind=asymmetric", "dataset.noise.rate=0.4"], "which class becomes which"),
        ([*NOISY, "dataset.noise.class_map=5"], "belongs to dataset.noise.kind=asymmetric"),
        (["dataset.noise.kind=asymmetric", "dataset.noise.class_map=rnd"], "Did you mean random"),
        (["dataset.noise.kind=pairflip", "dataset.noise.keep_true=true"], "keep_true"),
        (["dataset.noise.kind=instance", "dataset.noise.exact=true"], "exact"),
    ],
)
def test_mistakes_stop_before_data_is_read(make, overrides, message):
    with pytest.raises(UserError, match=message):
        make("digits", *overrides).check()


@pytest.mark.parametrize(
    ("class_map", "message"), [("{0: 10}", "outside 0 … 9"), ("3", "does not divide the 10 classes")]
)
def test_maps_that_do_not_fit_the_classes(make, class_map, message):
    with pytest.raises(UserError, match=message):
        make("digits", "dataset.noise.kind=asymmetric", f"dataset.noise.class_map={class_map}").train_loader()
