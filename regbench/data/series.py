"""Time series that are known here and there: generated ones, and the records of the PhysioNet challenge 2012.

A split has `time` float32 (N, T), the same for all series, `values` float32 (N, T, F), 0 where nothing was observed,
and `observed` bool (N, T, F). A network reads (2 F + 1, T) of a series: values, observed, and the time to the next.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regbench import seeding
from regbench.data.files import damaged, missing
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import SPLIT_SEED, fingerprint
from regbench.errors import UserError
from regbench.paths import data_root

# The challenge's 41 parameters without Age, Gender, Height and ICUType, in the order of the latent ODE code.
PARAMETERS = (
    "Weight", "Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol", "Creatinine", "DiasABP", "FiO2", "GCS",
    "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "Mg", "MAP", "MechVent", "Na", "NIDiasABP", "NIMAP", "NISysABP",
    "PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC",
)  # fmt: skip
PASSED_OVER = ("RecordID", "Age", "Gender", "Height", "ICUType")
HOURS = 48


def oscillations(count: int, time: Tensor, features: int, noise: float, generator: torch.Generator) -> Tensor:
    """Damped oscillations x_f(t) = (1 + a exp(−γ t) sin(ω t + φ + 2π f / F)) / 2 with noise: (N, T, F).

    Each series has its a ~ U(1/2, 1), γ ~ U(0, 1), ω ~ U(π/2, 3π/2) and φ ~ U(0, 2π), common to its features f.

    Args:
        count: N.
        time: (T,).
        features: F.
        noise: standard deviation of an observation.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator, dtype=torch.float64)

    a, damping, frequency = uniform(0.5, 1), uniform(0, 1), uniform(math.pi / 2, 3 * math.pi / 2)
    phase = uniform(0, 2 * math.pi) + 2 * math.pi / features * torch.arange(features, dtype=torch.float64)
    t = time.double()[:, None]
    x = (1 + a * torch.exp(-damping * t) * torch.sin(frequency * t + phase)) / 2
    return x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)


def load_irregular(
    root: str | None = None,
    *,
    train: int = 256,
    val: int = 128,
    test: int = 256,
    times: int = 20,
    features: int = 4,
    visited: float = 0.5,
    measured: float = 0.7,
    noise: float = 0.01,
    seed: int = 0,
) -> SampleSets:
    """Damped oscillations known at irregular times, and there not in all features. `root` is not used; the seed fixes
    times, series and gaps.

    Args:
        train, val, test: numbers of series.
        times: T, at random in [0, 1], the first 0 and the last 1; all series share them.
        features: F.
        visited: share of the times at which something of a series is measured.
        measured: share of the features that are measured then.
        noise: standard deviation of a measurement.
    """
    if min(train, val, test, features) < 1 or times < 2 or noise < 0:
        raise UserError(
            "dataset.load.train, dataset.load.val, dataset.load.test and dataset.load.features are at least 1, "
            "dataset.load.times at least 2, dataset.load.noise at least 0."
        )
    if not (0 < visited <= 1 and 0 < measured <= 1):
        raise UserError(
            f"dataset.load.visited={visited} and dataset.load.measured={measured} are shares above 0, at most 1."
        )
    drawn = torch.rand(times - 2, generator=seeding.generator(seed, "irregular_series", "times"))
    time = torch.cat([torch.zeros(1), drawn.sort().values, torch.ones(1)])
    splits = {}
    for name, count in (("train", train), ("val", val), ("test", test)):
        generator = seeding.generator(seed, "irregular_series", name)
        values = oscillations(count, time, features, noise, generator).float()
        observed = torch.rand(count, times, 1, generator=generator) < visited
        observed = observed & (torch.rand(values.shape, generator=generator) < measured)
        observed[:, 0, 0] |= ~observed.any((1, 2))  # no series is without a measurement
        splits[name] = _samples(time, values, observed)
    about = f"{train} {val} {test} {times} {features} {visited} {measured} {noise}"
    return SampleSets(
        **splits,
        shape=(2 * features + 1, times),
        outputs=0,
        fingerprint=fingerprint("irregular_series", about),
    )


