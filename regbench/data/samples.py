"""Sets of samples with named fields, for whatever is no labelled image and no graph: points, pairs of numbers,
renderings with their factors, paths of a process. They are held in memory, and generated or read by a `load` function.

A batch is a mapping: each field's rows, and index, int64 (B,), their places in the split.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from hydra.utils import get_object
from torch import Tensor

from regbench.data.augment import Augment
from regbench.data.base import DataModule
from regbench.data.loaders import EpochPlan, Loader, even_batches
from regbench.errors import UserError


@dataclass
class Samples:
    """A split.

    Args:
        fields: name → tensor (N, ...); a batch holds the rows of each.
        hidden: name → tensor (N, ...), for measuring only: no batch holds it. Where labels are wrong, `clean` is the
            true classes int64 (N,).
    """

    fields: dict[str, Tensor]
    hidden: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        sizes = {name: len(values) for name, values in (self.fields | self.hidden).items()}
        if len(set(sizes.values())) != 1:
            raise UserError(f"The fields of a split have as many rows as each other; these have {sizes}.")

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    @property
    def clean(self) -> Tensor | None:
        """The true classes, where labels are wrong."""
        return self.hidden.get("clean")


@dataclass
class SampleSets:
    """What a `load(root, *, …, seed=0)` function returns. Where it generates, `seed` is of the stream "data"; the
    fingerprint is asked for without one.

    Args:
        train, val, test: the splits, of the same fields; val None where there is none.
        shape: of what the network takes, without the batch dimension.
        outputs: numbers that the network gives for a sample: of classes, or of a regression's targets; 0: the method
            says what it gives.
        fingerprint: hash of the content (`regbench.data.sets.fingerprint`); of generated samples, of what they are
            generated from but for the seed.
        class_names: one a class; empty where there are none.
        notes: what a reader of the results should know, in one sentence or none.
    """

    train: Samples
    val: Samples | None
    test: Samples
    shape: tuple[int, ...]
    outputs: int
    fingerprint: str
    class_names: list[str] = field(default_factory=list)
    notes: str = ""


class SampleLoader(Loader):
    """Batches of a split on the device, in the order that each epoch's `plan` gives; without a plan in that of the
    split, each row once over all ranks.
    """

    def __init__(
        self, fields: Mapping[str, Tensor], plan: EpochPlan | None, batch_size: int, rank: int, world: int
    ):
        self.fields, self.plan = fields, plan
        count = len(next(iter(fields.values())))
        self.chunks = even_batches(count, batch_size, rank, world) if plan is None else []
        super().__init__(len(self.chunks) if plan is None else plan.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        device = next(iter(self.fields.values())).device
        for rows in self.chunks if self.plan is None else self.plan.order(epoch):
            rows = rows.to(device)
            yield {name: values[rows] for name, values in self.fields.items()} | {"index": rows}


class SampleDataModule(DataModule):
    """The loaders of one set of samples.

    Args:
        node: a config of the group `dataset` (see `configs/dataset/_samples.yaml` for every key).
        seeds: stream → seed. "data" goes to a `load` function that takes a `seed`, "order" orders the batches.
    """

    def __init__(self, node: Mapping[str, Any], seeds: Mapping[str, int]):
        super().__init__(node, seeds)
        self._on_device: dict[tuple[str, torch.device], dict[str, Tensor]] = {}

    def check(self, world: int = 1) -> None:
        """Raises UserError for mistakes in the config that can be seen before any data is read."""
        for key in ("batch_size", "eval_batch_size"):
            value = self.node.get(key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UserError(
                    f"dataset.{key}={value}: it is a whole number, 1 or more, or null for all samples."
                )
        if (size := self.node.get("batch_size")) is not None and size % world:
            raise UserError(
                f"dataset.batch_size={size} is the batch of all {world} processes together; take a multiple of {world}."
            )

    @cached_property
    def sets(self) -> SampleSets:
        """The splits. Made or read once."""
        self.check()
        options = dict(self.node["load"])
        load = get_object(options.pop("_target_"))
        if "seed" in inspect.signature(load).parameters:
            options["seed"] = self.seeds["data"]
        sets = load(self.node.get("root"), **options)
        size = self.node.get("batch_size")
        if size is not None and size > len(sets.train):
            raise UserError(
                f"dataset.batch_size={size} is more than the {len(sets.train)} training samples. Take a smaller batch."
            )
        return sets

    @property
    def class_names(self) -> list[str]:
        return self.sets.class_names

    @property
    def num_classes(self) -> int:
        return self.sets.outputs

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sets.shape

    # -- loaders ---------------------------------------------------------------------------------------------

    def train_loader(self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> SampleLoader:
        """Shuffled batches; the last, incomplete one is left out. With `batch_size` null all samples in their order."""
        self.check(world)
        fields, size = self._fields("train", device), self.node.get("batch_size")
        if size is None:
            return SampleLoader(fields, None, len(self.sets.train), rank, world)
        plan = EpochPlan(
            len(self.sets.train), size, Augment.from_config(None), (1, 1), self.seeds["order"], rank, world
        )
        return SampleLoader(fields, plan, size, rank, world)

    def plain_train_loader(
        self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
    ) -> SampleLoader:
        """All training samples once over all ranks, in order."""
        return self._eval_loader("train", device, rank, world)

    def val_loader(
        self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
    ) -> SampleLoader | None:
        """All validation samples once over all ranks; None where there are none."""
        return None if self.sets.val is None else self._eval_loader("val", device, rank, world)

    def test_loader(self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> SampleLoader:
        """All test samples once over all ranks."""
        return self._eval_loader("test", device, rank, world)

    def _eval_loader(self, name: str, device: torch.device | str, rank: int, world: int) -> SampleLoader:
        count = len(getattr(self.sets, name))
        return SampleLoader(
            self._fields(name, device), None, self.node.get("eval_batch_size") or count, rank, world
        )

    def _fields(self, name: str, device: torch.device | str) -> dict[str, Tensor]:
        """The fields of a split on the device; copied there once."""
        key = (name, torch.device(device))
        if key not in self._on_device:
            fields = getattr(self.sets, name).fields
            self._on_device[key] = {name: values.to(key[1]) for name, values in fields.items()}
        return self._on_device[key]

    def describe(self) -> dict[str, Any]:
        """What a result must say of its data: sizes, shape, fingerprint of the content."""
        sets = self.sets
        return {
            "name": self.node.get("name"),
            "train": len(sets.train),
            "val": 0 if sets.val is None else len(sets.val),
            "test": len(sets.test),
            "items": "samples",
            "shape": self.shape,
            "num_classes": self.num_classes,
            "validation": "none" if sets.val is None else "the set's own",
            "notes": sets.notes,
            "fingerprint": sets.fingerprint,
        }
