"""Fixed splits, balanced subsets, statistics and fingerprints."""

import pytest
import torch

from regbench.data.sets import (
    Split,
    balanced_subset,
    channel_statistics,
    fingerprint,
    rank_in_class,
    split_off,
)
from regbench.errors import UserError


def numbered(labels: list[int]) -> Split:
    """Image i is one pixel of value i."""
    return Split(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels))


def test_rank_in_class_numbers_each_class_from_zero():
    labels = torch.tensor([2, 0, 0, 2, 1, 0, 2, 2])
    rank = rank_in_class(labels, "x")
    for label, size in ((0, 3), (1, 1), (2, 4)):
        assert sorted(rank[labels == label].tolist()) == list(range(size))


def test_split_off_is_stratified_disjoint_and_complete():
    split = numbered([0] * 20 + [1] * 40 + [2] * 10)
    rest, part = split_off(split, 0.1, "validation")
    assert part.labels.bincount().tolist() == [2, 4, 1]
    assert rest.labels.bincount().tolist() == [18, 36, 9]
    pixels = [*rest.images.flatten().tolist(), *part.images.flatten().tolist()]
    assert sorted(pixels) == list(range(70))
    for half in (rest, part):  # labels went with their images
        assert (half.labels == split.labels[half.images.flatten().long()]).all()


def test_split_off_depends_on_the_purpose_only():
    split = numbered([0] * 50)
    again = [split_off(split, 0.2, purpose)[1].images.flatten().tolist() for purpose in ("a", "a", "b")]
    assert again[0] == again[1] != again[2]


def test_split_off_refuses_an_empty_side():
    with pytest.raises(UserError, match="between 2 and 2 images"):
        split_off(numbered([0, 0, 1, 1]), 0.1, "validation")


def test_balanced_subset_is_balanced_and_nested():
    split = numbered([0] * 30 + [1] * 30 + [2] * 30)
    small, large = balanced_subset(split, 9), balanced_subset(split, 32)
    assert small.labels.bincount().tolist() == [3, 3, 3]
    assert sorted(large.labels.bincount().tolist()) == [10, 11, 11]
    assert set(small.images.flatten().tolist()) < set(large.images.flatten().tolist())


def test_balanced_subset_takes_all_of_a_small_class():
    assert balanced_subset(numbered([0] * 30 + [1] * 2), 10).labels.bincount().tolist() == [8, 2]


def test_channel_statistics_agree_with_torch():
    images = torch.randint(256, (7, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(images)
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())


def test_constant_channel_is_not_divided_by_zero():
    assert channel_statistics(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)) == (
        [pytest.approx(0.2)],
        [1 / 255],
    )


def test_fingerprint_sees_every_part():
    x = torch.zeros(2, 3, dtype=torch.uint8)
    y = x.clone()
    y[1, 2] = 1
    assert (
        len({fingerprint(x), fingerprint(y), fingerprint(x.T), fingerprint(x, "a"), fingerprint(x.long())})
        == 5
    )
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
