"""Loaders of image sets too large for memory: worker processes decode and crop, the device augments and
normalises.

What a worker does with an image depends on (seed, epoch, position of the image) alone, so the number of
workers changes nothing but the speed. The interface is that of `loaders.py`.
"""

import math
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regbench import seeding
from regbench.data.augment import apply, normalize
from regbench.data.files import resize_and_crop, to_tensor
from regbench.data.loaders import Batch, EpochPlan, Loader, even_batches
from regbench.data.sets import Split, rank_in_class
from regbench.errors import UserError

EVAL_CROP = 0.875  # evaluation keeps the central 7/8 of the resized image: 224 of 256 pixels


def random_resized_crop(image: Image.Image, size: int, generator: torch.Generator) -> Image.Image:
    """A random window resized to size × size, as in Inception's training (Szegedy et al. 2015,
    arXiv:1409.4842).

    The window covers 8 % to 100 % of the area, with an aspect ratio between 3/4 and 4/3, uniform in its
    logarithm; ten tries, then the largest central window of an allowed ratio.
    """
    width, height = image.size

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    for _ in range(10):
        area = width * height * uniform(0.08, 1.0)
        ratio = math.exp(uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(uniform(0, side + 1)) for side in (width - w, height - h))
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BILINEAR)


class _Decoded(Dataset):
    """Maps a batch of keys (epoch, position) to (uint8 (B, 3, size, size), int64 positions (B,)).

    A picture that can't be decoded gives the text of its UserError instead: after an exception in a worker,
    torch's DataLoader takes five seconds a worker to end.

    Args:
        seed: of the random windows; None means the central crop.
    """

    def __init__(self, split: Split, size: int, seed: int | None):
        self.images, self.size, self.seed = split.images, size, seed

    def __getitem__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor] | str:
        try:
            images = torch.stack([self._one(*key) for key in keys])
        except UserError as error:
            return str(error)
        return images, torch.tensor([position for _, position in keys])

    def _one(self, epoch: int, position: int) -> Tensor:
        image = self.images[position]
        if self.seed is None:
            return to_tensor(resize_and_crop(image, self.size, round(self.size / EVAL_CROP)))
        generator = seeding.generator(self.seed, "window", epoch, position)
        return to_tensor(random_resized_crop(image, self.size, generator))


class _Keys:
    """The sampler: one epoch's keys, batch by batch. The workers outlive the epoch, so keys name it."""

    def __init__(self):
        self.epoch, self.order = 0, []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for positions in self.order:
            yield [(self.epoch, position) for position in positions.tolist()]

    def __len__(self) -> int:
        return len(self.order)


class _Stream(Loader):
    def __init__(
        self, split: Split, size: int, seed: int | None, batches: int, workers: int, device: torch.device
    ):
        super().__init__(batches)
        self.labels, self.device, self.keys = split.labels, device, _Keys()
        self.decoded = DataLoader(
            _Decoded(split, size, seed),
            sampler=self.keys,
            batch_size=None,  # a key of the sampler is a batch already
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else the workers' seeds would come from the global generator
        )

    def run(self, epoch: int, order: list[Tensor] | Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """uint8 images, labels and positions on the device, batch by batch."""
        self.keys.epoch, self.keys.order = epoch, order
        for batch in self.decoded:
            if isinstance(batch, str):
                raise UserError(batch)
            image, index = batch
            yield tuple(t.to(self.device, non_blocking=True) for t in (image, self.labels[index], index))


class TrainStream(_Stream):
    """Shuffled training batches: random windows from the workers, the batch's augmentation on the device."""

    def __init__(
        self, split: Split, plan: EpochPlan, normalization, size: int, workers: int, device: torch.device
    ):
        super().__init__(split, size, plan.seed, plan.batches, workers, device)
        self.plan, self.normalization = plan, normalization

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        draws = {name: values.to(self.device) for name, values in self.plan.draws(epoch).items()}
        for i, (image, label, index) in enumerate(self.run(epoch, self.plan.order(epoch))):
            rows = {name: values[i] for name, values in draws.items()}
            image = apply(image, self.plan.augment, rows, *self.normalization)
            yield {"image": image, "label": label, "index": index}


class EvalStream(_Stream):
    """All samples of a split exactly once over all ranks: resized, central crop, in order."""

    def __init__(
        self,
        split: Split,
        batch_size: int,
        normalization,
        size: int,
        workers: int,
        device: torch.device,
        rank=0,
        world=1,
    ):
        self.chunks = even_batches(len(split), batch_size, rank, world)
        super().__init__(split, size, None, len(self.chunks), workers, device)
        self.normalization = normalization

    def __iter__(self) -> Iterator[Batch]:
        for image, label, index in self.run(0, self.chunks):
            yield {"image": normalize(image, *self.normalization), "label": label, "index": index}


def sample_images(split: Split, size: int, count: int) -> Tensor:
    """uint8 (count or fewer, 3, size, size): central crops of a fixed sample of the split."""
    positions = rank_in_class(torch.zeros(len(split), dtype=torch.int64), "statistics").argsort()[:count]
    sample = _Decoded(split, size, None)[[(0, position) for position in positions.tolist()]]
    if isinstance(sample, str):
        raise UserError(sample)
    return sample[0]
