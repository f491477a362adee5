"""What a run starts from: trained networks that other runs make, or checkpoints from elsewhere.

A configuration's `artifacts` maps a role (the method says which it has) to {overrides: [...]}, the overrides
of the run that makes it, or to {file: ..., sha256: ...}. Among the overrides `<key>=same` takes a part of the
configuration, e.g. dataset, from the run that asks for it. A run is made once in a folder of runs, whoever asks for it.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from regbench.composing import build, compose_config
from regbench.errors import UserError
from regbench.fingerprints import fingerprint_of
from regbench.identity import hash_of, identity, resolve
from regbench.runs import RunFolder

log = logging.getLogger("regbench")

Network = TypeVar("Network")


def keyword(role: str) -> str:
    """The argument of a method's constructor for a role.

    >>> keyword("teacher"), keyword("model_*")
    ('teacher', 'models')
    """
    return f"{role.removesuffix('_*')}s" if role.endswith("_*") else role


def arguments(roles: Sequence[str], networks: Mapping[str, Network]) -> dict[str, Network | list[Network]]:
    """The networks of some roles as keyword arguments: those of `model_*`, that is model_1, model_2 …, as one list.

    >>> arguments(("start", "model_*"), {"model_10": "c", "model_2": "b", "model_1": "a", "start": "s"})
    {'start': 's', 'models': ['a', 'b', 'c']}
    """
    found: dict[str, Any] = {}
    for role in roles:
        names = _names(role, networks)
        found[keyword(role)] = (
            [networks[name] for name in names] if role.endswith("_*") else networks[names[0]]
        )
    return found


def check_roles(methods: Mapping[str, Sequence[str]], names: Iterable[str]) -> None:
    """Raises UserError where the configuration's `artifacts` are not those that the methods start from.

    Args:
        methods: slug → its roles.
        names: the keys of `artifacts`.
    """
    names, roles = set(names), {role for own in methods.values() for role in own}
    fitting = {name for role in roles for name in _names(role, names)}
    if fitting != names or any(not _names(role, names) for role in roles):
        raise UserError(
            f"{' with '.join(methods)} starts from {', '.join(sum(methods.values(), ())) or 'no artifact'}, "
            f"but artifacts names {', '.join(sorted(names)) or 'none'}."
        )


def _names(role: str, names: Iterable[str]) -> list[str]:
    """Those of the names that are of a role: model_1, model_2 … of model_*, in the order of their numbers."""
    if not role.endswith("_*"):
        return [name for name in names if name == role]
    numbered = [name for name in names if re.fullmatch(rf"{role[:-1]}\d+", name)]
    return sorted(numbered, key=lambda name: int(name.rpartition("_")[2]))


def obtain(cfg: DictConfig, run: Callable[[DictConfig, Path, Mapping[str, Path]], Any]) -> dict[str, Path]:
    """role → checkpoint, for each artifact of a configuration; a run that is missing is made first, and this is said.

    Before that the run's own method and callbacks are built, so that their mistakes show before anything is trained.

    Args:
        cfg: a composed configuration.
        run: makes a run in a folder, e.g. `regbench.training.run`.

    Raises:
        UserError: a file that is missing or has another checksum.
    """
    found, rehearsed = {}, False
    for role, node in cfg.artifacts.items():
        if node.get("file") is not None:
            found[role] = _checked(role, Path(node.file), node.get("sha256"))
            continue
        if not node.get("overrides"):
            raise UserError(
                f"artifacts.{role} needs overrides (of the run that makes it), or file and sha256 (of a checkpoint)."
            )
        maker = _maker(cfg, node)
        folder = RunFolder(Path(cfg.runs_dir).absolute() / (node.get("run") or _hash(maker)))
        if not rehearsed and folder.result() is None:
            _rehearse(cfg)
            rehearsed = True
        with folder.lock:  # waits where another process is making it
            result = folder.result()
            if result is None:
                log.info("The %s is not there yet: it is trained first, in %s.", role, folder.path)
                if folder.checkpoint():
                    maker.ckpt_path = str(folder.checkpoint())
                run(maker, folder.path, obtain(maker, run))
                result = folder.result()
        found[role] = folder.path / result["tested"][0]
    return found


def _rehearse(cfg: DictConfig) -> None:
    """Builds the method, with untrained networks where it starts from trained ones, and the callbacks.

    Raises:
        UserError: a mistake in their options.
    """
    from regbench.training import build_untrained  # which imports this module

    networks = {
        role: _maker(cfg, node).backbone if node.get("overrides") else cfg.backbone
        for role, node in cfg.artifacts.items()
    }
    build_untrained(cfg, networks)
    for node in cfg.get("callbacks", {}).values():
        build(node)


def _maker(cfg: DictConfig, node: DictConfig) -> DictConfig:
    """The maker's configuration, with the places and the display of the run that asks for it, and what is the same."""
    same = [text.removesuffix("=same") for text in node.overrides if text.endswith("=same")]
    maker = compose_config([text for text in node.overrides if not text.endswith("=same")])
    for key in same:
        OmegaConf.update(maker, key, OmegaConf.select(cfg, key), merge=False)
    maker.runs_dir, maker.progress, maker.debug = cfg.runs_dir, cfg.progress, cfg.debug
    if maker.dataset.root is None:
        maker.dataset.root = cfg.dataset.root
    maker.logger = OmegaConf.create({})  # its W&B run would be a second one in this process
    return maker


def _hash(maker: DictConfig) -> str:
    config = resolve(maker)
    starts_from = {
        role: node.get("sha256") or node.get("run") or _hash(_maker(maker, node))
        for role, node in maker.artifacts.items()
    }
    return hash_of(identity(config, fingerprint_of(config["dataset"]), starts_from))


def _checked(role: str, path: Path, sha256: str | None) -> Path:
    """The file, where its checksum is the one that is asked for."""
    if not path.is_file():
        raise UserError(f"artifacts.{role}.file={path} is no file.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"artifacts.{role}.file={path} has the checksum {found}, not {sha256}. If this is the file that you mean, "
            f"set artifacts.{role}.sha256 to it."
        )
    return path
