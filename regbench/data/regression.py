"""Samples of a regression, features (d,) and one target: generated, shipped with scikit-learn, or a file of numbers.

Targets are float64: of targets that are rounded to float32 sums of a few are exact, so that splits tie which otherwise
don't, and a tree breaks ties at random.

Hidden from the batches, for measuring, are of generated training samples `truth`, the target without noise, `noise_sd`,
the noise's standard deviation, and `resampled`, a second draw of the target at the same features; each (N, 1).
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from regbench import seeding
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import fingerprint
from regbench.errors import UserError, unknown


def mars_add(x: Tensor) -> Tensor:
    """0.1 e^(4 x1) + 4 / (1 + e^(−20 (x2 − 0.5))) + 3 x3 + 2 x4 + x5, (N,): Friedman's additive function (MARSadd).

    Args:
        x: (N, d), d ≥ 5; the features from the sixth on change nothing.

    >>> round(mars_add(torch.tensor([[0.0, 0.5, 1.0, 1.0, 1.0]])).item(), 4)  # 0.1 + 4 / 2 + 3 + 2 + 1
    8.1
    """
    return (
        0.1 * (4 * x[:, 0]).exp() + 4 * (20 * (x[:, 1] - 0.5)).sigmoid() + 3 * x[:, 2] + 2 * x[:, 3] + x[:, 4]
    )


def mars_mult(x: Tensor) -> Tensor:
    """10 sin(π x1 x2) + 20 (x3 − 0.05)² + 10 x4 + 5 x5, (N,): MARSmult as the released code has it; Friedman's own
    function has 0.5 in place of 0.05.

    Args:
        x: (N, d), d ≥ 5.

    >>> round(mars_mult(torch.tensor([[0.5, 1.0, 0.05, 1.0, 1.0]])).item(), 4)  # 10 + 0 + 10 + 5
    25.0
    """
    return 10 * (math.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.05) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"mars_add": mars_add, "mars_mult": mars_mult}


def load_mars(
    root: str | None = None,
    *,
    function: str,
    n_train: int,
    n_val: int,
    n_test: int,
    features: int,
    sigma: float,
    offset: float | None,
    seed: int = 0,
) -> SampleSets:
    """x ~ U[0, 1]^d, y = f(x) + sigma ε, ε ~ N(0, 1); `root` is not used.

    Args:
        function: f, mars_add or mars_mult.
        offset: o; validation and test features are then the training features + U[−o, o]^d, which may leave [0, 1], in
            place of fresh ones. Targets are always drawn anew.
        seed: each split's features, offsets and noise have a stream of their own: a size changes no other split.
    """
    if function not in FUNCTIONS:
        raise unknown("dataset.load.function", function, FUNCTIONS)
    if min(n_train, n_test) < 2 or n_val < 0 or features < 5:
        raise UserError(
            f"dataset.n_train={n_train} and dataset.n_test={n_test} must be at least 2, dataset.n_val={n_val} at least "
            f"0, dataset.features={features} at least 5."
        )
    if sigma < 0 or (offset is not None and offset < 0):
        raise UserError(f"dataset.sigma={sigma} and dataset.offset={offset} must not be negative.")
    if offset is not None and max(n_val, n_test) > n_train:
        raise UserError(
            f"With dataset.offset the test features are those of the {n_train} training samples, moved: give no more "
            f"than these of dataset.n_val={n_val} and dataset.n_test={n_test}."
        )

    def uniform(split: str, rows: int) -> Tensor:
        return torch.rand(rows, features, generator=seeding.generator(seed, "features", split))

    def noisy(x: Tensor, draw: str) -> tuple[Tensor, Tensor]:
        """The target without and with noise, (N, 1)."""
        truth = FUNCTIONS[function](x.double())[:, None]
        generator = seeding.generator(seed, "target", draw)
        return truth, truth + sigma * torch.randn(truth.shape, generator=generator, dtype=torch.float64)

    train = uniform("train", n_train)
    truth, target = noisy(train, "train")

    def split(name: str, rows: int) -> Samples:
        x = uniform(name, rows)
        if offset is not None:
            x = train[:rows] + offset * (2 * x - 1)
        return Samples({"features": x, "target": noisy(x, name)[1]})

    hidden = {
        "truth": truth,
        "noise_sd": torch.full_like(truth, sigma),
        "resampled": noisy(train, "again")[1],
    }
    return SampleSets(
        train=Samples({"features": train, "target": target}, hidden),
        val=split("val", n_val) if n_val else None,
        test=split("test", n_test),
        shape=(features,),
        outputs=1,
        fingerprint=fingerprint(
            "mars", function, *map(str, (n_train, n_val, n_test, features, float(sigma), offset))
        ),
    )


def load_diabetes(
    root: str | None = None, *, n_train: int, n_val: int, n_test: int, seed: int = 0
) -> SampleSets:
    """scikit-learn's 442 diabetes patients: ten features, and the disease's progress in a year, divided by 100.

    `root` is not used.
    """
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return _drawn(torch.from_numpy(x), torch.from_numpy(y / 100), (n_train, n_val, n_test), "diabetes", seed)


def load_csv(
    root: str | None = None,
    *,
    file: str | None,
    target: str | None,
    n_train: int,
    n_val: int,
    n_test: int,
    seed: int = 0,
) -> SampleSets:
    """A file of numbers separated by commas, with a first line of names.

    Args:
        root: the folder of `file`, where that is no absolute path.
        target: name of the column to be predicted; the others are the features.
    """
    import numpy as np

    if file is None or target is None:
        raise UserError("dataset=csv needs dataset.file=<file.csv> and dataset.target=<name of a column>.")
    path = Path(root or "", file)
    if not path.is_file():
        raise UserError(f"{path} is no file. Set dataset.file, and dataset.root where it lies elsewhere.")
    with path.open(encoding="utf-8") as lines:
        names = [name.strip().strip('"') for name in lines.readline().split(",")]
        if target not in names:
            raise unknown(f"column in {path} called", target, names)
        try:
            table = torch.from_numpy(np.loadtxt(lines, delimiter=",", ndmin=2))
        except ValueError as error:
            raise UserError(f"{path} must hold numbers only below its first line: {error}.") from error
    column = names.index(target)
    x = torch.cat([table[:, :column], table[:, column + 1 :]], 1)
    return _drawn(x, table[:, column], (n_train, n_val, n_test), path.name, seed)


def _drawn(x: Tensor, y: Tensor, sizes: tuple[int, int, int], name: str, seed: int) -> SampleSets:
    """Training, validation and test rows, drawn without replacement by the seed."""
    n_train, n_val, n_test = sizes
    if min(n_train, n_test) < 2 or n_val < 0 or sum(sizes) > len(x):
        raise UserError(
            f"dataset.n_train={n_train}, dataset.n_val={n_val} and dataset.n_test={n_test}: {name} has {len(x)} "
            "rows, of which two or more train and two or more are tested."
        )
    rows = torch.randperm(len(x), generator=seeding.generator(seed, "rows"))[: sum(sizes)].split(sizes)
    train, val, test = (Samples({"features": x[part].float(), "target": y[part, None]}) for part in rows)
    content = fingerprint(x.contiguous(), y.contiguous(), *map(str, sizes))
    return SampleSets(train, val if n_val else None, test, (x.shape[1],), 1, content)
