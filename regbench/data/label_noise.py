"""Label noise: which labels of a split are replaced by wrong ones, drawn once from the stream "noise" of the seed.

Class-conditional noise is a transition matrix T, T[y, k] the probability that a sample of class y gets the label k.
Instance-dependent noise has such a row for each sample, made from its image. Labels of images and of nodes go the same
way: `noisy_labels`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regbench import seeding
from regbench.errors import UserError, unknown

KINDS = ("symmetric", "asymmetric", "pairflip", "instance")
CHUNK = 4096  # images whose rows are made at once
INSTANCE_STD = 0.1  # standard deviation of the samples' flip rates; Xia et al. 2020


def transition_matrix(
    kind: str,
    rate: float,
    num_classes: int,
    *,
    keep_true: bool = False,
    class_map: Mapping[int, int] | int | None = None,
) -> Tensor:
    """T (C, C) in float64; its rows sum to 1.

    - symmetric: the label moves with probability `rate`, to each of the C − 1 others alike; with `keep_true` it is
      redrawn with probability `rate` from all C classes, so that rate (1 − 1/C) of the labels are wrong.
    - asymmetric: class y moves to class_map[y] with probability `rate`; classes that the map lacks keep their labels. A
      number b stands for `next_in_block`.
    - pairflip: class y moves to y + 1, the last one to 0 (Han et al. 2018, Co-teaching).

    Raises UserError for a class map that does not fit the classes.

    >>> transition_matrix("symmetric", 0.4, 5)[0].tolist()
    [0.6, 0.1, 0.1, 0.1, 0.1]
    >>> transition_matrix("pairflip", 0.25, 3)[2].tolist()
    [0.25, 0.0, 0.75]
    """
    identity = torch.eye(num_classes, dtype=torch.float64)
    if kind == "symmetric":
        if keep_true:
            return (1 - rate) * identity + rate / num_classes
        return (1 - rate) * identity + rate / (num_classes - 1) * (1 - identity)
    if kind == "pairflip":
        class_map = num_classes
    if isinstance(class_map, int):
        if not 1 < class_map <= num_classes or num_classes % class_map:
            raise UserError(f"class_map={class_map} does not divide the {num_classes} classes into blocks.")
        class_map = next_in_block(num_classes, class_map)
    class_map = {int(source): int(target) for source, target in class_map.items()}
    if any(not 0 <= y < num_classes for pair in class_map.items() for y in pair):
        raise UserError(f"class_map={class_map} names classes outside 0 … {num_classes - 1}.")
    matrix = identity.clone()
    for source, target in class_map.items():
        matrix[source] += rate * (identity[target] - identity[source])
    return matrix


def next_in_block(num_classes: int, block: int) -> dict[int, int]:
    """Class → the next in its block of `block` class ids, the last → the first: CIFAR-100 in blocks of five.

    ELR's code and Nested Co-teaching's take blocks of ids, which are alphabetical: not CIFAR-100's superclasses.

    >>> next_in_block(6, 3)
    {0: 1, 1: 2, 2: 0, 3: 4, 4: 5, 5: 3}
    """
    return {y: y - y % block + (y + 1) % block for y in range(num_classes)}


def random_map(num_classes: int, generator: torch.Generator) -> dict[int, int]:
    """Each class → one of the others, drawn uniformly."""
    shift = torch.randint(1, num_classes, (num_classes,), generator=generator)
    return {y: (y + int(shift[y])) % num_classes for y in range(num_classes)}


def instance_rows(
    image: Tensor, label: Tensor, rate: float, weight: Tensor, generator: torch.Generator
) -> Tensor:
    """Probabilities (N, C) of each sample's label, from its pixels (Xia et al. 2020, arXiv:2006.07836, algorithm 2).

    A sample's flip rate q is drawn from the normal distribution of mean `rate` and standard deviation 0.1, cut to
    [0, 1]; the label moves to k ≠ y with probability q · softmax over k ≠ y of (x · w_y)_k.

    Args:
        image: uint8 (N, ...); x is its pixels in [0, 1].
        label: int64 (N,).
        weight: w, (C, D, C) standard normal, D the number of values of an image.

    Returns:
        float64 (N, C).
    """
    flip = torch.empty(len(label), 1, dtype=torch.float64)
    nn.init.trunc_normal_(flip, rate, INSTANCE_STD, 0, 1, generator=generator)
    x = image.flatten(1).float() / 255
    score = torch.empty(len(label), len(weight))
    for y in range(len(weight)):
        own = label == y
        score[own] = x[own] @ weight[y]
    rows = flip * score.double().scatter_(1, label[:, None], -math.inf).softmax(1)
    return rows.scatter_(1, label[:, None], 1 - flip)


def draw_labels(rows: Tensor, generator: torch.Generator) -> Tensor:
    """One label for each row (N, C) of probabilities: int64 (N,), by the inverse of the cumulative sum."""
    uniform = torch.rand(len(rows), 1, dtype=torch.float64, generator=generator)
    return (rows.cumsum(1) <= uniform).sum(1).clamp_(max=rows.shape[1] - 1)


def draw_exact(label: Tensor, matrix: Tensor, generator: torch.Generator) -> Tensor:
    """Labels (N,) of which ceil((1 − T[y, y]) n_y) of each class y have moved, chosen at random.

    Where a moved one goes is drawn from T's row without the class itself.
    """
    result = label.clone()
    for y in range(len(matrix)):
        own = (label == y).nonzero().flatten()
        share = 1 - float(matrix[y, y])
        moved = math.ceil(share * len(own) - 1e-9)  # 0.2 · 500 is a little more than 100 in floating point
        if moved:
            chosen = own[torch.randperm(len(own), generator=generator)[:moved]]
            row = matrix[y].clone()
            row[y] = 0
            result[chosen] = draw_labels((row / row.sum()).expand(moved, -1), generator)
    return result


def check(noise: Mapping[str, Any]) -> None:
    """Raises UserError for mistakes in the config `dataset.noise` that can be seen before any data is read."""
    kind, rate, class_map = noise["kind"], noise["rate"], noise["class_map"]
    if kind is None:
        if rate:
            raise UserError(
                f"dataset.noise.rate={rate} without a kind; set dataset.noise.kind to one of {', '.join(KINDS)}."
            )
        return
    if kind not in KINDS:
        raise unknown("kind of label noise (dataset.noise.kind)", str(kind), KINDS)
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
        raise UserError(f"dataset.noise.rate={rate}: it is a share of the labels, from 0 to 1.")
    if (class_map is not None) != (kind == "asymmetric"):
        raise UserError(
            "dataset.noise.class_map belongs to dataset.noise.kind=asymmetric, which needs it: which class becomes "
            "which, e.g. {9: 1, 2: 0}; or a number b: each class becomes the next in its block of b; or random."
        )
    if isinstance(class_map, str) and class_map != "random":
        raise unknown("dataset.noise.class_map", class_map, ["random"])
    if noise["keep_true"] and kind != "symmetric":
        raise UserError(
            f"dataset.noise.keep_true is of kind=symmetric; kind={kind} always moves to another class."
        )
    if noise["exact"] and kind == "instance":
        raise UserError(
            "dataset.noise.exact counts by class; kind=instance draws for each image. Leave it false."
        )


def noisy_labels(
    label: Tensor, num_classes: int, noise: Mapping[str, Any], seed: int, split: str, image: Any = None
) -> Tensor:
    """The labels int64 (N,) of a split with noise; the same for the same seed, split and data.

    Args:
        label: int64 (N,), the true classes.
        noise: the config `dataset.noise`, checked; see configs/dataset/_base.yaml.
        seed: of the stream "noise".
        split: train or val; each has draws of its own.
        image: uint8 (N, C, H, W); instance-dependent noise needs it.

    Raises:
        UserError: a class map that does not fit the classes, or images that are not in memory.
    """
    kind, rate = noise["kind"], float(noise["rate"])
    generator = seeding.generator(seed, "label_noise", split)
    whole = seeding.generator(seed, "label_noise")  # what all splits share
    if kind == "instance":
        if not isinstance(image, Tensor):
            raise UserError("dataset.noise.kind=instance needs images in memory; this data has none there.")
        weight = torch.randn(num_classes, image[0].numel(), num_classes, generator=whole)
        chunks = zip(image.split(CHUNK), label.split(CHUNK), strict=True)
        return draw_labels(
            torch.cat([instance_rows(x, y, rate, weight, generator) for x, y in chunks]), generator
        )
    class_map = noise["class_map"]
    if class_map == "random":
        class_map = random_map(num_classes, whole)
    matrix = transition_matrix(kind, rate, num_classes, keep_true=noise["keep_true"], class_map=class_map)
    if noise["exact"]:
        return draw_exact(label, matrix, generator)
    return draw_labels(matrix[label], generator)
