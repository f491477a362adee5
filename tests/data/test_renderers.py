"""Rendered images: areas, centres and colours by hand; the benchmarks' files on small ones that the test writes."""

import math

import numpy as np
import pytest
import torch

from regbench.data.renderers import (
    MPI3D_SIZES,
    draw_room,
    draw_sprite,
    load_dsprites,
    load_mini_rooms,
    load_mini_shapes,
    load_mpi3d,
    load_shapes3d,
)
from regbench.errors import UserError

SHAPES = {"shape": 3, "scale": 2, "x": 3, "y": 2}
AREAS = {"square": (2 * 0.85) ** 2, "ellipse": math.pi * 0.6, "heart": 3.66197 / 1.44}  # of half-size 1


@pytest.mark.parametrize("shape", AREAS)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_sprites_have_their_areas_and_centres(shape, angle):
    image = draw_sprite(shape, 0.2, angle, 0.45, 0.55, 128) / 255
    assert image.mean() == pytest.approx(AREAS[shape] * 0.04, rel=0.01)
    y, x = (np.arange(128) + 0.5) / 128, (np.arange(128) + 0.5) / 128
    if shape != "heart":  # its centre of mass is elsewhere
        assert (image.sum(0) @ x) / image.sum() == pytest.approx(0.45, abs=1e-3)
        assert (image.sum(1) @ y) / image.sum() == pytest.approx(0.55, abs=1e-3)


def test_a_quarter_turn_lays_an_ellipse_the_other_way():
    lying = draw_sprite("ellipse", 0.3, 0.0, 0.5, 0.5, 32)
    assert (lying.max(0) > 0).sum() > (lying.max(1) > 0).sum()
    np.testing.assert_array_equal(draw_sprite("ellipse", 0.3, math.pi / 2, 0.5, 0.5, 32), lying.T)


def test_a_heart_stands_on_its_point():
    rows = draw_sprite("heart", 0.3, 0.0, 0.5, 0.5, 64).sum(1).nonzero()[0]
    image = draw_sprite("heart", 0.3, 0.0, 0.5, 0.5, 64)
    assert (image[rows[-1]] > 0).sum() < (image[rows[0]] > 0).sum()


def test_a_room_by_its_colours():
    """Hue 0 is red, 1/3 green, 2/3 blue; walls have brightness 1 and 0.8, the floor 0.9, the object 0.7 and 0.5."""
    image = draw_room(1 / 3, 2 / 3, 0.0, 0.2, "cube", 0.25, 32)
    assert image.shape == (3, 32, 32)
    assert image[:, 0, 0].tolist() == [0, 0, 255]
    assert image[:, 0, 31].tolist() == [0, 0, 204]
    assert image[:, 31, 0].tolist() == [0, 230, 0]
    assert image[:, 20, 14].tolist() == [178, 0, 0]
    assert image[:, 20, 17].tolist() == [128, 0, 0]
    corner = (image[2, 0] == 255).sum()
    assert corner == 8  # a quarter of 32


def test_every_combination_of_shapes_is_there_once():
    sets = load_mini_shapes(size=16, counts=SHAPES)
    image, factors = sets.train.fields["image"], sets.train.fields["factors"]
    assert (image.shape, image.dtype) == ((36, 1, 16, 16), torch.uint8)
    assert len(torch.unique(factors, dim=0)) == 36
    assert (factors.amax(0) + 1).tolist() == [3, 2, 3, 2]  # the orientation has one value
    assert (sets.shape, sets.outputs) == ((1, 16, 16), 0)
    assert sets.test is sets.train
    assert "shape 3, scale 2, x 3, y 2" in sets.notes
    # of the largest squares, the one in the middle of x and at the top
    [row] = (factors == torch.tensor([0, 1, 1, 0])).all(1).nonzero()[:, 0]
    np.testing.assert_array_equal(image[row, 0], draw_sprite("square", 0.2, 0.0, 0.5, 0.25, 16))
    again = load_mini_shapes(size=16, counts=SHAPES)
    assert again.fingerprint == sets.fingerprint
    assert load_mini_shapes(size=16, counts=SHAPES | {"y": 3}).fingerprint != sets.fingerprint