def _samples(time: Tensor, values: Tensor, observed: Tensor) -> Samples:
    common = time.float().repeat(len(values), 1)
    return Samples({"time": common, "values": values * observed, "observed": observed})


# -- PhysioNet challenge 2012 ----------------------------------------------------------------------------------------


def read_record(path: Path, missing_code: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums and numbers of a patient's measurements, each (49, 37), by the hour that is nearest, and by parameter.

    A half hour goes to the even hour. Lines are `HH:MM,Parameter,Value`, below a header.

    Args:
        missing_code: a value that stands for "not measured"; None: every value is one.
    """
    sums, counts = np.zeros((HOURS + 1, len(PARAMETERS))), np.zeros((HOURS + 1, len(PARAMETERS)))
    column = {name: position for position, name in enumerate(PARAMETERS)}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], 2):
        try:
            clock, name, text = line.split(",")
            if name in PASSED_OVER:
                continue
            hours, minutes = clock.split(":")
            value, hour = float(text), round(int(hours) + int(minutes) / 60)
            if value != missing_code:
                sums[hour, column[name]] += value
                counts[hour, column[name]] += 1
        except (ValueError, KeyError, IndexError):
            raise damaged(path, f"line {number}: {line!r}") from None
    return sums, counts


def load_physionet2012(
    root: str | None,
    *,
    sets: Sequence[str] = ("set-a", "set-b"),
    val: float = 0.1,
    test: float = 0.2,
    missing_code: float | None = None,
) -> SampleSets:
    """Records of two days in intensive care: 37 parameters at 49 times, from the text files under
    `root`/physionet2012/<set>.

    Measurements of an hour are averaged; values become (x − min) / max, with the minimum and the maximum of each
    parameter over all records (a maximum of 0 is taken for 1); times become [0, 1]. So the latent ODE code prepares
    them.

    Args:
        sets: folders.
        val, test: shares of the records, the same ones for every seed; val 0: none.
        missing_code: a value that stands for "not measured"; None: every value is one. The challenge writes −1 for an
            unknown weight, which the latent ODE code takes for a value.
    """
    if not (0 <= val < 1 and 0 < test < 1 and val + test < 1):
        raise UserError(
            f"dataset.load.val={val} and dataset.load.test={test} are shares of the records that leave some to train "
            "on; test is above 0."
        )
    folder = data_root(root) / "physionet2012"
    paths = [path for name in sets for path in sorted((folder / name).glob("*.txt"))]
    if absent := [name for name in sets if not any((folder / name).glob("*.txt"))]:
        layout = f"the challenge's text files, one a patient, as physionet2012/{absent[0]}/<number>.txt"
        raise missing("The PhysioNet challenge 2012", data_root(root), [layout])
    records = [read_record(path, missing_code) for path in paths]
    sums, counts = (torch.from_numpy(np.stack(part)) for part in zip(*records, strict=True))
    used = counts.any(2).any(1)
    sums, counts = sums[used], counts[used]
    observed = counts > 0
    values = sums / counts.clamp(min=1)
    low = values.where(observed, torch.inf).amin((0, 1))
    high = values.where(observed, -torch.inf).amax((0, 1))
    values = ((values - low) / high.where(high != 0, 1.0)).where(observed, 0.0).float()

    order = torch.randperm(len(values), generator=seeding.generator(SPLIT_SEED, "physionet2012"))
    in_test, in_val = round(test * len(order)), round(val * len(order))
    time = torch.arange(HOURS + 1) / HOURS
    parts = order[:in_test], order[in_test : in_test + in_val], order[in_test + in_val :]
    if min(len(parts[0]), len(parts[2])) < 1 or (val and not len(parts[1])):
        raise UserError(
            f"{len(order)} records are too few for dataset.load.val={val} and dataset.load.test={test}."
        )
    of_test, of_val, of_train = (_samples(time, values[part], observed[part]) for part in parts)
    left_out = int((~used).sum())
    return SampleSets(
        of_train,
        of_val if val else None,
        of_test,
        shape=(2 * len(PARAMETERS) + 1, HOURS + 1),
        outputs=0,
        fingerprint=fingerprint(values, observed.to(torch.uint8), f"{val} {test}"),
        notes=f"{left_out} records without a measurement are left out." if left_out else "",
    )
