"""Tasks on mnist5k: their labels, the turning of images, and that a task keeps the splits of mnist5k."""

import pytest
import torch

from regbench.data.builtin import load_mnist5k
from regbench.data.mnist_tasks import load_mnist5k_task, turned
from regbench.data.sets import Split
from regbench.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return load_mnist5k()


@pytest.mark.parametrize(
    ("task", "ones"),
    [("parity", {1, 3, 5, 7, 9}), ("greater_than_4", {5, 6, 7, 8, 9}), ("loop", {0, 6, 8, 9})],
)
def test_labels_of_two_classes(digits, task, ones):
    sets = load_mnist5k_task(task=task)
    for name in ("train", "test"):
        own, digit = getattr(sets, name), getattr(digits, name)
        assert torch.equal(own.images, digit.images)
        assert set(digit.labels[own.labels == 1].tolist()) == ones
        assert set(digit.labels[own.labels == 0].tolist()) == set(range(10)) - ones


def test_orientation(digits):
    sets = load_mnist5k_task(task="orientation")
    assert sets.train.labels[:5].tolist() == [0, 1, 2, 3, 0]
    for quarters in range(4):
        assert torch.equal(sets.test.images[quarters], digits.test.images[quarters].rot90(quarters, (1, 2)))


def test_images_are_turned_in_turn():
    """A bar right of the centre goes up at 90 degrees counter-clockwise."""
    image = torch.zeros(4, 1, 5, 5, dtype=torch.uint8)
    image[:, 0, 2, 3:] = 200
    images = turned(Split(image, torch.zeros(4).long()), (0, 90)).images
    assert torch.equal(images[0], image[0])
    assert torch.equal(images[2], image[0])
    for i in (1, 3):
        assert images[i, 0].nonzero().tolist() == [[0, 2], [1, 2]]


def test_an_unknown_task_is_refused():
    with pytest.raises(UserError, match="Did you mean parity"):
        load_mnist5k_task(task="party")
