"""`regbench compare`: which regularizer helps on my data? Makes an ad-hoc table of the request, for the same sweeper.

The table's rows are the methods' settings, its one column is the validation value that chose the tested weights;
`regbench.tables.ranking` ranks the methods by it. docs/compare.md explains the command.
"""

import hashlib
import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from regbench import registry
from regbench.checks import check
from regbench.errors import UserError, unknown
from regbench.files import write_whole
from regbench.tables.plan import Composer, composer
from regbench.tables.sweep import Request, as_seeds

NAME = "compare"  # of the folder of comparisons, and of their tables' one scale
SEEDS = 5
METRIC = {  # task → what its methods are ranked by: a fraction, higher is better; other tasks have no ranking
    "classification": "val/accuracy",
    "node_classification": "val/accuracy",
    "noisy_labels": "val/accuracy",
    "semi_supervised": "val/accuracy",
}
OWN = ("regularizer", "baseline", "seeds", "name", "reports_dir")
PASSED_ON = ("retries", "rerun", "dry_run", "status", "two_steps", "runs_dir")  # the sweeper's
SAME = (  # for every setting
    "dataset.name",
    "dataset.root",
    "dataset.load",
    "dataset.val_fraction",
    "dataset.train_size",
    "backbone.name",
)


@dataclass(frozen=True)
class Setting:
    """One way to run a method: its row's label, and the overrides beside those that all runs have."""

    method: str
    label: str
    overrides: list[str]


