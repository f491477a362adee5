"""Images with known factors of variation: two renderers of small pictures, and the usual benchmarks' own files.

Every set holds the images uint8 (N, C, H, W) as `image` and the factors int64 (N, F) as `factors`, numbered from 0.
Disentanglement is learnt without labels, so all images train, and validation and test are some of them.
"""

import colorsys
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regbench import seeding
from regbench.data.files import missing
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import SPLIT_SEED, fingerprint
from regbench.errors import UserError, unknown
from regbench.extras import need
from regbench.paths import data_root

SUPERSAMPLING = 4  # points along each side of a pixel whose mean it is

# A figure's inside, of coordinates (u to the right, v down) from its centre in half-sizes.
SPRITES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.85,
    "ellipse": lambda u, v: u**2 + (v / 0.6) ** 2 <= 1,
    # (p² + q² − 1)³ ≤ p² q³ with p = 1.2 u, q = −1.2 v; its area is 3.66197 in p and q
    "heart": lambda u, v: ((1.2 * u) ** 2 + (1.2 * v) ** 2 - 1) ** 3 + (1.2 * u) ** 2 * (1.2 * v) ** 3 <= 0,
}
OBJECTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cube": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.9,
    "cylinder": lambda u, v: (abs(u) <= 0.6) & (abs(v) <= 1),
    "sphere": lambda u, v: u**2 + v**2 <= 1,
    "capsule": lambda u, v: u**2 + np.maximum(abs(v) - 0.6, 0) ** 2 <= 0.16,
}
SPRITE_FACTORS = ("shape", "scale", "orientation", "x", "y")
ROOM_FACTORS = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")


def pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the points whose means are pixels, (4 size, 4 size) each, from 0 at the left and top to 1."""
    points = (np.arange(SUPERSAMPLING * size) + 0.5) / (SUPERSAMPLING * size)
    y, x = np.meshgrid(points, points, indexing="ij")
    return x, y


def pixels(points: np.ndarray) -> np.ndarray:
    """Points in [0, 1], (4 H, 4 W, …) → uint8 (H, W, …), the mean of 4 × 4 of them."""
    height, width, *rest = points.shape
    s = SUPERSAMPLING
    mean = points.reshape(height // s, s, width // s, s, *rest).mean((1, 3))
    return np.round(255 * mean).astype(np.uint8)


def draw_sprite(shape: str, radius: float, angle: float, x: float, y: float, size: int) -> np.ndarray:
    """A white figure on black, uint8 (size, size).

    Args:
        shape: a key of SPRITES.
        radius: half the figure's size, in sides of the image.
        angle: of a turn, clockwise, in radians.
        x, y: the centre, in sides of the image from the upper left corner.

    >>> draw_sprite("square", 0.5, 0.0, 0.5, 0.5, 2)  # its half side is 0.425: 3 of a pixel's 4 points each way
    array([[143, 143],
           [143, 143]], dtype=uint8)
    """
    px, py = pixel_grid(size)
    right, down = (px - x) / radius, (py - y) / radius
    u = right * math.cos(angle) + down * math.sin(angle)
    v = down * math.cos(angle) - right * math.sin(angle)
    return pixels(SPRITES[shape](u, v).astype(float))


def draw_room(
    floor: float, wall: float, hue: float, radius: float, shape: str, corner: float, size: int
) -> np.ndarray:
    """An object on the floor before two walls, uint8 (3, size, size).

    Args:
        floor, wall, hue: hues of the floor, the walls and the object, in [0, 1); the right wall and the object's right
            half are darker.
        radius: half the object's size, in sides of the image.
        shape: a key of OBJECTS.
        corner: where the walls meet, in sides of the image from the left; it moves as the camera turns.
    """
    px, py = pixel_grid(size)

    def paint(points: np.ndarray, hue: float, value: float) -> None:
        image[points] = colorsys.hsv_to_rgb(hue, 1.0, value)

    image = np.empty((*px.shape, 3))
    paint(px < corner, wall, 1.0)
    paint(px >= corner, wall, 0.8)
    paint(py > 0.6, floor, 0.9)
    inside = OBJECTS[shape]((px - 0.5) / radius, (py - 0.65) / radius)
    paint(inside & (px < 0.5), hue, 0.7)
    paint(inside & (px >= 0.5), hue, 0.5)
    return pixels(image).transpose(2, 0, 1)


def load_mini_shapes(
    root: str | None = None, *, size: int = 16, counts: Mapping[str, int], evaluate: int | None = None
) -> SampleSets:
    """Every combination of a figure's shape, scale, orientation and place, in the manner of dSprites. `root` is unused.

    Half-sizes are evenly spaced from 0.1 to 0.2 sides of the image, angles over a whole turn, centres from 0.25 to
    0.75. A factor with one value is the largest, upright, in the middle, and no factor of the set.

    Args:
        size: side of the images in pixels.
        counts: factor → number of its values.
        evaluate: images of the test, drawn once for all seeds; None: all.

    Raises:
        UserError: a number that does not fit.
    """
    values = _values(counts, SPRITE_FACTORS, list(SPRITES), size)
    radii = np.linspace(0.1, 0.2, values["scale"]) if values["scale"] > 1 else [0.2]
    places = {
        axis: np.linspace(0.25, 0.75, values[axis]) if values[axis] > 1 else [0.5] for axis in ("x", "y")
    }
    names = list(SPRITES)
    factors = _grid(values)
    images = [
        draw_sprite(
            names[shape], radii[scale], 2 * math.pi * turn / values["orientation"],
            places["x"][x], places["y"][y], size,
        )
        for shape, scale, turn, x, y in factors
    ]  # fmt: skip
    return _generated("mini_shapes", np.stack(images)[:, None], factors, values, evaluate)


def load_mini_rooms(
    root: str | None = None, *, size: int = 16, counts: Mapping[str, int], evaluate: int | None = None
) -> SampleSets:
    """Every combination of three hues and an object's size, shape and view, like Shapes3D's. `root` is unused.

    Hues are evenly spaced over the circle, half-sizes from 0.15 to 0.3 sides of the image, the walls' corner from 0.2
    to 0.8. A factor with one value is red, the largest or in the middle, and no factor of the set.

    Args:
        size, counts, evaluate: as for `load_mini_shapes`.
    """
    values = _values(counts, ROOM_FACTORS, list(OBJECTS), size)
    radii = np.linspace(0.15, 0.3, values["scale"]) if values["scale"] > 1 else [0.3]
    corners = np.linspace(0.2, 0.8, values["orientation"]) if values["orientation"] > 1 else [0.5]
    names = list(OBJECTS)
    factors = _grid(values)
    images = [
        draw_room(
            floor / values["floor_hue"], wall / values["wall_hue"], hue / values["object_hue"],
            radii[scale], names[shape], corners[turn], size,
        )
        for floor, wall, hue, scale, shape, turn in factors
    ]  # fmt: skip
    return _generated("mini_rooms", np.stack(images), factors, values, evaluate)


def load_dsprites(root: str | None = None, *, evaluate: int | None = 10_000) -> SampleSets:
    """dSprites (Matthey et al. 2017), 737,280 binary images of 64 × 64 pixels: dsprites*.npz with `imgs` and
    `latents_classes`, whose first column, the colour, has one value and is left out.
    """
    file = _find("dSprites", root, "dsprites*.npz", "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz")
    with np.load(file, allow_pickle=False) as content:
        images = _array(content, "imgs", file)
        factors = _array(content, "latents_classes", file)[:, 1:]
    return _read("dSprites", 255 * images[:, None], factors, SPRITE_FACTORS, evaluate)


def load_shapes3d(root: str | None = None, *, evaluate: int | None = 10_000) -> SampleSets:
    """3D Shapes (Burgess & Kim 2018), 480,000 images of 64 × 64 pixels: 3dshapes.h5 with `images` and `labels`."""
    need("h5py", "hdf5", "dataset=shapes3d reads an HDF5 file and needs h5py")
    import h5py

    file = _find("3D Shapes", root, "3dshapes.h5", "3dshapes.h5")
    with h5py.File(file) as content:
        images, labels = _array(content, "images", file)[:], _array(content, "labels", file)[:]
    return _read("3D Shapes", np.moveaxis(images, 3, 1), labels, ROOM_FACTORS, evaluate)


# Images of a file of MPI3D → the number of values of each factor, in the order of the images.
MPI3D_SIZES = {
    460_800: (4, 4, 2, 3, 3, 40, 40),  # mpi3d_real_complex
    1_036_800: (6, 6, 2, 3, 3, 40, 40),  # mpi3d_toy, mpi3d_realistic, mpi3d_real
}
MPI3D_FACTORS = (
    "object_color",
    "object_shape",
    "object_size",
    "camera_height",
    "background_color",
    "horizontal_axis",
    "vertical_axis",
)


def load_mpi3d(
    root: str | None = None,
    *,
    file: str = "mpi3d_real_complex.npz",
    sizes: Sequence[int] | None = None,
    evaluate: int | None = 10_000,
) -> SampleSets:
    """MPI3D (Gondal et al. 2019), images of 64 × 64 pixels: an npz file with `images`, in the order of their factors.

    Args:
        file: its name under `root`.
        sizes: numbers of values of the seven factors; None: those of the published files.
    """
    path = _find("MPI3D", root, file, file)
    with np.load(path, allow_pickle=False) as content:
        images = _array(content, "images", path)
    sizes = MPI3D_SIZES.get(len(images)) if sizes is None else tuple(sizes)
    if sizes is None or math.prod(sizes) != len(images):
        raise UserError(
            f"{path} has {len(images)} images, and dataset.sizes={sizes} do not multiply to that. Published files have "
            f"{' or '.join(map(str, MPI3D_SIZES))}; set dataset.sizes for another."
        )
    factors = np.stack(np.unravel_index(np.arange(len(images)), sizes), axis=1)
    return _read("MPI3D", np.moveaxis(images, 3, 1), factors, MPI3D_FACTORS, evaluate)


# -- what they share ---------------------------------------------------------------------------------------------------


def _values(
    counts: Mapping[str, int], names: Sequence[str], shapes: Sequence[str], size: int
) -> dict[str, int]:
    """The number of values of every factor in the set's order; checked."""
    for name, count in counts.items():
        if name not in names:
            raise unknown("factor in dataset.counts", name, names)
        if not isinstance(count, int) or count < 1:
            raise UserError(f"dataset.counts.{name}={count} is a number of values, 1 or more.")
    values = {name: counts.get(name, 1) for name in names}
    if values["shape"] > len(shapes):
        raise UserError(
            f"dataset.counts.shape={values['shape']}: there are {len(shapes)}, {', '.join(shapes)}."
        )
    if max(values.values()) < 2 or size < 4:
        raise UserError(
            f"A factor needs two values or more, and images 4 pixels; size={size}, counts={values}."
        )
    return values


