"""`photo_patches`: 32 × 32 patches of scikit-image's own photographs; the class is the photograph."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regbench import seeding
from regbench.data.sets import SPLIT_SEED, ImageSets, Split, in_memory
from regbench.errors import UserError

# Files in the package itself: scikit-image downloads its other pictures when they are asked for. Photographs
# and micrographs only; the motorcycle's right view is left out, since it shows what the left view shows.
PHOTOS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
PATCH = 32
CELL = 64  # side of the cells that a photograph is cut into; a cell, with all its patches, is in one split
STRIDE = 8  # between the patches of a cell: 25 positions
FLAT = 2.0  # patches with a standard deviation of fewer grey levels are left out: black corners, clear sky
PER_CLASS = {"train": 320, "val": 80, "test": 120}
SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}  # of a photograph's cells, as near as whole cells allow


def load_photo_patches(root: str | None = None) -> ImageSets:
    """14 classes with 320 + 80 + 120 RGB patches each; grey photographs have three equal channels.

    `root` is not used.
    """
    found = {name: ([], []) for name in PER_CLASS}
    for label, (photo, file) in enumerate(PHOTOS.items()):
        pixels = read_photo(file)
        for split, positions in patch_positions(photo, pixels).items():
            patches = np.stack([pixels[y : y + PATCH, x : x + PATCH] for y, x in positions])
            found[split][0].append(torch.from_numpy(patches).permute(0, 3, 1, 2))
            found[split][1].append(torch.full((len(positions),), label))
    splits = {
        name: Split(torch.cat(images).contiguous(), torch.cat(labels))
        for name, (images, labels) in found.items()
    }
    notes = "The splits come from different parts of the same photographs, which do not overlap."
    return in_memory(splits["train"], splits["test"], list(PHOTOS), splits["val"], notes)


def read_photo(file: str) -> np.ndarray:
    """uint8 (H, W, 3) of a picture in scikit-image's own data folder."""
    import skimage

    path = Path(skimage.__file__).parent / "data" / file
    if not path.is_file():
        raise UserError(
            f"This scikit-image ships without {file}; dataset=photo_patches needs scikit-image 0.24 to 0.26."
        )
    return np.asarray(Image.open(path).convert("RGB"))


def patch_positions(photo: str, pixels: np.ndarray) -> dict[str, list[tuple[int, int]]]:
    """split → PER_CLASS upper left corners (y, x) of its patches; fixed by the photograph's name.

    No patch reaches over the border of its cell, so patches of different splits share no pixel. Patches with
    the same content are taken once.
    """
    generator = seeding.generator(SPLIT_SEED, "photo_patches", photo)

    def shuffled(items: list) -> list:
        return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]

    height, width = pixels.shape[0] // CELL, pixels.shape[1] // CELL
    cells = shuffled([(CELL * i, CELL * j) for i in range(height) for j in range(width)])
    offsets = [
        (dy, dx) for dy in range(0, CELL - PATCH + 1, STRIDE) for dx in range(0, CELL - PATCH + 1, STRIDE)
    ]
    seen, result, first = set(), {}, 0
    for split, share in SHARES.items():
        last = first + round(share * len(cells))
        result[split] = []
        for y, x in shuffled([(y + dy, x + dx) for y, x in cells[first:last] for dy, dx in offsets]):
            patch = pixels[y : y + PATCH, x : x + PATCH]
            if len(result[split]) < PER_CLASS[split] and patch.std() >= FLAT and patch.tobytes() not in seen:
                seen.add(patch.tobytes())
                result[split].append((y, x))
        if len(result[split]) < PER_CLASS[split]:
            raise ValueError(f"{photo} has only {len(result[split])} {split} patches that are not flat")
        first = last
    return result
