"""A table's file: which runs it has, which cells are made of them, what was published, and what is claimed.

`load_table("decoupled_mixup/cifar100")` reads `configs/table/decoupled_mixup/cifar100.yaml`, RegBench's or a
plug-in's, and refuses a file with a mistake: the message names the file, the key, and what to do.
docs/tables.md explains every key.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from omegaconf._utils import get_yaml_loader
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from regbench.errors import UserError, unknown
from regbench.paths import config_folders
from regbench.seeding import STREAMS
from regbench.tables.claims import Claim, cells_of

PLACEHOLDER = re.compile(r"<(\w+)>")
REQUIRED_SCALES = ("smoke", "small", "paper")


class Part(BaseModel):
    """What the parts of a table's file share: keys that are not known are refused; names may look like numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Artifact(Part):
    """What a run starts from: the weights of another run of the table (of the same seed), or a file."""

    run: str | None = None
    file: str | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _one(self):
        if (self.run is None) == (self.file is None):
            raise ValueError("give either run (a run of this table) or file (with its sha256)")
        if self.file is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256 or ""):
            raise ValueError("a file needs sha256, its checksum in 64 hexadecimal digits")
        return self


class Run(Part):
    """One training run for each seed, as the overrides that make it."""

    overrides: list[str]
    at: dict[str, list[str]] = {}
    artifacts: dict[str, Artifact] = {}


