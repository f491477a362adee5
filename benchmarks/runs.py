"""Runs of RegBench as the benchmarks need them: train.py's own path, without a terminal or W&B."""

import tempfile
from pathlib import Path

import torch
from omegaconf import DictConfig

import clock
from regbench import backbones, seeding, training
from regbench.composing import compose_config
from regbench.data.module import ImageDataModule


def config(
    backbone: str, dataset: str, *, epochs: int, steps: int | None, extra: list[str] = ()
) -> DictConfig:
    """Training on every training image with batch 128, no augmentation, no validation; `steps` of each epoch."""
    limits = [] if steps is None else [f"trainer.limit_train_batches={steps}"]
    return compose_config(
        ["regularizer=none", f"backbone={backbone}", f"dataset={dataset}", "dataset.batch_size=128", "logger=none",
         "dataset.augment.flip=false", "dataset.augment.crop_padding=0", "dataset.val_fraction=0", "progress=none",
         "checkpoint.select=last", "trainer.limit_test_batches=1", f"trainer.max_epochs={epochs}", *limits,
         "+callbacks.clock={_target_: clock.Clock}", *extra]
    )  # fmt: skip


def data_and_network(cfg: DictConfig) -> tuple[ImageDataModule, torch.nn.Module]:
    """The configuration's data, read, and its network, for the bare loop."""
    data = ImageDataModule(cfg.dataset, seeding.streams(0))
    data.prepare_data()
    network = backbones.build(dict(cfg.backbone), shape=data.shape, num_classes=data.num_classes)
    return data, network.to(memory_format=torch.channels_last) if network.channels_last else network


def train_run(cfg: DictConfig) -> list[float]:
    """Trains as train.py does; the time at the start, after each step, and after the last epoch's checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        training.run(cfg, Path(folder))
    return list(clock.times)
