"""Around Hydra's composition: the overrides that resume a run, and its errors in words that say what to do."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from regbench.errors import UserError, unknown
from regbench.paths import configs_dir

RESUME = "resume="
HINTS = {  # group → what to say where a config of it is not found
    "backbone": "A timm model is backbone=timm backbone.model_name=<name>.",
    "hydra/launcher": "The others come with pip install 'regbench[joblib]', 'regbench[ray]' and 'regbench[slurm]' "
    "(submitit_slurm, submitit_local).",
    "hydra/sweeper": "Optuna's comes with pip install 'regbench[optuna]'.",
}


def compose_config(overrides: list[str]) -> DictConfig:
    """The configuration of `train.py <overrides>`, without running it. Within a run of Hydra it has its search path."""
    if GlobalHydra.instance().is_initialized():
        loader = GlobalHydra.instance().config_loader()
        cfg = loader.load_configuration("train", overrides, RunMode.RUN, from_shell=False)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg
    with initialize_config_dir(config_dir=str(configs_dir()), version_base="1.3"):
        return compose(config_name="train", overrides=overrides)


def build(node: DictConfig, **options: Any) -> Any:
    """Hydra's `instantiate`, with a UserError of what it builds as itself, and any other failure as one."""
    try:
        return instantiate(node, **options)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(f"{node.get('_target_', 'A config node')} can't be built: {error}") from error


def overrides_to_resume(argv: list[str]) -> list[str]:
    """Replaces `resume=<run folder>` by that run's own overrides, folder and last checkpoint.

    Overrides beside it come after the run's own, e.g. `resume=<run folder> trainer.max_epochs=20`.

    Raises:
        UserError: the folder is no run folder, or the run has no checkpoint yet.
    """
    wanted = [a for a in argv if a.startswith(RESUME) and a != f"{RESUME}null"]
    if not wanted:
        return argv
    folder = Path(wanted[-1].removeprefix(RESUME).strip("'\""))
    saved, last = folder / ".hydra" / "overrides.yaml", folder / "checkpoints" / "last.ckpt"
    if not saved.is_file():
        raise UserError(f"resume={folder} is no run folder: it has no .hydra/overrides.yaml.")
    if not last.is_file():
        raise UserError(
            f"The run in {folder} has no checkpoint: it stopped before its first epoch ended. Start it anew."
        )
    own = [
        o for o in OmegaConf.to_container(OmegaConf.load(saved)) if not o.startswith((RESUME, "ckpt_path="))
    ]
    new = [a for a in argv if a not in wanted]
    return [*own, *new, f"{RESUME}'{folder}'", f"ckpt_path='{last}'", f"hydra.run.dir='{folder}'"]


def explain(error: HydraException | OmegaConfBaseException, argv: list[str]) -> UserError:
    """A composition error as a UserError that names the nearest options."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        hint = HINTS.get(group, "")
        return unknown(group, name, [o for o in error.options if not o.startswith("_")], hint)
    key = re.search(
        r"Could not (?:override|append to config|delete from config)[^'\"]*['\"]([\w.@/]+)", str(error)
    )
    if key is not None:
        keys = _known_keys([a for a in argv if a.lstrip("+~").partition("=")[0] != key[1]])
        return unknown("option", key[1], keys, "`+key=value` adds one.") if keys else UserError(str(error))
    return UserError(str(error).replace("\n", " "))


def _known_keys(argv: list[str]) -> list[str]:
    """Keys of the configuration that `argv` would give, of the groups chosen in it as far as they compose."""
    GlobalHydra.instance().clear()
    overrides = [a for a in argv if "=" in a and not a.startswith("-")]
    try:
        config = compose_config([o.input_line for o in OverridesParser.create().parse_overrides(overrides)])
    except (HydraException, OmegaConfBaseException):
        return []
    return [*map(str, config), *flat(OmegaConf.to_container(config, resolve=False))]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one with dotted keys.

    >>> flat({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    out = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