class Value(Part):
    """How a cell's number is made of its runs, for each seed; see `regbench.tables.reductions`.

    `draw` is the curve that a report draws for the cell; the value's own, or else the validation accuracy, without it.
    """

    draw: str | None = None
    metric: str | None = None
    curve: str | None = None
    epoch: int | None = None
    best_by: str | None = None
    mode: Literal["max", "min"] = "max"
    fit: Literal["line", "power"] | None = None
    x: str | None = None
    y: str | None = None
    give: Literal["slope", "intercept", "exponent", "factor"] | None = None
    function: str | None = None

    @model_validator(mode="after")
    def _one_way(self):
        ways = [name for name in ("metric", "curve", "fit", "function") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError(
                "give one of metric, curve (with epoch or best_by), fit (with x, y, give), function"
            )
        belongs = {"draw"} | {"curve": {"epoch", "best_by", "mode"}, "fit": {"x", "y", "give"}}.get(
            ways[0], set()
        )
        if idle := self.model_fields_set - belongs - {ways[0]}:
            raise ValueError(f"{ways[0]} does not go with {', '.join(sorted(idle))}")
        if self.curve is not None and (self.epoch is None) == (self.best_by is None):
            raise ValueError(
                "a curve needs epoch (the value at that epoch) or best_by (the epoch where that metric is best)"
            )
        if self.best_by is not None and self.best_by.startswith("test/"):
            raise ValueError(f"best_by={self.best_by} would choose by the test set; choose by a val/ metric")
        if self.fit is not None:
            allowed = {"line": ("slope", "intercept"), "power": ("exponent", "factor")}[self.fit]
            if self.x is None or self.y is None or self.give not in allowed:
                raise ValueError(f"fit: {self.fit} needs x, y, and give: {' or '.join(allowed)}")
        return self


class Cell(Part):
    """One number of the table for each seed."""

    row: str
    column: str
    runs: list[str] = []
    value: Value | None = None
    why: str = ""  # why the cell has no runs

    @model_validator(mode="before")
    @classmethod
    def _one_run(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "run" in data:
            if "runs" in data:
                raise ValueError("give run or runs, not both")
            data = {**data, "runs": [data["run"]]}
            del data["run"]
        return data

    @model_validator(mode="after")
    def _whole(self):
        if bool(self.runs) == bool(self.why):
            raise ValueError("give run (or runs); a cell that can't be run says why instead")
        if len(self.runs) > 1 and (self.value is None or not (self.value.fit or self.value.function)):
            raise ValueError("several runs need value: {fit: …} or value: {function: …}")
        return self


class Published(Part):
    """Published values of one source, in the table's unit; a value that is not known stays out."""

    source: str
    values: dict[str, dict[str, FiniteFloat]]
    approximate: bool = False


class Scale(Part):
    """One size at which the table is run."""

    about: str = ""
    seeds: list[NonNegativeInt] = Field(min_length=1)
    overrides: list[str] = []
    rows: list[str] | None = None
    columns: list[str] | None = None
    runnable: bool = True
    why: str = ""

    @model_validator(mode="before")
    @classmethod
    def _count(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("seeds"), int):
            data = {**data, "seeds": list(range(data["seeds"]))}
        return data

    @model_validator(mode="after")
    def _reason(self):
        if not self.runnable and not self.why:
            raise ValueError("runnable: false needs why")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is listed twice")
        return self


class Ranking(Part):
    """Makes a table a comparison of methods (`regbench compare`): which rows are whose settings."""

    methods: dict[str, list[str]]
    baseline: str
    command: str  # what makes the comparison, as one types it


class Table(Part):
    """A table's file. `slug` and `name` are where it lies: configs/table/<slug>/<name>.yaml."""

    slug: str
    name: str
    title: str
    about: str = ""
    metric: str
    unit: str = ""
    direction: Literal["max", "min"]
    row_title: str = ""
    column_title: str = ""
    rows: dict[str, str]
    columns: dict[str, str]
    vary: list[Literal[STREAMS]] | None = None
    runs: dict[str, Run]
    cells: list[Cell]
    published: list[Published] = []
    claims: list[Claim] = []
    ranking: Ranking | None = None
    scales: dict[str, Scale]

    @property
    def key(self) -> str:
        return f"{self.slug}/{self.name}"

    @model_validator(mode="after")
    def _refers_to_what_there_is(self):
        places = set()
        for cell in self.cells:
            _known("row", cell.row, self.rows)
            _known("column", cell.column, self.columns)
            if (cell.row, cell.column) in places:
                raise ValueError(f"cells: {cell.row} / {cell.column} is there twice")
            places.add((cell.row, cell.column))
            for run in cell.runs:
                _known("run", run, self.runs)
        for name, run in self.runs.items():
            for scale in run.at:
                _known(f"scale (in runs.{name}.at)", scale, self.scales)
            for role, artifact in run.artifacts.items():
                if artifact.run is not None:
                    _known(f"run (in runs.{name}.artifacts.{role})", artifact.run, self.runs)
        self._makers_come_before_users()
        for source in self.published:
            for row, values in source.values.items():
                _known("row (in published)", row, self.rows)
                for column in values:
                    _known("column (in published)", column, self.columns)
        for claim in self.claims:
            for row, column in cells_of(claim):
                if (row, column) not in places:
                    raise ValueError(f"claim '{claim.says}': the table has no cell {row} / {column}")
        if self.ranking is not None:
            _known("method (ranking.baseline)", self.ranking.baseline, self.ranking.methods)
            for row in (row for rows in self.ranking.methods.values() for row in rows):
                _known("row (in ranking)", row, self.rows)
        for scale in self.scales.values():
            for row in scale.rows or ():
                _known("row (in scales)", row, self.rows)
            for column in scale.columns or ():
                _known("column (in scales)", column, self.columns)
        return self

    def _makers_come_before_users(self) -> None:
        def makers(name: str, above: tuple[str, ...]) -> None:
            if name in above:
                raise ValueError(f"runs: {' starts from '.join((*above, name))}, which is a circle")
            for artifact in self.runs[name].artifacts.values():
                if artifact.run is not None:
                    makers(artifact.run, (*above, name))

        for name in self.runs:
            makers(name, ())

    def published_value(self, row: str, column: str) -> dict[str, Any] | None:
        """The published value of a cell with its source, or None where it is not known."""
        for source in self.published:
            value = source.values.get(row, {}).get(column)
            if value is not None:
                return {"value": value, "source": source.source, "approximate": source.approximate}
        return None


def _known(kind: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ValueError(str(unknown(kind, name, known)))


def table_files() -> dict[str, Path]:
    """All tables, RegBench's and the plug-ins': "<slug>/<name>" → file. Of two with one name the first wins."""
    found: dict[str, Path] = {}
    for folder in config_folders():
        for path in sorted(folder.glob("table/*/*.yaml")):
            found.setdefault(f"{path.parent.name}/{path.stem}", path)
    return dict(sorted(found.items()))


def load_table(key: str) -> Table:
    """The table "<slug>/<name>"; "<slug>" alone serves where the paper has one table, and so does the path of a file.

    Raises:
        UserError: there is no such table (with the nearest names), or its file has a mistake (file, key and mend).
    """
    if key.endswith(".yaml"):
        if not Path(key).is_file():
            raise UserError(f"table={key} is no file.")
        return read_table(Path(key), required=())
    files = table_files()
    if "/" not in key:
        of_paper = [name for name in files if name.startswith(f"{key}/")]
        if len(of_paper) > 1:
            raise UserError(f"{key} has {len(of_paper)} tables; choose table={' or table='.join(of_paper)}.")
        key = of_paper[0] if of_paper else key
    if key not in files:
        raise unknown("table", key, files)
    return read_table(files[key])


def read_table(path: Path, required: Sequence[str] = REQUIRED_SCALES) -> Table:
    """The table of a file. Raises UserError as `load_table` does, and where it lacks a scale of `required`."""
    try:
        # OmegaConf's loader, because it refuses a key that is there twice.
        text = yaml.load(path.read_text(encoding="utf-8"), get_yaml_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(text, dict):
        raise UserError(
            f"{path} holds no table: it should be a mapping with title, rows, columns, runs, cells, scales."
        )
    try:
        for scale in required:
            if scale not in (text.get("scales") or {}):
                raise ValueError(f"scales: {scale} is missing; every paper's table has {', '.join(required)}")
        text = {**text, "runs": _expanded_runs(text.get("runs")), "cells": _expanded_cells(text.get("cells"))}
        return TypeAdapter(Table).validate_python({**text, "slug": path.parent.name, "name": path.stem})
    except ValidationError as error:
        raise UserError(f"{path}: {_explained(error)}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _explained(error: ValidationError) -> str:
    """The first mistakes, each as "key: what is wrong"."""
    said = []
    for item in error.errors()[:3]:
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = str(unknown("key", str(item["loc"][-1]), _siblings(item["loc"])))
        elif item["type"] == "missing":
            message = "is missing"
        else:
            given = item.get("input")
            message += f" (it is {given!r})" if isinstance(given, str | int | float | None) else ""
        said.append(f"{key}: {message}" if key else message)
    more = len(error.errors()) - len(said)
    return "; ".join(said) + (f"; and {more} more" if more > 0 else "")


def _siblings(place: tuple) -> list[str]:
    """The keys that are known where an unknown one stands."""
    kinds = {
        "runs": Run,
        "cells": Cell,
        "published": Published,
        "scales": Scale,
        "value": Value,
        "artifacts": Artifact,
        "ranking": Ranking,
    }
    kinds |= {
        get_args(claim.model_fields["kind"].annotation)[0]: claim for claim in get_args(get_args(Claim)[0])
    }
    for part in reversed(place[:-1]):
        if part in kinds:
            return list(kinds[part].model_fields)
    return [name for name in Table.model_fields if name not in ("slug", "name")]


def _expanded_runs(runs: Any) -> dict[str, Any]:
    """`"<policy>-dm": {each: {policy: [mixup, cutmix]}, …}` stands for a run for each policy."""
    if not isinstance(runs, dict):
        raise ValueError("runs: it is a mapping from a run's name to {overrides: […]}")
    found: dict[str, Any] = {}
    for name, node in runs.items():
        for filled_name, filled in _each(str(name), node, f"runs.{name}"):
            if filled_name in found:
                raise ValueError(f"runs: {filled_name} is there twice")
            found[filled_name] = filled
    return found


def _expanded_cells(cells: Any) -> list[Any]:
    if not isinstance(cells, list):
        raise ValueError("cells: it is a list of {row, column, run}")
    return [filled for i, node in enumerate(cells) for _, filled in _each("", node, f"cells[{i}]")]


def _each(name: str, node: Any, where: str) -> list[tuple[str, Any]]:
    """The node for each combination of what its `each` lists, with `<variable>` replaced everywhere.

    A variable has a list of values, or a mapping from its values to further variables: `{mixup: {alpha: 1}, …}`.
    """
    if not isinstance(node, dict):
        raise ValueError(
            f"{where}: it is a mapping such as {{{'overrides: […]' if name else 'row: …, column: …, run: …'}}}"
        )
    node = dict(node)
    variables = node.pop("each", {})
    if not isinstance(variables, dict) or not all(
        isinstance(values, list)
        or (isinstance(values, dict) and all(isinstance(more, dict | None) for more in values.values()))
        for values in variables.values()
    ):
        raise ValueError(
            f"{where}.each: it is {{variable: [value, …]}}, or {{variable: {{value: {{further variable: …}}}}}}"
        )
    filled = []
    for values in itertools.product(*variables.values()):
        chosen = dict(zip(variables, map(str, values), strict=True))
        for variable, value in zip(variables, values, strict=True):
            if isinstance(variables[variable], dict):
                chosen |= {key: str(other) for key, other in (variables[variable][value] or {}).items()}

        def fill(text: str, chosen: dict[str, str] = chosen) -> str:
            for variable in PLACEHOLDER.findall(text):
                if variable not in chosen:
                    raise ValueError(
                        f"{where}: <{variable}> is not in its each, which has {', '.join(chosen) or 'nothing'}"
                    )
            return PLACEHOLDER.sub(lambda match: chosen[match[1]], text)

        def walk(part: Any, fill: Any = fill) -> Any:
            if isinstance(part, dict):
                return {walk(key): walk(value) for key, value in part.items()}
            if isinstance(part, list):
                return [walk(value) for value in part]
            return fill(part) if isinstance(part, str) else part

        filled.append((fill(name), walk(node)))
    return filled
