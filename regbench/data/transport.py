"""Transport problems: one-dimensional histograms, points of the plane, the colours of photographs, tokens and experts.

A problem has cost (m, n), source weights (m,) and target weights (n,), all float64. There is no training: train, val
and test are the same problems. Settings are those of the notebooks in google-research/vmoe,
projects/sparsity_constrained_ot, unless said otherwise.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from regbench import seeding
from regbench.data.photos import PHOTOS, read_photo
from regbench.data.samples import Samples, SampleSets
from regbench.data.sets import fingerprint
from regbench.errors import UserError, unknown

Problem = tuple[np.ndarray, np.ndarray, np.ndarray]  # cost, source, target
PAIRS = ("gaussian", "mixture", "random")
COVARIANCE = [[1.0, -0.8], [-0.6, 1.0]]  # of the notebook; not symmetric, its matrix root still exists
LEAST = 1e-9  # added to a colour's weight, so that none is zero


def histogram(bins: int, *bells: tuple[float, float]) -> np.ndarray:
    """The sum of bells exp(−(x − mean)²/(2 std²)) at x = 0 … bins − 1, divided by its sum.

    Args:
        bells: (mean, std) of each.
    """
    x = np.arange(bins)
    heights = sum(np.exp(-((x - mean) ** 2) / (2 * std**2)) for mean, std in bells)
    return heights / heights.sum()


def load_histograms(
    root: str | None = None, *, bins: int, pairs: str, count: int, seed: int = 0
) -> SampleSets:
    """Pairs of histograms over `bins` positions, with squared distances divided by the largest.

    Args:
        pairs: gaussian, one problem: bells N(10, 4) → N(16, 5) (mean, standard deviation) at 32 bins, in proportion at
            others; mixture, one: N(16, 5) → half N(8, 5), half N(24, 5); random, `count` of bells with means from
            U(6, 26) and deviations from U(3, 6), drawn from the seed (ours).
    """
    if pairs not in PAIRS:
        raise unknown("dataset.pairs", str(pairs), PAIRS)
    if bins < 2 or count < 1:
        raise UserError(f"dataset.bins={bins} must be at least 2, and dataset.count={count} at least 1.")
    unit = bins / 32
    bells = {"gaussian": [((10, 4),), ((16, 5),)], "mixture": [((16, 5),), ((8, 5), (24, 5))]}
    if pairs == "random":
        generator = np.random.default_rng(seeding.derive(seed, "histograms"))
        drawn = [
            [((generator.uniform(6, 26), generator.uniform(3, 6)),) for _ in range(2)] for _ in range(count)
        ]
    else:
        drawn = [bells[pairs]]
    position = np.arange(bins, dtype=np.float64)[:, None]
    cost = cdist(position, position, "sqeuclidean")
    cost /= cost.max()
    scaled = [[[(mean * unit, std * unit) for mean, std in side] for side in pair] for pair in drawn]
    problems = [(cost, histogram(bins, *source), histogram(bins, *target)) for source, target in scaled]
    return _sets(problems, f"histograms {bins} {pairs} {count}")


def load_points(root: str | None = None, *, points: int, count: int, seed: int = 0) -> SampleSets:
    """Two clouds of `points` points with equal weights and squared distances: N((0, 0), I), and standard normal points
    times the matrix root of COVARIANCE, plus (4, 4)."""
    if points < 2 or count < 1:
        raise UserError(f"dataset.points={points} must be at least 2, and dataset.count={count} at least 1.")
    generator = np.random.default_rng(seeding.derive(seed, "points"))
    matrix, weights = sqrtm(np.array(COVARIANCE)), np.full(points, 1 / points)
    problems, clouds = [], []
    for _ in range(count):
        source = generator.standard_normal((points, 2))
        target = generator.standard_normal((points, 2)) @ matrix + 4
        problems.append((cdist(source, target, "sqeuclidean"), weights, weights))
        clouds.append((source, target))
    hidden = {
        f"{side}_points": _stack(cloud[i] for cloud in clouds) for i, side in enumerate(("source", "target"))
    }
    return _sets(problems, f"points {points} {count}", hidden)


def load_colours(
    root: str | None = None, *, source: str, target: str, colours: int, pixels: int | None, seed: int = 0
) -> SampleSets:
    """The colours of two photographs: k-means centres of their pixels in [0, 1)³ (values / 256), weighted by how many
    pixels are nearest, with squared distances. The seed starts k-means.

    Args:
        source: a photograph of scikit-image (`regbench.data.photos`), or a picture's file, under `root` where it is
            no absolute path.
        target: as source.
        colours: centres of each.
        pixels: k-means sees so many, drawn from the seed; None: all.
    """
    if colours < 2 or (pixels is not None and pixels < colours):
        raise UserError(
            f"dataset.colours={colours} must be at least 2, and dataset.pixels={pixels} no fewer, or null."
        )
    images = [_read_picture(name, root) for name in (source, target)]
    palettes = [_palette(image, colours, pixels, seed) for image in images]
    (centres, weights), (target_centres, target_weights) = palettes
    problem = (cdist(centres, target_centres, "sqeuclidean"), weights, target_weights)
    hidden = {"source_colours": _stack([centres]), "target_colours": _stack([target_centres])}
    content = fingerprint(*(torch.from_numpy(image) for image in images), f"colours {colours} {pixels}")
    return _sets([problem], content, hidden)


def load_token_gates(
    root: str | None = None, *, tokens: int, experts: int, scale: float, count: int, seed: int = 0
) -> SampleSets:
    """Groups of random tokens for a router: cost −S with gates S = softmax(scale · (z + e/2)), where z is a standard
    normal number of each token and expert and e one of each expert: some experts are liked more (ours).

    Source weights are 1, target weights tokens / experts.
    """
    if tokens < 1 or experts < 2 or count < 1 or scale < 0:
        raise UserError(
            f"dataset.tokens={tokens} and dataset.count={count} must be at least 1, dataset.experts={experts} at least "
            f"2, dataset.scale={scale} at least 0."
        )
    generator = seeding.generator(seed, "gates")
    problems = []
    for _ in range(count):
        own = torch.randn(tokens, experts, generator=generator, dtype=torch.float64)
        liked = torch.randn(experts, generator=generator, dtype=torch.float64)
        gates = (scale * (own + liked / 2)).softmax(1).numpy()
        problems.append((-gates, np.ones(tokens), np.full(experts, tokens / experts)))
    return _sets(problems, f"token gates {tokens} {experts} {scale} {count}")


def _sets(problems: list[Problem], content: str, hidden: dict[str, Tensor] | None = None) -> SampleSets:
    fields = {
        name: _stack(problem[i] for problem in problems)
        for i, name in enumerate(("cost", "source", "target"))
    }
    split = Samples(fields, hidden or {})
    return SampleSets(split, split, split, tuple(fields["cost"].shape[1:]), 0, fingerprint(content))


def _stack(arrays) -> Tensor:
    return torch.from_numpy(np.stack(list(arrays)))


def _read_picture(name: str, root: str | None) -> np.ndarray:
    """uint8 (H, W, 3)."""
    if name in PHOTOS:
        return read_photo(PHOTOS[name]).copy()  # Pillow's own array can't be written, which torch wants
    path = Path(name) if root is None else Path(root) / name
    if not path.is_file():
        raise UserError(f"{path} is no file, and no photograph of scikit-image: {', '.join(PHOTOS)}.")
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} can't be read as a picture: {error}.") from error


def _palette(image: np.ndarray, colours: int, pixels: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (colours, 3) and their weights (colours,), the heaviest first."""
    values = image.reshape(-1, 3) / 256
    state = seeding.derive(seed, "palette") % 2**32
    drawn = values
    if pixels is not None and pixels < len(values):
        drawn = values[np.random.default_rng(state).choice(len(values), pixels, replace=False)]
    with threadpool_limits(1):  # sums over threads come in any order, and would differ from run to run
        found = KMeans(colours, n_init=1, max_iter=300, random_state=state).fit(drawn)
        nearest = found.predict(values)
    weights = np.bincount(nearest, minlength=colours) / len(values) + LEAST
    order = np.argsort(-weights, kind="stable")
    return found.cluster_centers_[order], weights[order] / weights.sum()
