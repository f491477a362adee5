"""The set `modalities`: what its views are, and that no source image is in two splits."""

import pytest
import torch

from regbench.data.builtin import load_mnist5k
from regbench.data.modalities import modalities
from regbench.errors import UserError


def test_views_by_hand():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[..., 2:] = 51  # x = 0.2, 1 − √0.2 = 0.5528; Sobel sees 4 · 0.2 on both sides of the edge
    raw, inverted, edges = modalities(image)[0]
    assert raw.equal(image[0])
    assert inverted[0, 0].tolist() == [255, 255, 141, 141, 141]
    assert edges[0, 0].tolist() == [0, 255, 255, 0, 0]
    assert edges[0, 4].tolist() == [0, 255, 255, 0, 0]  # the border's pixels go on


def test_a_flat_image_has_no_edges():
    assert modalities(torch.full((1, 1, 4, 4), 7, dtype=torch.uint8))[0, 2].eq(0).all()


@pytest.mark.parametrize(
    ("overrides", "sizes", "classes"),
    [
        ([], {"train": 200, "val": 100, "test": 200}, 24),
        (["dataset.part=unseen", "dataset.val_fraction=0"], {"train": 50, "test": 450}, 6),
        (
            [
                "dataset.part=unseen",
                "dataset.val_fraction=0",
                "dataset.unseen_train=10",
                "dataset.batch_size=60",
            ],
            {"train": 10, "test": 490},
            6,
        ),
    ],
)
def test_sizes_and_splits_by_source_image(make, overrides, sizes, classes):
    sets = make("modalities", *overrides).sets
    raw = {}
    for name, size in sizes.items():
        split = getattr(sets, name)
        assert split.labels.bincount().tolist() == [size] * classes
        raw[name] = {image.numpy().tobytes() for image in split.images[split.labels % 3 == 0]}
        assert len(raw[name]) == classes // 3 * size
        first = split.images[:3]  # the three views of one source image stay together
        assert modalities(first[:1])[0].equal(first)
    names = list(raw)
    assert not any(raw[a] & raw[b] for a in names for b in names if a < b)
    assert sets.class_names[:3] == [
        f"{0 if classes == 24 else 8} {m}" for m in ("raw", "inverted root", "edges")
    ]


def test_labels_are_the_digits(make):
    sets, source = make("modalities").sets, load_mnist5k()
    digits = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(source.train.images, source.train.labels, strict=True)
    }
    raw = sets.train.labels % 3 == 0
    known = [
        (digits[key], int(label) // 3)
        for image, label in zip(sets.train.images[raw], sets.train.labels[raw], strict=True)
        if (key := image.numpy().tobytes()) in digits
    ]
    assert len(known) > 1000
    assert all(digit == label for digit, label in known)


@pytest.mark.parametrize("option", ["part=unsen", "unseen_train=0", "unseen_train=500"])
def test_mistakes(make, option):
    with pytest.raises(UserError, match=option.partition("=")[0]):
        _ = make("modalities", f"dataset.{option}").sets
