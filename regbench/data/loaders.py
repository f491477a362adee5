"""Loaders of image sets in memory: finished batches on the device, with no worker process and no loop over
samples.

What both loaders (and those of `streaming.py`) promise:
- a batch is {"image": float32 (B, C, H, W) normalised, "label": int64 (B,), "index": int64 (B,) position in
the split}; - `len(loader)` is the number of batches, the same on every rank;
- `set_epoch(e)` chooses the epoch; without it, each iteration of a training loader is the next epoch;
- `sampler` is the loader itself: Lightning calls `loader.sampler.set_epoch(epoch)` when an epoch starts.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from regbench import seeding
from regbench.data.augment import Augment, apply, draw, normalize
from regbench.data.sets import Split

Batch = dict[str, Tensor]


class Loader:
    """What the loaders share: length, epoch, and the `sampler` that Lightning looks for."""

    epoch = 0
    batch_sampler = None  # Lightning reads it of every loader that has a `sampler`

    def __init__(self, batches: int):
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def sampler(self) -> "Loader":
        return self


class EpochPlan:
    """The order and the augmentation of one rank's share of the training batches.

    All ranks draw the same global batches and take every world-th row, starting at their rank: so any number
    of processes sees the batches that one process sees. The last, incomplete batch is left out.

    Args:
        count: size of the training split; not smaller than `batch_size`.
        batch_size: size of the global batch; a multiple of `world`.
        size: (H, W) of the images.
        seed: the seed of the stream "order".
        name: keeps the draws of several plans of one loader apart.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        augment: Augment,
        size,
        seed: int,
        rank: int,
        world: int,
        name: str = "",
    ):
        self.count, self.batch_size, self.augment, self.size = count, batch_size, augment, size
        self.seed, self.rank, self.world, self.name = seed, rank, world, name
        self.batches = count // batch_size

    def order(self, epoch: int) -> Tensor:
        """int64 (batches, batch_size / world): positions in the training split."""
        order = torch.randperm(self.count, generator=self._generator("order", epoch))
        return self._share(order[: self.batches * self.batch_size])

    def draws(self, epoch: int) -> dict[str, Tensor]:
        """Augmentation draws, each (batches, batch_size / world, ...)."""
        generator = self._generator("augment", epoch)
        draws = draw(self.augment, self.batches * self.batch_size, self.size, generator)
        return {name: self._share(values) for name, values in draws.items()}

    def _generator(self, purpose: str, epoch: int) -> torch.Generator:
        return seeding.generator(self.seed, f"{self.name}{purpose}", epoch)

    def _share(self, values: Tensor) -> Tensor:
        values = values.view(self.batches, self.batch_size, *values.shape[1:])
        return values[:, self.rank :: self.world].contiguous()