def _grid(values: Mapping[str, int]) -> np.ndarray:
    return np.array(list(itertools.product(*map(range, values.values()))))


def _generated(
    name: str, images: np.ndarray, factors: np.ndarray, values: Mapping[str, int], evaluate: int | None
) -> SampleSets:
    varied = [i for i, count in enumerate(values.values()) if count > 1]
    names = [factor for factor, count in values.items() if count > 1]
    return _sets(name, torch.from_numpy(images), factors[:, varied], names, evaluate)


def _read(
    name: str, images: np.ndarray, factors: np.ndarray, names: Sequence[str], evaluate: int | None
) -> SampleSets:
    if images.ndim != 4 or factors.shape != (len(images), len(names)):
        raise UserError(
            f"{name} should hold N images and N × {len(names)} factors; the file has {images.shape} and "
            f"{factors.shape}."
        )
    return _sets(name, torch.from_numpy(np.ascontiguousarray(images)), factors, names, evaluate)


def _sets(
    name: str, images: Tensor, factors: np.ndarray, names: Sequence[str], evaluate: int | None
) -> SampleSets:
    """The splits; each factor's values are numbered in their order."""
    if evaluate is not None and evaluate < 1:
        raise UserError(f"dataset.evaluate={evaluate} is a number of images, 1 or more, or null for all.")
    columns = [np.unique(column, return_inverse=True)[1].reshape(-1) for column in factors.T]
    numbered = torch.from_numpy(np.stack(columns, axis=1)).long()
    train = Samples({"image": images, "factors": numbered})
    test, chosen = train, "all of them"
    if evaluate is not None and evaluate < len(train):
        order = torch.randperm(len(train), generator=seeding.generator(SPLIT_SEED, "evaluate"))[:evaluate]
        test, chosen = Samples({"image": images[order], "factors": numbered[order]}), f"{evaluate} of them"
    for factor, column in zip(names, test.fields["factors"].T, strict=True):
        if len(column.unique()) < 2:
            raise UserError(
                f"The factor '{factor}' has a single value in the {len(test)} evaluated images, so that nothing can be "
                "measured of it: raise dataset.evaluate, or set it to null for all images."
            )
    sizes = ", ".join(f"{n} {int(k)}" for n, k in zip(names, numbered.amax(0) + 1, strict=True))
    return SampleSets(
        train,
        test,
        test,
        tuple(images.shape[1:]),
        0,
        fingerprint(name, images, numbered, str(evaluate)),
        notes=f"All images train without labels; validation and test are {chosen}. Factors: {sizes}.",
    )


def _find(name: str, root: str | None, pattern: str, wanted: str) -> Path:
    folder = data_root(root)
    found = sorted(folder.glob(pattern)) or sorted(folder.glob(f"*/{pattern}"))
    if not found:
        raise missing(name, folder, [wanted], "RegBench does not download it.")
    return found[0]


def _array(content: Mapping[str, np.ndarray], key: str, file: Path) -> np.ndarray:
    if key not in content:
        raise UserError(f"{file} has no array '{key}', only {', '.join(content)}.")
    return content[key]
