"""`regbench merge`: the networks of finished runs made into one, in a run folder of its own."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from regbench.checks import check
from regbench.composing import compose_config
from regbench.errors import UserError, unknown
from regbench.export import export
from regbench.runs import RunFolder
from regbench.training import run

METHODS = {"fisher": "fisher_merging", "average": "average_merging", "ensemble": "output_ensemble"}
SAME = ("dataset", "backbone", "seed", "seeds")  # what the merged run has of the first run's configuration


def merge_runs(runs: Sequence[Path], method: str, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Merges finished runs on the data of the first, whose classifier is kept; returns the file of the merged weights.

    Args:
        runs: folders of finished runs, the target's first.
        method: a key of `METHODS`.
        out: becomes a run folder, with the checkpoint, result.json and model.pt.
        overrides: further ones of the merging run, e.g. regularizer.coefficients=[0.5,0.5].

    Raises:
        UserError: no finished run, networks of different architectures or starts, or a folder that is there already.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if len(runs) < 2:
        raise UserError("Merging takes two runs or more: runs=[<run folder>,<run folder>].")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is there already; give another folder with out=<folder>.")
    results, artifacts = [], {}
    for i, folder in enumerate(runs, start=1):
        result = RunFolder(folder).result() if folder.is_dir() else None
        if result is None:
            raise UserError(f"{folder} is no folder of a finished run: it has no result.json.")
        if not result["tested"]:
            slug = result["config"]["regularizer"]["name"]
            raise UserError(f"{folder} has no weights: {slug} trains nothing.")
        checkpoint = folder / result["tested"][-1]
        if not checkpoint.is_file():
            raise UserError(f"The weights that the run tested are gone: {checkpoint}.")
        results.append(result)
        artifacts[f"model_{i}"] = checkpoint.absolute()
    of_same = [o for o in overrides if o.partition("=")[0].partition(".")[0] in SAME]
    others = [o for o in overrides if o not in of_same]
    cfg = compose_config([f"regularizer={METHODS[method]}", "logger=none", "progress=none", *others])
    for key in SAME:
        cfg[key] = results[0]["config"][key]
    if groups := [o for o in of_same if o.startswith(("dataset=", "backbone="))]:
        raise UserError(
            f"{groups[0]}: data and network are those of the first run, of which options can be changed, such as "
            "dataset.eval_batch_size=64. Put another run first for others."
        )
    try:
        cfg.merge_with_dotlist(of_same)
    except OmegaConfBaseException as error:
        raise UserError(f"{' '.join(of_same)} can't be set: {str(error).splitlines()[0]}.") from None
    cfg.artifacts = {role: {"file": str(path)} for role, path in artifacts.items()}
    check(cfg)
    run(cfg, out, artifacts)
    return export(out)


def describe(out: Path) -> str:
    """The outcome in words: coefficients and accuracies."""
    metrics = RunFolder(out).result()["metrics"]
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = re.compile(r"val/accuracy(_model_\d+)?")
    shares = {n: float(v) for row in rows for n, v in row.items() if v and wanted.fullmatch(n)}
    coefficients = [f"{v:.3g}" for name, v in metrics.items() if name.startswith("test/coefficient_")]
    lines = [f"coefficients {', '.join(coefficients)}"] if coefficients else []
    lines += [f"{name}  {100 * value:.2f} %" for name, value in sorted(shares.items())]
    return "\n".join([*lines, f"test/accuracy  {100 * metrics['test/accuracy']:.2f} %", f"Written: {out}"])