class RepeatedPlan(EpochPlan):
    """A plan of `batches` batches of a split that may be smaller: each sample comes once before any comes again.

    So a batch that is larger than the split holds samples twice, each with draws of its own.
    """

    def __init__(self, *args, batches: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = batches

    def order(self, epoch: int) -> Tensor:
        wanted = self.batches * self.batch_size
        passes = torch.rand(-(-wanted // self.count), self.count, generator=self._generator("order", epoch))
        return self._share(passes.argsort(dim=1).flatten()[:wanted])


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (B, C, H, W) → uint8 (B, C, *size): bilinear, antialiased where it shrinks, as PIL does it.

    Images that have the size already come back as they are. In float32 on every device, since torch's uint8
    kernel is the CPU's alone and rounds otherwise.
    """
    if images.shape[-2:] == size:
        return images
    values = F.interpolate(images.to(torch.float32), size=size, mode="bilinear", antialias=True)
    return values.round_().to(torch.uint8)


def view(
    images: Tensor,
    index: Tensor,
    plan: EpochPlan,
    draws: dict[str, Tensor],
    normalization: tuple[Tensor, Tensor],
) -> Tensor:
    """The images at `index` (B,), augmented and normalised: float32 (B, C, *plan.size).

    Args:
        images: uint8 (N, C, H, W).
        draws: one batch's of `plan.draws`.
    """
    return apply(resized(images.index_select(0, index), plan.size), plan.augment, draws, *normalization)


class TrainLoader(Loader):
    """Shuffled and augmented training batches of a split whose images are on the device.

    Images are brought to `plan.size` first, so that augmentation counts in the network's pixels.
    """

    def __init__(self, split: Split, plan: EpochPlan, normalization: tuple[Tensor, Tensor]):
        super().__init__(plan.batches)
        self.split, self.plan, self.normalization = split, plan, normalization

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning makes the iterator before it sets the epoch, and asks for the first batch
        # after it.
        epoch, self.epoch = self.epoch, self.epoch + 1
        images, device = self.split.images, self.split.images.device
        order = self.plan.order(epoch).to(device)
        labels = self.split.labels[order]
        draws = {name: values.to(device) for name, values in self.plan.draws(epoch).items()}
        for i in range(self.batches):
            rows = {name: values[i] for name, values in draws.items()}
            image = view(images, order[i], self.plan, rows, self.normalization)
            yield {"image": image, "label": labels[i], "index": order[i]}


class SemiSupervisedLoader(Loader):
    """Batches of labelled and unlabelled images of one split that is on the device. An epoch takes each unlabelled
    image once, but for the last, incomplete batch, and the labelled ones as often as that needs.

    A batch also has "unlabelled_weak" and "unlabelled_strong", two views float32 (ratio · B, C, H, W) of unlabelled
    images, and "unlabelled_index" int64 (ratio · B,), their positions in the split. Labels of unlabelled images are not
    kept here.

    Args:
        labelled: int64 (N,), positions in the split; the others are unlabelled.
        plans: of the labelled images, and of both views of the unlabelled ones, whose order is that of weak.
    """

    def __init__(
        self,
        split: Split,
        labelled: Tensor,
        plans: tuple[RepeatedPlan, EpochPlan, EpochPlan],
        normalization: tuple[Tensor, Tensor],
    ):
        super().__init__(plans[0].batches)
        self.images, self.normalization, self.plans = split.images, normalization, plans
        device = split.images.device
        self.labelled = labelled.to(device)
        rest = torch.ones(len(split), dtype=torch.bool, device=device).index_fill_(0, self.labelled, False)
        self.unlabelled = rest.nonzero().flatten()
        self.labels = split.labels[self.labelled]

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        device = self.images.device
        chosen, order = (plan.order(epoch).to(device) for plan in self.plans[:2])
        labels, index, other = self.labels[chosen], self.labelled[chosen], self.unlabelled[order]
        draws = [
            {name: values.to(device) for name, values in plan.draws(epoch).items()} for plan in self.plans
        ]
        for i in range(self.batches):
            views = []
            for plan, of_plan, rows in zip(self.plans, draws, (index, other, other), strict=True):
                parts = {name: values[i] for name, values in of_plan.items()}
                views.append(view(self.images, rows[i], plan, parts, self.normalization))
            yield {
                "image": views[0],
                "label": labels[i],
                "index": index[i],
                "unlabelled_weak": views[1],
                "unlabelled_strong": views[2],
                "unlabelled_index": other[i],
            }


class EvalLoader(Loader):
    """All samples of a split exactly once over all ranks, in order, not augmented; as many batches on each
    rank.

    Args:
        split: images on the device; at least `world` samples.
        batch_size: of all ranks together; batches are as even as they can be, so most are a little smaller.
        size: (H, W) that the images are brought to; None leaves them as they are.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        normalization: tuple[Tensor, Tensor],
        rank: int = 0,
        world: int = 1,
        size: tuple[int, int] | None = None,
    ):
        self.chunks = even_batches(len(split), batch_size, rank, world)
        super().__init__(len(self.chunks))
        self.split, self.normalization = split, normalization
        self.size = size or tuple(split.images.shape[-2:])

    def __iter__(self) -> Iterator[Batch]:
        device = self.split.images.device
        for chunk in self.chunks:
            index = chunk.to(device)
            image = resized(self.split.images.index_select(0, index), self.size)
            image = normalize(image, *self.normalization)
            yield {"image": image, "label": self.split.labels[index], "index": index}


def even_batches(count: int, batch_size: int, rank: int, world: int) -> list[Tensor]:
    """Positions rank, rank + world, … < count in as few near-equal batches as `batch_size` / world allows.

    Every rank gets the same number of batches and none is empty, which needs count >= world.
    """
    batches = min(-(-count // batch_size), count // world)
    return list(torch.arange(rank, count, world).tensor_split(batches))
