"""From a table and a scale to the runs that it takes: composed, identified by their hashes, shared between cells."""

import json
import pickle
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regbench.composing import explain
from regbench.errors import UserError, unknown
from regbench.identity import hash_of, identity, resolve
from regbench.paths import configs_dir
from regbench.seeding import STREAMS
from regbench.tables.reductions import reduction
from regbench.tables.spec import Cell, Table

NOT_AT_THIS_SCALE = "not at this scale"
NOT_ASKED_FOR = "not asked for"
NOT_RUNNABLE = "not runnable"
SHOWN = ("logger", "run_name", "run_group", "run_tags")  # parts of a configuration that a plan has no need of
NOT_OVERRIDES = {  # keys of `train.py` that would make a run what its hash does not say
    "seed": "seeds=[…] says which seeds the table is run with",
    "ckpt_path": "a table's runs start anew, or from the artifacts that its file names",
    "resume": "the same command goes on with what was stopped",
    "test_only": "a table's runs are trained",
}


class Composer:
    """Composes configurations of `train.py` as Hydra does, but each choice of config groups only once.

    Reading the groups' files takes 30 times as long as setting values, and a table's runs differ mostly in values.
    """

    def __init__(self, loader: ConfigLoader):
        self._loader = loader
        self._repository = CachingConfigRepository(loader.repository)
        self._parse = cache(OverridesParser.create(config_loader=loader).parse_override)
        self._bases: dict[tuple[str, ...], bytes] = {}

    def compose(self, overrides: Iterable[str]) -> DictConfig:
        """The configuration of `train.py <overrides>`.

        Raises:
            UserError: an override that Hydra refuses (with the nearest names), or one that stands for several runs.
        """
        overrides = list(overrides)
        try:
            parsed = [self._parse(override) for override in overrides]
            for override in parsed:
                if override.is_sweep_override():
                    raise UserError(
                        f"{override.input_line} stands for several runs; a table lists each as a run of its own."
                    )
            groups = tuple(o.input_line for o in parsed if self._chooses_from_a_group(o))
            if groups not in self._bases:
                base = self._loader.load_configuration("train", list(groups), RunMode.RUN, from_shell=False)
                OmegaConf.set_struct(base, False)
                del base["hydra"]
                OmegaConf.set_struct(base, True)
                self._bases[groups] = pickle.dumps(base)
            cfg = pickle.loads(self._bases[groups])  # several times as fast as a deep copy
            values = [o for o in parsed if o.input_line not in groups and not o.is_hydra_override()]
            ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
            return cfg
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, overrides) from error

    def _chooses_from_a_group(self, override: Override) -> bool:
        return self._repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)


@contextmanager
def composer():
    """A `Composer` where Hydra does not run."""
    with initialize_config_dir(config_dir=str(configs_dir()), version_base="1.3"):
        yield Composer(GlobalHydra.instance().config_loader())


@dataclass
class PlannedRun:
    """One run of one seed.

    Args:
        name: the run's name in the table.
        overrides: what `train.py` is called with.
        config: the resolved configuration without `SHOWN`.
        hash: names its folder; empty where the plan was made without reading data.
        makers: role → hash of the run that makes what this one starts from.
        cells: "row / column" of each cell that it is for; none for a run that only others start from.
    """

    name: str
    seed: int
    overrides: list[str]
    config: dict[str, Any]
    hash: str
    makers: dict[str, str] = field(default_factory=dict)
    cells: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        return " ".join(["python train.py", *map(shlex.quote, self.overrides)])


@dataclass
class PlannedCell:
    """A cell at a scale: for each seed the keys (in `Plan.runs`) of the runs that it is made of."""

    cell: Cell
    state: str  # "" where it has runs, else NOT_AT_THIS_SCALE, NOT_ASKED_FOR or NOT_RUNNABLE
    why: str
    runs: dict[int, list[str]]


@dataclass
class Plan:
    """What a table takes at a scale. `runs` has makers before users."""

    table: Table
    scale: str
    overrides: list[str]
    runs: dict[str, PlannedRun]
    cells: list[PlannedCell]
    logger: dict[str, Any] = field(default_factory=dict)  # the first run's config `logger`

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs.values()})


