"""Labelled points: two annuli, and image sets with each image as a vector."""

import math
from functools import cached_property
from typing import Any

import torch
from hydra.utils import get_object
from torch import Tensor

from regbench import seeding
from regbench.data.files import missing
from regbench.data.samples import SampleDataModule, Samples, SampleSets
from regbench.data.sets import ImageSets, Split, fingerprint, in_memory, split_off
from regbench.errors import UserError
from regbench.paths import data_root


def annuli(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (count, 2) and labels (count,), alternately of class 0, radius U(0, 1/2), and 1, radius U(1, 3/2).

    Angles are uniform.
    """
    label = torch.arange(count) % 2
    radius = label + 0.5 * torch.rand(count, generator=generator)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label


def load_annuli(
    root: str | None = None, *, train: int = 1000, val: int = 500, test: int = 1000, seed: int = 0
) -> SampleSets:
    """A disc and an annulus around it, in the plane. `root` is not used; the seed fixes the points.

    Args:
        train, val, test: numbers of points.
    """
    if min(train, val, test) < 2:
        raise UserError("dataset.load.train, dataset.load.val and dataset.load.test are at least 2 points.")
    splits = {}
    for name, count in (("train", train), ("val", val), ("test", test)):
        point, label = annuli(count, seeding.generator(seed, "annuli", name))
        splits[name] = Samples({"point": point, "label": label})
    return SampleSets(
        **splits,
        shape=(2,),
        outputs=2,
        fingerprint=fingerprint("annuli", f"{train} {val} {test}"),
        class_names=["inner", "outer"],
    )


def load_mnist(root: str | None) -> ImageSets:
    """MNIST, 60,000 + 10,000 grey images of 28 × 28, from the four files of LeCun et al. under `root`/MNIST/raw."""
    from torchvision.datasets import MNIST

    folder = data_root(root)
    try:
        parts = [MNIST(folder, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        layout = "torchvision's folder MNIST/raw with train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        raise missing(
            "MNIST", folder, [layout + "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"]
        ) from None
    train, test = (Split(part.data[:, None], part.targets.long()) for part in parts)
    return in_memory(train, test, [str(digit) for digit in range(10)])


class FlattenedImages(SampleDataModule):
    """An image set whose images are points: pixels in [0, 1] as one vector, without augmentation.

    `load` gives the image set. Where it has no validation split, `val_fraction` of each class is held out; 0: none.
    """

    @cached_property
    def sets(self) -> SampleSets:
        self.check()
        options = dict(self.node["load"])
        images = get_object(options.pop("_target_"))(self.node.get("root"), **options)
        train, val = images.train, images.val
        self._held_out = val is None and bool(self.node["val_fraction"])
        if self._held_out:
            train, val = split_off(train, self.node["val_fraction"], "validation")
        if (size := self.node.get("batch_size")) is not None and size > len(train):
            raise UserError(
                f"dataset.batch_size={size} is more than the {len(train)} training samples. Take a smaller batch."
            )
        train, val, test = (
            split and Samples({"point": split.images.flatten(1).float() / 255, "label": split.labels})
            for split in (train, val, images.test)
        )
        return SampleSets(
            train,
            val,
            test,
            shape=tuple(train.fields["point"].shape[1:]),
            outputs=len(images.class_names),
            fingerprint=images.fingerprint,
            class_names=images.class_names,
            notes=images.notes,
        )

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        if self._held_out:
            share = f"{self.node['val_fraction']:g}"
            described["validation"] = f"{share} of each class, held out of train, whatever the seed"
        return described
