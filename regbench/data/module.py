"""`ImageDataModule`: the config of a set of images made into loaders."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from hydra.utils import get_class, get_object
from omegaconf import DictConfig

from regbench.data.augment import Augment, apply, draw, normalization
from regbench.data.base import DataModule
from regbench.data.loaders import (
    EpochPlan,
    EvalLoader,
    Loader,
    RepeatedPlan,
    SemiSupervisedLoader,
    TrainLoader,
    resized,
)
from regbench.data.sets import (
    ImageSets,
    Split,
    balanced_positions,
    balanced_subset,
    channel_statistics,
    split_off,
)
from regbench.data.streaming import EvalStream, TrainStream, sample_images
from regbench.errors import UserError

STATISTICS_SAMPLE = 1000  # images that mean and std are computed from where a set is too large for memory


class ImageDataModule(DataModule):
    """The loaders of one set of images.

    Args:
        node: a config of the group `dataset` (see `configs/dataset/_base.yaml` for every key).
        seeds: stream → seed (`regbench.seeding.streams`). "order" fixes the order of the training batches and their
            augmentation, "noise" the label noise. The splits never depend on a seed.

    Attributes: num_classes, shape (C, H, W) of a batch's images, class_names. Sets in memory keep their own
    size there; their batches are resized to `image_size` on the device.
    """

    def __init__(self, node: Mapping[str, Any] | DictConfig, seeds: Mapping[str, int]):
        super().__init__(node, seeds)
        self._on_device: dict[tuple[str, torch.device], Split] = {}

    # -- checks ----------------------------------------------------------------------------------------------

    def check(self, world: int = 1) -> None:
        """Raises UserError for mistakes in the config that can be seen before any data is read."""
        node = self.node
        for key in ("batch_size", "eval_batch_size", "train_size", "labelled", "workers", "image_size"):
            least = 0 if key == "workers" else 1
            value = node.get(key)
            if value is None and key in ("train_size", "labelled", "workers", "image_size"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"dataset.{key}={value}: it is a whole number, {least} or more.")
        fraction = node["val_fraction"]
        if not isinstance(fraction, int | float) or not 0 <= fraction < 1:
            raise UserError(
                f"dataset.val_fraction={fraction}: it lies in [0, 1); 0 means no validation split."
            )
        if node["batch_size"] % world:
            raise UserError(
                f"dataset.batch_size={node['batch_size']} is the batch of all {world} processes together and "
                f"does not divide into {world} equal parts. Take a multiple of {world}."
            )
        Augment.from_config(node.get("augment"))
        _ = self.noise  # checks its config
        if node.get("labelled") is not None:
            ratio = node["unlabelled"]["ratio"]
            if not isinstance(ratio, int) or isinstance(ratio, bool) or ratio < 1:
                raise UserError(f"dataset.unlabelled.ratio={ratio}: it is a whole number, 1 or more.")
            for view in ("weak", "strong"):
                self._view(view, (1, 1))
        if (node.get("mean") is None) != (node.get("std") is None):
            raise UserError("dataset.mean and dataset.std go together: give both, or leave both null.")
        if node.get("std") is not None and min(node["std"]) <= 0:
            raise UserError(f"dataset.std={node['std']}: standard deviations are positive.")

    def _check_loaded(self, train: Split, sets: ImageSets) -> None:
        node, classes = self.node, len(sets.class_names)
        if node.get("num_classes") not in (None, classes):
            raise UserError(f"dataset.num_classes={node['num_classes']}, but the data has {classes} classes.")
        for name in ("train", "val", "test"):
            split = getattr(sets, name)
            if split is not None and (int(split.labels.min()) < 0 or int(split.labels.max()) >= classes):
                raise UserError(
                    f"The {name} split has labels outside 0 … {classes - 1}, the classes that it names."
                )
        if node["batch_size"] > len(train):
            raise UserError(
                f"dataset.batch_size={node['batch_size']} is more than the {len(train)} training images "
                "(after val_fraction and train_size). Take a smaller batch."
            )

    def _view(self, name: str, size: tuple[int, int]) -> Augment:
        """The augmentation of a view of unlabelled images of this size (H, W). Raises UserError."""
        own = dict(self.node["unlabelled"][name] or {})
        if name == "strong" and own.get("cutout", 0) is None:
            own["cutout"] = min(size) // 2
        try:
            return Augment.from_config({**(self.node.get("augment") or {}), **own})
        except UserError as error:
            raise UserError(
                f"dataset.unlabelled.{name} overrides dataset.augment, and then: {error}"
            ) from error

    # -- data ------------------------------------------------------------------------------------------------

    @cached_property
    def sets(self) -> ImageSets:
        """The splits as they are used: validation held out, training cut to `train_size`. Read once."""
        self.check()
        node = self.node
        options = dict(node["load"])
        sets = get_object(options.pop("_target_"))(node.get("root"), **options)
        train, val = sets.train, sets.val
        self._validation = "the set's own"
        if node["val_fraction"] == 0:
            val, self._validation = None, "none"
        elif val is None:
            train, val = split_off(train, node["val_fraction"], "validation")
            self._validation = f"{node['val_fraction']:g} of each class, held out of train, whatever the seed"
        size = node.get("train_size")
        if size is not None:
            if not len(sets.class_names) <= size <= len(train):
                raise UserError(
                    f"dataset.train_size={size}: it lies between the number of classes "
                    f"({len(sets.class_names)}) and that of the training images "
                    f"({len(train)} after val_fraction)."
                )
            train = balanced_subset(train, size)
        self._check_loaded(train, sets)
        notes, labelled = sets.notes, node.get("labelled")
        if self.noise is not None:
            images = {
                name: split.images for name, split in (("train", train), ("val", val)) if split is not None
            }
            train, val, note = self.with_noise(train, val, len(sets.class_names), images)
            notes = f"{notes} {note}".strip()
        if labelled is not None:
            self._check_labelled(train, len(sets.class_names))
            notes = f"{notes} Of {len(train)} training images {labelled} keep their labels.".strip()
        return ImageSets(train, sets.test, val, sets.class_names, sets.fingerprint, notes)

    def _check_labelled(self, train: Split, classes: int) -> None:
        labelled, step = self.node["labelled"], self.node["unlabelled"]["ratio"] * self.node["batch_size"]
        if train.streams:
            raise UserError("dataset.labelled needs a set that is held in memory; this one is streamed.")
        if not classes <= labelled < len(train):
            raise UserError(
                f"dataset.labelled={labelled}: at least one image of each of the {classes} classes, and fewer than "
                f"the {len(train)} training images (after val_fraction and train_size)."
            )
        if len(train) - labelled < step:
            raise UserError(
                f"A step takes dataset.unlabelled.ratio × dataset.batch_size = {step} unlabelled images, but there "
                f"are {len(train) - labelled}. Take a smaller batch or ratio, or fewer labels."
            )

    @property
    def class_names(self) -> list[str]:
        return self.sets.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        train, size = self.sets.train, self.node.get("image_size")
        if size is None:
            return tuple(train.images.shape[1:])
        return (3 if train.streams else train.images.shape[1], size, size)

    @cached_property
    def mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel: the config's, else those of the training split."""
        mean, std, channels = self.node.get("mean"), self.node.get("std"), self.shape[0]
        if mean is None:
            train = self.sets.train
            if train.streams:
                return channel_statistics(sample_images(train, self.node["image_size"], STATISTICS_SAMPLE))
            return channel_statistics(train.images)
        if len(mean) != channels or len(std) != channels:
            raise UserError(
                f"dataset.mean and dataset.std need one number for each of the {channels} channels."
            )
        return list(mean), list(std)

    # -- loaders ---------------------------------------------------------------------------------------------

    def train_loader(self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> Loader:
        """Training batches of this rank: `batch_size` / `world` of each global batch."""
        self.check(world)
        node, train = self.node, self._split("train", device)
        augment = Augment.from_config(node.get("augment"))
        height, width = size = self.shape[1:]
        labelled = node.get("labelled")
        views = [] if labelled is None else [self._view(name, size) for name in ("weak", "strong")]
        for augmentation in (augment, *views):
            if augmentation.crop_mode == "reflect" and augmentation.crop_padding >= min(height, width):
                raise UserError(
                    f"dataset.augment.crop_padding={augmentation.crop_padding}: images of {height} × {width} have "
                    f"only {min(height, width) - 1} pixels to reflect."
                )
        place = (self.seeds["order"], rank, world)
        scale_bias = normalization(*self.mean_std, device)
        if labelled is not None:
            count, step = len(train) - labelled, node["unlabelled"]["ratio"] * node["batch_size"]
            weak, strong = (
                EpochPlan(count, step, view, size, *place, name=f"unlabelled {name} ")
                for name, view in zip(("weak", "strong"), views, strict=True)
            )
            plan = RepeatedPlan(
                labelled, node["batch_size"], augment, size, *place, name="labelled ", batches=weak.batches
            )
            positions = balanced_positions(self.sets.train.labels, labelled)
            return SemiSupervisedLoader(train, positions, (plan, weak, strong), scale_bias)
        plan = EpochPlan(len(train), node["batch_size"], augment, size, *place)
        if train.streams:
            return TrainStream(
                train, plan, scale_bias, node["image_size"], node["workers"], torch.device(device)
            )
        return TrainLoader(train, plan, scale_bias)

    def training_view(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Training images at `index` (B,), freshly augmented and normalised: float32 (B, C, H, W), on index's device.

        For methods that choose their own batches from a set in memory.

        Args:
            generator: on the CPU; gives the augmentation's draws.
        """
        if self.sets.train.streams:
            raise UserError("Views of chosen training images need a set in memory; this one is streamed.")
        size, device = self.shape[1:], index.device
        augment = Augment.from_config(self.node.get("augment"))
        draws = draw(augment, len(index), size, generator)
        images = resized(self._split("train", device).images.index_select(0, index), size)
        draws = {name: values.to(device) for name, values in draws.items()}
        return apply(images, augment, draws, *normalization(*self.mean_std, device))

    def plain_train_loader(self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> Loader:
        """All training images once over all ranks, in order and not augmented, with the labels that training sees."""
        return self._eval_loader("train", device, rank, world)

    def val_loader(self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> Loader | None:
        """All validation images once over all ranks; None where there is no validation split."""
        return None if self.sets.val is None else self._eval_loader("val", device, rank, world)

    def test_loader(self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> Loader:
        """All test images once over all ranks."""
        return self._eval_loader("test", device, rank, world)

    def _eval_loader(self, name: str, device: torch.device | str, rank: int, world: int) -> Loader:
        self.check(world)
        node, split = self.node, self._split(name, device)
        if len(split) < world:
            raise UserError(f"The {name} split has {len(split)} images, fewer than the {world} processes.")
        scale_bias = normalization(*self.mean_std, device)
        if split.streams:
            size, workers, device = node["image_size"], node["workers"], torch.device(device)
            return EvalStream(split, node["eval_batch_size"], scale_bias, size, workers, device, rank, world)
        return EvalLoader(split, node["eval_batch_size"], scale_bias, rank, world, self.shape[1:])

    def _split(self, name: str, device: torch.device | str) -> Split:
        """The split with its tensors on the device; copied there once."""
        split = getattr(self.sets, name)
        if split.streams:
            return Split(split.images, split.labels)
        key = (name, torch.device(device))
        if key not in self._on_device:
            self._on_device[key] = Split(split.images.to(device).contiguous(), split.labels.to(device))
        return self._on_device[key]

    def describe(self) -> dict[str, Any]:
        """What a result must say of its data: sizes, splits, statistics, fingerprint of the content."""
        sets, (mean, std) = self.sets, self.mean_std
        return {
            "name": self.node.get("name"),
            "train": len(sets.train),
            "val": 0 if sets.val is None else len(sets.val),
            "test": len(sets.test),
            "shape": self.shape,
            "num_classes": self.num_classes,
            "validation": self._validation,
            "notes": sets.notes,
            "mean": mean,
            "std": std,
            "streams": sets.train.streams,
            "fingerprint": sets.fingerprint,
        }


def data_module(dataset: Mapping[str, Any], seeds: Mapping[str, int]) -> DataModule:
    """The data module of a resolved config of the group `dataset`, which names its class where it is not of images."""
    cls = ImageDataModule if (name := dataset.get("datamodule")) is None else get_class(name)
    return cls(dataset, seeds)
