"""What makes a run itself: the part of a resolved configuration that can change its numbers, and a hash of it.

Two configurations with the same identity are one run, whoever asks for it: tables share it, and it is never run twice.
"""

import ast
import hashlib
import json
from collections.abc import Container, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from regbench import registry, seeding, stacking
from regbench.composing import flat

# What `training.run` reads of a configuration. Other keys (`run_name`, `runs_dir`, an experiment's tables of
# values) only lead to these, or say where things lie and what is shown.
PARTS = (
    "dataset",
    "backbone",
    "optimizer",
    "scheduler",
    "regularizer",
    "accelerator",
    "trainer",
    "checkpoint",
    "callbacks",
)
HARMLESS = (  # keys in those parts, with all below them, that change no number, or only through the data's content
    "dataset.root",
    "dataset.load",
    "dataset.fields",
    "dataset.workers",
    "dataset.eval_batch_size",
    "dataset.shape",
    "accelerator.name",
    "callbacks.lpips.weights",
    "trainer.log_every_n_steps",
)
# Keys that were added after runs had been made, at the value that leaves a run as it was without them: a run that has
# this value keeps its hash.
NEUTRAL: dict[str, Any] = {
    "callbacks.truncation.latency": 0,
    "dataset.colour": False,
    "dataset.labelled": None,
    "dataset.unlabelled.ratio": 7,
    "dataset.unlabelled.weak": None,
    "dataset.unlabelled.strong.randaugment.n": 2,
    "dataset.unlabelled.strong.randaugment.m": 10,
    "dataset.unlabelled.strong.cutout": None,
    "dataset.noise.kind": None,
    "dataset.noise.rate": 0.0,
    "dataset.noise.keep_true": False,
    "dataset.noise.exact": False,
    "dataset.noise.class_map": None,
    "dataset.noise.validation": True,
    "dataset.train": "Train400",
}


def resolve(cfg: DictConfig, leave_out: Container[str] = ()) -> dict[str, Any]:
    """The configuration as plain values, interpolations resolved; several times as fast as OmegaConf's own way, which
    visits every node: here only the interpolated ones are asked for.

    Args:
        leave_out: keys at the top that are not wanted.
    """

    def walk(raw: Any, place: tuple[str | int, ...]) -> Any:
        if isinstance(raw, dict):
            return {name: walk(value, (*place, name)) for name, value in raw.items()}
        if isinstance(raw, list):
            return [walk(value, (*place, i)) for i, value in enumerate(raw)]
        if isinstance(raw, str) and "${" in raw:
            value: Any = cfg
            for step in place:
                value = value[step]
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        return raw

    raw = OmegaConf.to_container(cfg, resolve=False)
    return {name: walk(value, (name,)) for name, value in raw.items() if name not in leave_out}


def identity(config: Mapping[str, Any], data: str, artifacts: Mapping[str, str]) -> dict[str, Any]:
    """What is hashed, as plain values.

    Args:
        config: a resolved configuration.
        data: fingerprint of the data's content.
        artifacts: role → hash of what the run starts from.
    """
    values = flat({part: config[part] for part in PARTS if config.get(part) is not None})
    values = {
        key: value
        for key, value in values.items()
        if not any(key == harmless or key.startswith(f"{harmless}.") for harmless in HARMLESS)
    }
    for key, neutral in NEUTRAL.items():
        if key in values and values[key] == neutral:
            del values[key]
    entry = registry.find(config["regularizer"]["name"])
    versions = {"method": entry.version, "family": registry.family_version(entry)}
    if stack := stacking.with_defaults(config.get("stack", ())):
        values["stack"] = list(stack.items())
        versions["stack"] = {slug: registry.find(slug).version for slug in stack}
    return {
        "config": values,
        "seeds": seeding.streams(config["seed"], config["seeds"]),
        "data": data,
        "artifacts": dict(artifacts),
        "versions": versions,
    }


def hash_of(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits: the name of the run's folder.

    >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}), hash_of({"a": 1}) == hash_of({"a": 1.0})
    (True, False)
    """
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_fingerprint(config: Mapping[str, Any]) -> str:
    """A hash of the code that makes a run's numbers: shared code, the families' bases, the files of its methods, and
    those of its measures.

    It is of the syntax trees without docstrings, so that comments, layout and documentation don't count.

    Args:
        config: the run's configuration; of it `regularizer.name`, `stack` and `callbacks` are looked at.
    """
    callbacks = (config.get("callbacks") or {}).values()
    targets = sorted({str(node.get("_target_", "")) for node in callbacks})
    return _code_fingerprint(
        (config["regularizer"]["name"], *stacking.read_stack(config.get("stack") or ())),
        tuple(target for target in targets if target.startswith("regbench.measures.")),
    )


@cache
def _code_fingerprint(slugs: tuple[str, ...], measures: tuple[str, ...]) -> str:
    root = Path(__file__).parent
    files = [root / name for name in ("training.py", "callbacks.py", "schedules.py", "seeding.py")]
    for folder in ("functional", "data", "backbones", "metrics", "solvers"):
        files += (root / folder).rglob("*.py")
    files += [root / "measures" / f"{target.split('.')[2]}.py" for target in measures]
    files.append(root / "regularizers" / "base.py")
    files.append(root / "regularizers" / "classification" / "base.py")  # other families measure as it does
    for entry in map(registry.find, slugs):
        family = entry.path.parent.name  # a plug-in's method may belong to a family of RegBench's
        files += [root / "regularizers" / family / "base.py", entry.path.parent / "base.py", entry.path]
        package = entry.path.parents[2]
        if package != root:  # a plug-in's own parts
            files += (
                path
                for path in package.rglob("*.py")
                if "regularizers" not in path.relative_to(package).parts
            )
    digest = hashlib.sha256()
    for path in sorted(set(files), key=str):
        if path.is_file():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list) and body and _is_docstring(body[0]):
                    node.body = body[1:] or [ast.Pass()]
            digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
