"""`regbench diff`: where two runs differ in their configurations, in what made them, and in their metrics."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from regbench.composing import flat
from regbench.errors import UserError
from regbench.identity import HARMLESS, NEUTRAL, PARTS
from regbench.runs import RESULT_KEYS
from regbench.terminal import plain_console

# The parts of a configuration that can change a run's numbers; the others say where things lie and what is shown.
DECIDES = (*PARTS, "stack", "seed", "seeds", "artifacts", "ckpt_path", "test_only")
MADE_BY = {"code": "code", "git_commit": "commit", "device": "device", "machine": "machine"}
ABSENT = "–"
_MISSING = object()


@dataclass(frozen=True)
class Run:
    """A run's folder as it is read.

    Args:
        config: the resolved configuration with dotted keys.
        made_by: what else numbers depend on: code, commit, device, machine, data and versions.
        metrics: test metrics as result.json has them (None for one that was not finite).
        finished: whether there is a result; else `made_by` and `metrics` are empty.
    """

    folder: Path
    config: dict[str, Any]
    made_by: dict[str, str]
    metrics: dict[str, float | None]
    finished: bool


@dataclass(frozen=True)
class Row:
    """One thing in both runs. `note` says where a difference changes no number, or how large it is."""

    name: str
    left: str
    right: str
    note: str = ""


def read_run(folder: Path) -> Run:
    """Reads what a run has left: result.json, or config.yaml of a run that is not finished.

    Raises:
        UserError: the folder is none, holds no run, or its files are cut short.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Give the folder of a run, such as runs/<name>/<time>.")
    result, config = folder / "result.json", folder / "config.yaml"
    if result.is_file():
        try:
            found = json.loads(result.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if not all(key in found for key in RESULT_KEYS):
            raise UserError(
                f"{result} is cut short or damaged. Move it away to have the run's config.yaml read instead."
            )
        made_by = {shown: str(found.get(key) or ABSENT) for key, shown in MADE_BY.items()}
        made_by["data"] = found.get("data", {}).get("fingerprint", ABSENT)
        return Run(folder, flat(found["config"]), made_by | found.get("versions", {}), found["metrics"], True)
    if not config.is_file():
        raise UserError(
            f"{folder} is no run folder, or its run stopped before training: "
            "it has neither result.json nor config.yaml."
        )
    try:
        return Run(folder, flat(yaml.safe_load(config.read_text(encoding="utf-8"))), {}, {}, False)
    except (yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{config} is cut short or damaged; start the run anew.") from error


def config_rows(left: Run, right: Run) -> list[Row]:
    """The keys with different values, those that can change numbers first. 1 and 1.0 differ, as in a run's hash."""
    rows = []
    for key in sorted(left.config.keys() | right.config.keys()):
        values = [run.config.get(key, NEUTRAL.get(key, _MISSING)) for run in (left, right)]
        texts = [ABSENT if value is _MISSING else json.dumps(value, ensure_ascii=False) for value in values]
        if texts[0] == texts[1]:
            continue
        decides = key.partition(".")[0] in DECIDES
        if key == "ckpt_path":  # a run that went on from its own checkpoint is as if it had never stopped
            pairs = zip(values, (left.folder, right.folder), strict=True)
            decides = any(isinstance(v, str) and not is_own_checkpoint(v, folder) for v, folder in pairs)
        if not decides or any(key == harmless or key.startswith(f"{harmless}.") for harmless in HARMLESS):
            rows.append(Row(key, *texts, "changes no number"))
        else:
            rows.append(Row(key, *texts))
    return sorted(rows, key=lambda row: row.note)


def is_own_checkpoint(path: str, folder: Path) -> bool:
    """Whether `path` is the last checkpoint of the run in `folder`, also where the folder was moved since."""
    return Path(path).parts[-3:] == (folder.absolute().name, "checkpoints", "last.ckpt")


def made_by_rows(left: Run, right: Run) -> list[Row]:
    """Code, commit, device, machine, data and versions, those of both runs."""
    names = list(left.made_by | right.made_by)
    return [Row(name, *(run.made_by.get(name, ABSENT) for run in (left, right))) for name in names]


def metric_rows(left: Run, right: Run) -> list[Row]:
    """The metrics side by side; the note is "same" where all bits are, else right minus left."""
    rows = []
    for name in sorted(left.metrics.keys() | right.metrics.keys()):
        values = [run.metrics.get(name, _MISSING) for run in (left, right)]
        if values[0] == values[1]:
            note = "same"
        elif all(isinstance(value, int | float) for value in values):
            note = f"{values[1] - values[0]:+.3g}"
        else:
            note = "differs"
        rows.append(Row(name, *map(_number, values), note))
    return rows


def _number(value: Any) -> str:
    if value is _MISSING:
        return ABSENT
    return "not finite" if value is None else f"{value:.6g}"


def show_diff(left: Run, right: Run) -> None:
    """Prints where two runs differ, and what is the same."""
    console = plain_console()
    for side, run in (("left", left), ("right", right)):
        console.print(f"{side}: {run.folder}{'' if run.finished else ' (not finished)'}", soft_wrap=True)

    rows = config_rows(left, right)
    if rows:
        _print_table(console, "Configuration", rows)
    else:
        console.print("\nThe configurations are the same.")
    if not (left.finished and right.finished):
        console.print("\nOnly two finished runs can be compared further.")
        return
    made_by = made_by_rows(left, right)
    if different := [row for row in made_by if row.left != row.right]:
        _print_table(console, "Made by", different)
    if same := [row.name for row in made_by if row.left == row.right]:
        console.print(f"\nThe same: {', '.join(same)}.", soft_wrap=True)
    _print_table(
        console, "Test metrics (fractions; nll in nats)", metric_rows(left, right), "right − left", "right"
    )


def _print_table(
    console: Console, title: str, rows: list[Row], note: str = "", justify: str = "left"
) -> None:
    table = Table(title=f"\n{title}", title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("", overflow="fold")
    for header in ("left", "right", note):
        table.add_column(header, overflow="fold", justify=justify)
    for row in rows:
        table.add_row(row.name, row.left, row.right, row.note)
    console.print(table)
