"""Images a second of the batched augmentation, against the same done image by image with torchvision and PIL."""

import time

import torch
from torchvision import transforms

from regbench import seeding
from regbench.data.augment import Augment, normalization
from regbench.data.loaders import EpochPlan, TrainLoader
from regbench.data.sets import Split

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def images_per_second(batch: int = 512, count: int = 5120) -> tuple[float, float]:
    """(batched, image by image) for padding 4, random crop, flip and normalisation of 3×32×32, on one thread."""
    torch.set_num_threads(1)
    images = torch.randint(
        0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=seeding.generator(0, "images")
    )
    augment = Augment.from_config({"crop_padding": 4, "flip": True})
    plan = EpochPlan(count, batch, augment, (32, 32), 0, 0, 1)
    loader = TrainLoader(
        Split(images, torch.zeros(count, dtype=torch.long)), plan, normalization(MEAN, STD, "cpu")
    )
    list(loader)  # once to warm up
    start = time.perf_counter()
    for _ in loader:
        pass
    batched = count / (time.perf_counter() - start)

    one = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
                              transforms.ToTensor(), transforms.Normalize(MEAN, STD)])  # fmt: skip
    pictures = [transforms.ToPILImage()(image) for image in images]
    start = time.perf_counter()
    for at in range(0, count, batch):
        torch.stack([one(picture) for picture in pictures[at : at + batch]])
    return batched, count / (time.perf_counter() - start)
