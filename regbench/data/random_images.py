"""Random images in place of a set that is not at hand, to see that a configuration runs."""

from collections.abc import Sequence

import torch

from regbench.data.sets import SPLIT_SEED, ImageSets, Split, in_memory


def load_random_images(
    root: str | None, shape: Sequence[int], num_classes: int, sizes: Sequence[int]
) -> ImageSets:
    """Uniform pixels with uniform labels, the same in every call. `root` is not used.

    Args:
        shape: (C, H, W) of an image.
        num_classes: classes are named "0", "1", …
        sizes: numbers of training, validation and test images.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train, val, test = (
        Split(
            torch.randint(256, (size, *shape), dtype=torch.uint8, generator=generator),
            torch.randint(num_classes, (size,), generator=generator),
        )
        for size in sizes
    )
    return in_memory(train, test, [str(c) for c in range(num_classes)], val, "Random pixels and labels.")
