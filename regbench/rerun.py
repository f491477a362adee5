"""`regbench rerun`: a run once more, from scratch in a new folder, and whether the same numbers come out."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from regbench.errors import UserError
from regbench.run_diff import Run, is_own_checkpoint, read_run, show_diff
from regbench.tables.plan import quoted_value

RUN_DIR = "hydra.run.dir"
# How a sweep has a table's run shown (`regbench.tables.sweep`), besides `progress`. It sets `runs_dir` too, which
# stays, since what the run starts from lies there; all four together tell such a run.
SHOWN_BY_SWEEP = {"run_name", "run_group", "run_tags"}


def prepare(folder: Path, overrides: Sequence[str]) -> tuple[Run | None, list[str]]:
    """What `train.py` is called with to run a run again.

    Args:
        folder: of the run, made by train.py or by a sweep, finished or not.
        overrides: further ones; they win over the run's own. `hydra.run.dir` says where the new run goes (default:
            beside the folder).

    Returns:
        The earlier run, None where it has no result; and the arguments.

    Raises:
        UserError: no run folder, a new folder that is there already, or a request to resume.
    """
    folder = Path(os.path.abspath(folder))
    hydra = folder / ".hydra"
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Give the folder of a run, such as runs/<name>/<time>.")
    if not (hydra / "overrides.yaml").is_file() or not (hydra / "hydra.yaml").is_file():
        raise UserError(
            f"{folder} can't be run again: it has no .hydra/overrides.yaml and .hydra/hydra.yaml, which train.py and "
            "sweeps leave. (A run that another one made on its way, as its artifact, has none: run that one again.)"
        )
    for override in overrides:
        if override.startswith("-"):
            raise UserError(f"{override}: rerun takes overrides only, such as seed=1.")
        if override.startswith("resume="):
            raise UserError(
                "rerun starts from scratch; to go on with a run use train.py resume=<run folder>."
            )
    earlier = read_run(folder) if (folder / "result.json").is_file() else None

    own, chosen = _load(hydra / "overrides.yaml"), _load(hydra / "hydra.yaml")["hydra"]
    return earlier, [
        *(f"--config-dir={s['path']}" for s in chosen["runtime"]["config_sources"] if s["provider"] == "command-line"),
        *(o for o in chosen["overrides"]["hydra"] if o.startswith("hydra.searchpath=")),
        *_without_what_concerned_the_old_run(own, overrides, folder),
        *(o for o in overrides if _key(o) != RUN_DIR),
        f"{RUN_DIR}={quoted_value(_new_folder(folder, overrides))}",
    ]  # fmt: skip


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is cut short or damaged; start the run anew with train.py.") from error


def _key(override: str) -> str:
    return override.partition("=")[0]


def _without_what_concerned_the_old_run(own: list[str], overrides: Sequence[str], folder: Path) -> list[str]:
    """The run's own overrides, less what the new ones replace, what resumed it and what a sweep showed it by."""
    keys = {_key(override) for override in own}
    drop = {_key(override) for override in overrides} | {"resume"}  # Hydra refuses two choices of one group
    if "resume" in keys:
        drop |= {"ckpt_path"}
    if SHOWN_BY_SWEEP | {"runs_dir"} <= keys:
        drop |= SHOWN_BY_SWEEP | {"progress"}
    return [
        o
        for o in own
        if _key(o) not in drop
        and not (_key(o) == "ckpt_path" and is_own_checkpoint(o.partition("=")[2].strip("'\""), folder))
    ]


def _new_folder(folder: Path, overrides: Sequence[str]) -> str:
    """Where the new run goes. Raises UserError where something lies there."""
    given = [o.partition("=")[2].strip("'\"") for o in overrides if _key(o) == RUN_DIR]
    new = Path(given[-1] if given else f"{folder}-rerun-{time.strftime('%Y%m%d-%H%M%S')}")
    if new.exists() and not (new.is_dir() and not any(new.iterdir())):
        raise UserError(f"{new} is there already; choose a new folder with hydra.run.dir=<folder>.")
    return str(new)


def show_outcome(earlier: Run | None, folder: Path) -> None:
    """Prints whether the run in `folder` has the metrics of the earlier one, and else where the two differ."""
    print(f"\nRun again in {folder}")
    if earlier is None:
        print("The earlier run has no result to compare with.")
        return
    again = read_run(folder)
    if again.metrics == earlier.metrics:
        print(f"Bit for bit the same: {', '.join(sorted(again.metrics))}.")
    else:
        print("The metrics are not the same:\n")
        show_diff(earlier, again)