def make_plan(
    table: Table,
    scale: str,
    compose: Composer,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    fingerprint: Callable[[Mapping[str, Any]], str] | None = None,
) -> Plan:
    """The runs and cells of a table at a scale.

    Args:
        overrides: further overrides of every run; they win over the table's.
        seeds: in place of the scale's.
        only: cells to run, as "row/column", "row" or "column"; None: all.
        fingerprint: of the data of a resolved configuration's `dataset`. None: nothing is read and nothing hashed;
            runs are then known by "<name>-s<seed>".

    Raises:
        UserError: an unknown scale or cell (nearest names), an override that does not compose or has no place here, or
            a cell's function that can't be imported.
    """
    if scale not in table.scales:
        raise unknown(f"scale of {table.key}", scale, table.scales)
    at = table.scales[scale]
    wanted = _wanted(table, only)
    plan = Plan(table, scale, list(overrides), {}, [])
    composed: dict[str, DictConfig] = {}
    fingerprints: dict[str, str] = {}
    hashes: dict[tuple[str, int], str] = {}

    def data_of(config: Mapping[str, Any]) -> str:
        key = json.dumps([config["dataset"].get("root"), config["dataset"].get("load")], sort_keys=True)
        if key not in fingerprints:
            fingerprints[key] = fingerprint(config["dataset"])
        return fingerprints[key]

    def add(name: str, seed: int, cell: str | None) -> str:
        """Plans a run and those that it starts from; returns its key."""
        if (name, seed) not in hashes:
            run = table.runs[name]
            makers = {role: add(a.run, seed, None) for role, a in run.artifacts.items() if a.run is not None}
            own = _last_of_each([*at.overrides, *run.overrides, *run.at.get(scale, ()), *overrides])
            for override in own:
                key = override.partition("=")[0].lstrip("+~")
                if key in NOT_OVERRIDES:
                    raise UserError(
                        f"{override} can't be an override of a table's run: {NOT_OVERRIDES[key]}."
                    )
            if name not in composed:
                composed[name] = compose.compose(own)
            own += [
                f"seeds.{stream}={at.seeds[0]}"
                for stream in STREAMS
                if table.vary and stream not in table.vary
            ]
            own += [f"seed={seed}"]
            for role, artifact in run.artifacts.items():
                if artifact.run is not None:
                    own.append(
                        f"++artifacts.{role}.overrides={hydra_list(plan.runs[makers[role]].overrides)}"
                    )
                else:
                    own.append(
                        f"++artifacts.{role}={{file: {quoted_value(artifact.file)}, sha256: '{artifact.sha256}'}}"
                    )
            cfg = composed[name]
            cfg.seed = seed
            for stream in STREAMS if table.vary else ():
                if stream not in table.vary:
                    cfg.seeds[stream] = at.seeds[0]
            config = resolve(cfg, leave_out=SHOWN)
            if not plan.runs:
                plan.logger = OmegaConf.to_container(cfg.logger, resolve=True)
            files = {role: a.sha256 for role, a in run.artifacts.items() if a.file is not None}
            key = f"{name}-s{seed}"
            if fingerprint is not None:
                key = hash_of(identity(config, data_of(config), makers | files))
            hashes[name, seed] = key
            if key not in plan.runs:
                plan.runs[key] = PlannedRun(name, seed, own, config, key if fingerprint else "", makers)
        key = hashes[name, seed]
        if cell is not None and cell not in plan.runs[key].cells:
            plan.runs[key].cells.append(cell)
        return key

    for cell in table.cells:
        place = f"{cell.row} / {cell.column}"
        outside = cell.row not in (at.rows or table.rows) or cell.column not in (at.columns or table.columns)
        if not at.runnable or cell.why:
            plan.cells.append(PlannedCell(cell, NOT_RUNNABLE, cell.why or at.why, {}))
        elif outside:
            plan.cells.append(PlannedCell(cell, NOT_AT_THIS_SCALE, "", {}))
        elif wanted is not None and (cell.row, cell.column) not in wanted:
            plan.cells.append(PlannedCell(cell, NOT_ASKED_FOR, "", {}))
        else:
            reduction(cell.value, table.metric)  # a function that is not there is said before anything is run
            runs = {seed: [add(name, seed, place) for name in cell.runs] for seed in (seeds or at.seeds)}
            plan.cells.append(PlannedCell(cell, "", "", runs))
    return plan


def _wanted(table: Table, only: Sequence[str] | None) -> set[tuple[str, str]] | None:
    """The cells that `only` names."""
    if not only:
        return None
    places = [(cell.row, cell.column) for cell in table.cells]
    found: set[tuple[str, str]] = set()
    for name in only:
        some = {(row, column) for row, column in places if name in (f"{row}/{column}", row, column)}
        if not some:
            raise unknown(f"cell of {table.key}", name, [f"{row}/{column}" for row, column in places])
        found |= some
    return found


def _last_of_each(overrides: Iterable[str]) -> list[str]:
    """The overrides without those that come again later in the same way: Hydra refuses two choices of one group.

    >>> _last_of_each(["optimizer=sgd", "+a.b=1", "optimizer=adam", "a.b=2"])
    ['+a.b=1', 'optimizer=adam', 'a.b=2']
    """
    overrides = list(overrides)
    last = {override.partition("=")[0]: i for i, override in enumerate(overrides)}
    return [overrides[i] for i in sorted(last.values())]


def hydra_list(values: Iterable[str]) -> str:
    """Strings as a list in Hydra's override grammar.

    >>> hydra_list(["a=1", "b=it's"])
    "['a=1','b=it\\\\'s']"
    """
    return "[" + ",".join(quoted_value(value) for value in values) + "]"


def quoted_value(value: str) -> str:
    """A string in Hydra's single quotes. Backslashes count there only before a quote or the end."""
    return "'" + re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'") + "'"
