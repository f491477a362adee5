"""What holds for every method in the registry, found there: nothing here names one."""

import inspect
import json

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf

from regbench import catalogue, registry
from regbench.artifacts import keyword
from regbench.composing import compose_config
from regbench.paths import configs_dir
from support import read_result, weights

METHODS = list(registry.entries())
TWO_STEPS = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
             "trainer.limit_test_batches=1", "logger=none", "progress=none"]  # fmt: skip


@pytest.mark.parametrize("slug", METHODS)
def test_two_steps_from_the_default_config_twice(train, slug):
    """Trains, tests with finite metrics, the same seed gives the same bits, and the checkpoint, tested again, the same
    metrics.
    """
    # Hundreds of evaluations for a picture.
    restores = registry.find(slug).task in ("generation", "restoration")
    few = [*TWO_STEPS, "dataset.eval_batch_size=20"] if restores else TWO_STEPS
    folders, results = [], []
    for run_dir in ("first", "again"):
        code, folder = train(f"regularizer={slug}", *few, run_dir=run_dir)
        assert code == 0
        metrics = read_result(folder)["metrics"]
        assert metrics
        assert all(value is not None for value in metrics.values())  # null would be NaN or infinite
        folders.append(folder)
        results.append(metrics)
    assert results[0] == results[1]
    if registry.load(slug).trains:
        first, again = map(weights, folders)
        assert all(torch.equal(first[name], again[name]) for name in first)
        checkpoint = f"ckpt_path={folders[0] / 'checkpoints' / 'last.ckpt'}"  # one epoch: it is the best
        _, tested = train(f"regularizer={slug}", *few, "test_only=true", checkpoint, run_dir="tested")
        assert read_result(tested)["metrics"] == results[0]


@pytest.mark.parametrize("slug", METHODS)
def test_config_and_constructor_have_the_same_hyperparameters(slug):
    config = OmegaConf.to_container(compose_config([f"regularizer={slug}"]).regularizer, resolve=True)
    assert config.pop("name") == slug
    parameters = inspect.signature(registry.load(slug).__init__).parameters.values()
    roles = registry.load(slug).artifacts
    elsewhere = {"stack", *map(keyword, roles)}  # have places of their own in the configuration
    constructor = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    constructor = {name: value for name, value in constructor.items() if name not in elsewhere}
    assert config == json.loads(json.dumps(constructor))  # YAML has no tuples


@pytest.mark.parametrize("slug", METHODS)
def test_every_hyperparameter_is_explained(slug):
    for row in catalogue.hyperparameters(slug):
        assert len(row.meaning) > 10, f"{slug}: {row.name} has no comment in its config"
    entry = registry.find(slug)
    assert entry.claim


@pytest.mark.parametrize(
    "group",
    ["accelerator", "dataset", "backbone", "optimizer", "scheduler", "experiment", "logger", "callbacks"],
)
def test_every_config_of_a_group_composes(group):
    folder = configs_dir() / group
    names = [
        p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml") if p.name[0] != "_"
    ]
    assert names
    for name in names:
        try:
            config = compose_config([f"{group}={name}"])
            OmegaConf.to_container(config, resolve=True)
        except HydraException as error:
            pytest.fail(f"{group}={name}: {error}")