def prepare(argv: Sequence[str]) -> tuple[list[str], Path]:
    """Checks a request and writes its table's file.

    Args:
        argv: what follows `regbench compare`.

    Returns:
        What `regbench reproduce` takes to run the table, and the file of its results.

    Raises:
        UserError: a mistake in the request, before anything is run.
    """
    own, sweeper, overrides = _sorted(argv)
    with composer() as compose:
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        given = _parsed(f"seeds={own.get('seeds', SEEDS)}", parser)
        seeds = as_seeds(own["seeds"] if given.is_sweep_override() else given.value())
        methods, shared, settings = _settings(own, overrides, parser)
        config = _checked(settings, shared, compose)
    baseline = own.get("baseline", "none" if "none" in methods else methods[0])
    if baseline not in methods:
        raise unknown("baseline", baseline, methods, "It is one of the methods that are compared.")
    name = own.get("name") or f"{config.dataset.name}-{_digest([*methods, baseline, *sorted(overrides)])}"
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"name={name}: letters, digits, '_', '-' and '.' make a name; it becomes a file's.")
    folder = Path(own.get("reports_dir", Request.reports_dir)) / NAME
    file = folder / f"{name}.yaml"
    asked = [
        argument for argument in argv if argument not in sweeper and not argument.startswith("reports_dir=")
    ]
    table = _table(
        settings,
        shared,
        seeds or range(SEEDS),
        baseline,
        config,
        " ".join(["regbench compare", *map(shlex.quote, asked)]),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, yaml.safe_dump(table, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise UserError(
            f"The reports folder {folder} can't be written ({error.strerror}); choose another: reports_dir=<folder>."
        ) from error
    return [
        f"table={file}",
        f"scale={NAME}",
        f"reports_dir={folder.parent}",
        *sweeper,
    ], folder / name / NAME / "results.json"


def _sorted(argv: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """compare's own options, the sweeper's and Hydra's arguments, and the overrides."""
    own: dict[str, str] = {}
    sweeper, overrides = [], []
    not_taken = {field.name for field in fields(Request)} - {*OWN, *PASSED_ON, "overrides"}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if key.startswith("-") or not (equals or key.startswith("~")):
            raise UserError(f"regbench compare takes key=value, not '{argument}'.")
        if key in not_taken:
            raise UserError(
                f"regbench compare takes no {key}=; it makes a table of its own (regbench compare --help)."
            )
        if key in OWN:
            own[key] = value
        elif key in PASSED_ON or key.startswith(("hydra/", "hydra.", "+hydra")):
            sweeper.append(argument)
        else:
            overrides.append(argument)
    if "regularizer" not in own:
        raise UserError(
            "Which methods? Give two or more, e.g. regularizer=none,mixup; `regbench list` shows them all."
        )
    return own, sweeper, overrides


def _settings(
    own: dict[str, str], overrides: Sequence[str], parser: OverridesParser
) -> tuple[list[str], list[str], list[Setting]]:
    """The methods, the overrides that all runs have, and the settings: `<method>.<option>=` goes to that method alone,
    and several values, in Hydra's grammar of sweeps, make a setting of each combination.
    """

    def values(argument: str) -> list[str]:
        """The overrides that one stands for."""
        parsed = _parsed(argument, parser)
        if not parsed.is_sweep_override():
            return [argument]
        key = parsed.get_key_element()
        return [f"{key}={value}" for value in parsed.sweep_string_iterator()]

    methods = [chosen.partition("=")[2] for chosen in values(f"regularizer={own['regularizer']}")]
    for method in methods:
        registry.find(method)
    if len(methods) < 2 or len(set(methods)) < len(methods):
        raise UserError(
            f"regularizer={own['regularizer']}: a comparison takes two methods or more, each once, such as "
            "regularizer=none,mixup."
        )
    tasks = {method: registry.find(method).task for method in methods}
    if len(set(tasks.values())) > 1:
        said = ", ".join(f"{method} does {task}" for method, task in tasks.items())
        raise UserError(f"Methods of different tasks can't be compared: {said}.")
    if (task := tasks[methods[0]]) not in METRIC:
        raise UserError(
            f"Methods of {task} have no validation accuracy to be ranked by; tables compare them."
        )

    shared: list[str] = []
    common: list[list[str]] = []
    special: dict[str, list[list[str]]] = {method: [] for method in methods}
    for argument in overrides:
        plain = argument.lstrip("+~")
        method, dot, option = plain.partition("=")[0].partition(".")
        if dot and option and method in registry.entries():
            if method not in methods:
                raise UserError(
                    f"{argument}: {method} is not compared; the methods are {', '.join(methods)}."
                )
            signs = argument[: len(argument) - len(plain)]
            special[method].append(values(f"{signs}regularizer.{plain.removeprefix(f'{method}.')}"))
        elif len(several := values(argument)) > 1:
            common.append(several)
        else:
            shared += several
    settings = []
    for method in methods:
        for chosen in itertools.product(*common, *special[method]):
            said = ", ".join(override.lstrip("+~").removeprefix("regularizer.") for override in chosen)
            label = f"{method} ({said})" if said else method
            settings.append(Setting(method, label, [f"regularizer={method}", *chosen]))
    return methods, shared, settings


def _parsed(argument: str, parser: OverridesParser) -> Override:
    try:
        [parsed] = parser.parse_overrides(
            [argument]
        )  # which, unlike parse_override, can list a group: glob(*)
        return parsed
    except HydraException as error:
        reason = str(error).partition("\nSee ")[0].replace("\n", " ")
        raise UserError(f"{argument} is no override as Hydra reads them: {reason}.") from error


def _checked(settings: Sequence[Setting], shared: Sequence[str], compose: Composer) -> DictConfig:
    """The first setting's configuration, after all are found to be right and to be comparable."""
    configs = [compose.compose([*shared, *setting.overrides]) for setting in settings]
    for setting, config in zip(settings, configs, strict=True):
        if config.dataset.get("val_fraction") == 0:
            raise UserError(
                "dataset.val_fraction=0 leaves no validation images, and methods are ranked on validation. "
                "Leave some, e.g. dataset.val_fraction=0.1."
            )
        check(config)
        for key in SAME:
            first, other = OmegaConf.select(configs[0], key), OmegaConf.select(config, key)
            if first != other:
                raise UserError(
                    f"{settings[0].label} would run with {key}={first}, and {setting.label} with {key}={other}: only "
                    f"the regularizer may differ. Set {key.partition('.')[0]}=… for all of them."
                )
    return configs[0]


def _table(
    settings: Sequence[Setting],
    shared: Sequence[str],
    seeds: Sequence[int],
    baseline: str,
    config: DictConfig,
    command: str,
) -> dict[str, Any]:
    """The table's file, as `regbench.tables.spec` reads it."""
    of_method: dict[str, list[Setting]] = {}
    for setting in settings:
        of_method.setdefault(setting.method, []).append(setting)
    keys = {
        method: [method] if len(own) == 1 else [f"{method}-{i + 1}" for i in range(len(own))]
        for method, own in of_method.items()
    }
    rows = dict(zip(itertools.chain(*keys.values()), settings, strict=True))
    return {
        "title": f"Regularizers on {config.dataset.name}",
        "metric": METRIC[registry.find(baseline).task],
        "unit": "percent",
        "direction": "max",
        "row_title": "setting",
        "rows": {key: setting.label for key, setting in rows.items()},
        "columns": {"validation": "Validation accuracy"},
        "runs": {key: {"overrides": setting.overrides} for key, setting in rows.items()},
        "cells": [
            {
                "row": key,
                "column": "validation",
                "run": key,
                "value": {"function": "regbench.tables.ranking.validation"},
            }
            for key in rows
        ],
        "ranking": {"methods": keys, "baseline": baseline, "command": command},
        "scales": {
            NAME: {
                "about": f"{config.backbone.name}, trainer.max_epochs={config.trainer.max_epochs}.",
                "seeds": list(seeds),
                "overrides": list(shared),
            }
        },
    }


def _digest(request: Sequence[str]) -> str:
    """Names a request, whatever its number of seeds: more seeds add to the same comparison."""
    return hashlib.sha256("\n".join(request).encode()).hexdigest()[:8]
