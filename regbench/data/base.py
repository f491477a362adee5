"""What training asks of its data, whatever they are."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from regbench.data import label_noise
from regbench.errors import UserError


class DataModule(pl.LightningDataModule):
    """The loaders of one dataset. Files are read when the first loader or attribute that needs them is asked for.

    A subclass has `check`, `sets` (with train, val, test), `shape`, `class_names` (empty where there are no classes),
    `describe`, and the three `…_loader(device, rank, world)`.

    Args:
        node: a config of the group `dataset`.
        seeds: stream → seed (`regbench.seeding.streams`).
    """

    def __init__(self, node: Mapping[str, Any] | DictConfig, seeds: Mapping[str, int]):
        super().__init__()
        self.node = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
        self.seeds = dict(seeds)

    def prepare_data(self) -> None:
        """Lightning calls this on one process before the others go on: downloads happen once."""
        _ = self.sets

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def clean_labels(self) -> Tensor | None:
        """The true classes int64 (N,) of the training samples where labels are wrong and the truth is known, else None.

        For measuring: batches hold the labels that training sees.
        """
        return self.sets.train.clean

    # -- label noise -----------------------------------------------------------------------------------------

    @property
    def noise(self) -> dict[str, Any] | None:
        """The config `dataset.noise` where it puts noise on labels, else None. Raises UserError for mistakes in it."""
        noise = self.node.get("noise")
        if noise is None:
            return None
        label_noise.check(noise)
        return noise if noise["kind"] is not None else None

    def with_noise(
        self, train: Any, val: Any, classes: int, images: Mapping[str, Any] | None = None
    ) -> tuple[Any, Any, str]:
        """The splits with noisy labels, which keep the true ones as `clean`, and a note of how many are wrong.

        Args:
            train, val: dataclasses with `labels` and `clean`; val None where there is none.
            images: "train" and "val" → the images, for noise that depends on them.
        """
        if train.clean is not None:
            raise UserError("dataset.noise puts noise on true labels; this set's labels are noisy already.")

        def noisy(name: str, split: Any) -> Any:
            labels = label_noise.noisy_labels(
                split.labels, classes, self.noise, self.seeds["noise"], name, (images or {}).get(name)
            )
            return replace(split, labels=labels, clean=split.labels)

        train = noisy("train", train)
        if val is not None and self.noise["validation"]:
            val = noisy("val", val)
        wrong = (train.labels != train.clean).double().mean()
        return train, val, f"{wrong:.1%} of the training labels are wrong ({self.noise['kind']} noise)."

    # -- Lightning -------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Iterable:
        return self.train_loader(*self._place())

    def val_dataloader(self) -> Iterable:
        return self.val_loader(*self._place()) or []

    def test_dataloader(self) -> Iterable:
        return self.test_loader(*self._place())

    def _place(self) -> tuple[torch.device, int, int]:
        if self.trainer is None:
            return torch.device("cpu"), 0, 1
        return self.trainer.strategy.root_device, self.trainer.global_rank, self.trainer.world_size
