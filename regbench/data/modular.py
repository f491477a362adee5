"""Modular arithmetic: all pairs of residues with their sum or product, some of the training labels drawn anew."""

import random

import torch
from torch import Tensor

from regbench import seeding
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import fingerprint
from regbench.errors import UserError, unknown

OPERATIONS = {"addition": torch.add, "multiplication": torch.mul}


def modular_pairs(p: int, operation: str) -> tuple[Tensor, Tensor]:
    """All pairs (i, j) of residues modulo p, int64 (p², 2), j fastest, and their results modulo p, int64 (p²,).

    >>> pairs, result = modular_pairs(3, "addition")
    >>> pairs[5].tolist(), result.tolist()
    ([1, 2], [0, 1, 2, 1, 2, 0, 2, 0, 1])
    """
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    return pairs, OPERATIONS[operation](pairs[:, 0], pairs[:, 1]) % p


def load_modular(
    root: str | None = None,
    *,
    p: int,
    operation: str,
    train_fraction: float,
    corrupted: float,
    pair_seed: int | None = None,
    label_seed: int | None = None,
    seed: int = 0,
) -> SampleSets:
    """The pairs in a random order: the first ⌊train_fraction p²⌋ train, the others are the test split.

    The first ⌊corrupted n⌋ of the n training pairs get a label drawn uniformly from all p residues, so that one in p of
    them is right by chance. Test labels are right. There is no validation split.

    Args:
        root: not used.
        p: modulus.
        operation: addition | multiplication.
        train_fraction: share of the pairs that train, α in the paper.
        corrupted: share of the training pairs whose label is drawn, ξ in the paper.
        pair_seed: seed of Python's generator for the order of the pairs; None: from `seed`.
        label_seed: seed of torch's generator for the drawn labels; None: from `seed`.

    Returns:
        Fields `pair` int64 (N, 2) and `label` int64 (N,). Hidden: `clean`, the right results, and `corrupted`, bool
        (N,), whether the label was drawn.

    >>> sets = load_modular(p=97, operation="addition", train_fraction=0.5, corrupted=0.35)
    >>> len(sets.train), len(sets.test), int(sets.train.hidden["corrupted"].sum())
    (4704, 4705, 1646)
    """
    if operation not in OPERATIONS:
        raise unknown("dataset.operation", operation, OPERATIONS)
    if p < 2:
        raise UserError(f"dataset.p={p} is a modulus, 2 or more.")
    if not 0 <= corrupted <= 1:
        raise UserError(f"dataset.corrupted={corrupted} is a share of the training labels, from 0 to 1.")
    count = int(train_fraction * p * p)
    if not 0 < count < p * p:
        raise UserError(
            f"dataset.train_fraction={train_fraction} leaves {count} of {p * p} pairs for training; both splits need "
            "at least one."
        )
    pairs, result = modular_pairs(p, operation)
    order = list(range(p * p))
    random.Random(seeding.derive(seed, "pairs") if pair_seed is None else pair_seed).shuffle(order)
    pairs, result = pairs[order], result[order]

    label = result.clone()
    drawn = torch.zeros(p * p, dtype=torch.bool)
    drawn[: int(corrupted * count)] = True
    generator = torch.Generator().manual_seed(
        seeding.derive(seed, "labels") if label_seed is None else label_seed
    )
    label[drawn] = torch.randint(p, (int(drawn.sum()),), generator=generator)

    def split(rows: slice) -> Samples:
        return Samples(
            {"pair": pairs[rows], "label": label[rows]}, {"clean": result[rows], "corrupted": drawn[rows]}
        )

    wrong = (label != result).sum() / count
    return SampleSets(
        split(slice(count)),
        None,
        split(slice(count, None)),
        shape=(2,),
        outputs=p,
        fingerprint=fingerprint(
            "modular", *map(str, (p, operation, count, int(drawn.sum()), pair_seed, label_seed))
        ),
        notes=f"{wrong:.1%} of the training labels are wrong." if corrupted else "",
    )