def test_every_combination_of_rooms():
    counts = {"floor_hue": 2, "wall_hue": 3, "object_hue": 2, "scale": 2, "shape": 4, "orientation": 2}
    sets = load_mini_rooms(size=8, counts=counts, evaluate=10)
    factors = sets.train.fields["factors"]
    assert sets.train.fields["image"].shape == (192, 3, 8, 8)
    assert (factors.amax(0) + 1).tolist() == [2, 3, 2, 2, 4, 2]
    assert len(torch.unique(sets.train.fields["image"], dim=0)) == 192  # no two look alike
    assert len(sets.test) == len(sets.val) == 10
    again = load_mini_rooms(size=8, counts=counts, evaluate=10)
    assert torch.equal(again.test.fields["image"], sets.test.fields["image"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"counts": {"hue": 2}}, "no factor in dataset.counts 'hue'"),
        ({"counts": {"scale": 0}}, "dataset.counts.scale=0"),
        ({"counts": {"shape": 4}}, "dataset.counts.shape=4: there are 3"),
        ({"counts": {"scale": 1}}, "A factor needs two values"),
        ({"size": 3}, "images 4 pixels"),
        ({"evaluate": 0}, "dataset.evaluate=0"),
        ({"evaluate": 1}, "has a single value in the 1 evaluated images"),
    ],
)
def test_mistakes(options, says):
    with pytest.raises(UserError, match=says):
        load_mini_shapes(**({"size": 8, "counts": SHAPES} | options))


# -- files -------------------------------------------------------------------------------------------------------------


def test_dsprites(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (12, 64, 64), dtype=np.uint8)
    classes = np.stack([np.zeros(12, int), *(rng.integers(0, k, 12) for k in (3, 6, 40, 32, 32))], 1)
    name = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    np.savez(tmp_path / name, imgs=images, latents_classes=classes)
    sets = load_dsprites(str(tmp_path))
    assert sets.train.fields["image"].unique().tolist() == [0, 255]
    np.testing.assert_array_equal(sets.train.fields["image"][:, 0] // 255, images)
    assert sets.train.fields["factors"].shape == (12, 5)
    values, numbered = np.unique(classes[:, 3], return_inverse=True)
    assert sets.train.fields["factors"][:, 2].tolist() == numbered.tolist()
    assert f"orientation {len(values)}" in sets.notes
    np.savez(tmp_path / name, imgs=images, latents_classes=classes[:, :4])
    with pytest.raises(UserError, match="N images and N × 5 factors"):
        load_dsprites(str(tmp_path))
    np.savez(tmp_path / name, images=images)
    with pytest.raises(UserError, match="no array 'imgs', only images"):
        load_dsprites(str(tmp_path))


def test_shapes3d(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    labels = np.stack([rng.choice(np.linspace(0, 0.9, 10), 20) for _ in range(6)], 1)
    with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
        file["images"], file["labels"] = images, labels
    sets = load_shapes3d(str(tmp_path), evaluate=7)
    assert sets.shape == (3, 64, 64)
    assert sets.train.fields["image"][3, :, 10, 20].tolist() == images[3, 10, 20].tolist()
    expected = np.unique(labels[:, 4], return_inverse=True)[1]
    assert sets.train.fields["factors"][:, 4].tolist() == expected.tolist()
    assert (len(sets.train), len(sets.test)) == (20, 7)


def test_mpi3d(tmp_path):
    sizes = (2, 2, 2, 2, 2, 3, 2)
    images = np.arange(192, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "mpi3d_real_complex.npz", images=images)
    with pytest.raises(UserError, match=r"192 images, and dataset\.sizes=None"):
        load_mpi3d(str(tmp_path))
    sets = load_mpi3d(str(tmp_path), sizes=sizes)
    factors = sets.train.fields["factors"]
    # image 17 = ((1·2 + 0)·3 + 2)·2 + 1: the last factor moves first
    assert sets.train.fields["image"][17].unique().tolist() == [17]
    assert factors[17].tolist() == [0, 0, 0, 1, 0, 2, 1]
    assert all(math.prod(sizes) == count for count, sizes in MPI3D_SIZES.items())


@pytest.mark.parametrize("load", [load_dsprites, load_shapes3d, load_mpi3d])
def test_files_that_are_not_there(load, tmp_path):
    with pytest.raises(UserError, match=r"is not under .* RegBench does not download it"):
        load(str(tmp_path))
