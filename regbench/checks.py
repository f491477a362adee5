"""What can be seen to be wrong in a configuration before torch is imported or any data is read."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regbench import catalogue, registry
from regbench.errors import UserError, unknown
from regbench.stacking import defaults_of, with_defaults

SELECTIONS = ("last", "best_val", "median_last_10")
PROGRESS = ("auto", "bar", "lines", "none")


def check(cfg: DictConfig) -> None:
    """Raises UserError for the first mistake found in a composed configuration."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"The configuration can't be resolved: {' '.join(str(error).split())}.") from error
    entry = registry.find(cfg.regularizer.name)
    _check_task(entry, cfg)
    with_defaults(values["stack"])
    for name, default in defaults_of(entry.slug).items():
        given = values["regularizer"].get(name, default)
        if isinstance(default, bool) and not isinstance(given, bool):
            raise UserError(f"regularizer.{name}={given} must be true or false.")
    select = cfg.checkpoint.select
    if select not in SELECTIONS:
        raise unknown("checkpoint.select", str(select), SELECTIONS)
    if select == "best_val" and cfg.dataset.get("val_fraction", 1) == 0:
        raise UserError(
            "checkpoint.select=best_val needs validation data, but dataset.val_fraction=0. "
            "Choose checkpoint.select=last or median_last_10, or leave some training data for validation."
        )
    if cfg.checkpoint.mode not in ("max", "min"):
        raise UserError(f"checkpoint.mode={cfg.checkpoint.mode} is neither max nor min.")
    if cfg.progress not in PROGRESS:
        raise unknown("progress", str(cfg.progress), PROGRESS)
    epochs = cfg.trainer.max_epochs
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"trainer.max_epochs={epochs} must be a whole number, at least 1.")
    if select == "best_val" and cfg.trainer.check_val_every_n_epoch > epochs:
        raise UserError(
            "trainer.check_val_every_n_epoch is larger than trainer.max_epochs: nothing to choose by."
        )
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise UserError(f"seed={cfg.seed} must be a whole number, at least 0.")
    if cfg.test_only and not cfg.ckpt_path:
        raise UserError("test_only=true tests the weights of ckpt_path; set ckpt_path=<file>.")
    if cfg.ckpt_path and not Path(cfg.ckpt_path).is_file():
        raise UserError(f"ckpt_path={cfg.ckpt_path} is no file.")
    if not cfg.test_only and cfg.optimizer is not None and cfg.optimizer.get("lr", 1.0) <= 0:
        raise UserError(f"optimizer.lr={cfg.optimizer.lr} must be positive.")


def check_writable(folder: Path) -> None:
    """Raises UserError where the run's folder can't be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The run folder {folder} can't be written ({error.strerror}). Choose another with hydra.run.dir=<folder>."
        ) from error


def _check_task(entry: registry.Entry, cfg: DictConfig) -> None:
    needs, has = registry.TASKS[entry.task], registry.fields_of(cfg.dataset)
    if registry.fits(entry.task, has):
        return
    refused = registry.REFUSES.get(entry.task, ())
    missing = [field for field in needs if field not in has]
    adapters = [key for key, added in registry.ADAPTERS.items() if set(added) & set(missing)]
    fitting = [slug for slug, e in registry.entries().items() if registry.fits(e.task, has)]
    raise UserError(
        f"regularizer={entry.slug} does {entry.task} and needs {', '.join(needs)} of each batch"
        f"{', and no ' + ', '.join(refused) if refused else ''}; "
        f"dataset={cfg.dataset.name} gives {', '.join(has) or 'nothing'}. "
        f"Datasets for this regularizer: {', '.join(catalogue.datasets_with(needs, refused))}"
        f"{''.join(f', with dataset.{key}=<number>' for key in adapters)}. "
        f"Regularizers for this dataset: {', '.join(fitting) or 'none'}."
    )
