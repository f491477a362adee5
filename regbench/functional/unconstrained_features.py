"""The unconstrained features model of mixup: every mixture has a feature vector of its own, free of any network.

W (k, d) is a simplex ETF with rows of norm m (see `simplex_etf`), y a target (k,) that sums to 1, e.g.
λ e_i + (1 − λ) e_j. The feature h (d,) minimises CE(W h, y) + (μ / 2) ‖h‖², p = softmax(W h). The problem is strictly
convex, and where the gradient is 0

    h = Wᵀ (y − p) / μ,   so that   z = W h = c (y − p)   with   c = m² k / ((k − 1) μ).

Fisher, Meng and Papyan 2024 (arXiv:2402.06171) state the solution with other constants; this is our derivation.
Everything here is NumPy in float64.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import logsumexp, softmax, wrightomega


def scale_constant(num_classes: int, norm: float, decay: float) -> float:
    """c = m² k / ((k − 1) μ).

    >>> round(scale_constant(4, 1.5, 0.05), 9)
    60.0
    """
    return norm**2 * num_classes / ((num_classes - 1) * decay)


def mixed_target(num_classes: int, lam: float, first: int = 0, second: int = 1) -> NDArray:
    """y = λ e_first + (1 − λ) e_second, (k,)."""
    target = np.zeros(num_classes)
    target[first] += lam
    target[second] += 1 - lam
    return target


def optimal_logits(target: ArrayLike, c: float) -> NDArray:
    """The solution z (k,) of z = c (y − softmax(z)).

    With s = log Σ exp(z) each entry is z_l = c y_l − ω(c y_l + log c − s), ω the Wright omega function
    (ω + log ω = x), and s is where the ω add up to c, i.e. the probabilities to 1: one equation in one unknown.

    >>> optimal_logits(mixed_target(4, 0.9), 60.0).round(4)
    array([ 2.3889,  0.2026, -1.2957, -1.2957])
    """
    y = np.asarray(target, dtype=np.float64)
    shifted = c * y + np.log(c)

    def excess(s: float) -> float:
        return float(wrightomega(shifted - s).sum() / c - 1)

    # |z_l| ≤ c, so s lies between −c + log k and c + log k
    bound = c + np.log(len(y)) + 1
    s = brentq(excess, -bound, bound, xtol=1e-14, rtol=8.9e-16, maxiter=500)
    return c * y - wrightomega(shifted - s).real


def features(weight: NDArray, target: ArrayLike, decay: float) -> NDArray:
    """The optimal h (d,) for cross entropy and a simplex ETF W (k, d), to about 1e-12."""
    k = len(weight)
    c = scale_constant(k, float(np.linalg.norm(weight[0])), decay)
    y = np.asarray(target, dtype=np.float64)
    return weight.T @ (y - softmax(optimal_logits(y, c))) / decay


def feature_norm(target: ArrayLike, norm: float, decay: float) -> float:
    """‖h‖ of the optimal feature for cross entropy: ‖h‖² = ‖z‖² (k − 1) / (m² k).

    >>> same, half = (feature_norm(mixed_target(3, lam), 1.0, 0.1) for lam in (1.0, 0.5))
    >>> round(same, 4), round(half, 4)  # smaller half-way here; larger for k = 10, m = 3, μ = 0.01
    (1.7932, 1.1789)
    """
    k = len(np.asarray(target))
    z = optimal_logits(target, scale_constant(k, norm, decay))
    return float(np.linalg.norm(z) * np.sqrt((k - 1) / k) / norm)


def features_squared_error(weight: NDArray, target: ArrayLike, decay: float) -> NDArray:
    """The minimiser h (d,) of ½ ‖W h − y‖² + (μ / 2) ‖h‖² for a simplex ETF W: h = Wᵀ y / (m² k / (k − 1) + μ).

    It is linear in y: mixtures lie on the straight chord between their ends.
    """
    k = len(weight)
    stiffness = float(np.linalg.norm(weight[0])) ** 2 * k / (k - 1)
    return weight.T @ np.asarray(target, dtype=np.float64) / (stiffness + decay)


def _cross_entropy(logits: NDArray, targets: NDArray) -> tuple[NDArray, NDArray]:
    """Cross entropies (n,) and their gradients (n, k) with respect to the logits; targets sum to 1."""
    return logsumexp(logits, axis=1) - (targets * logits).sum(1), softmax(logits, axis=1) - targets


def _minimise(function: Callable[[NDArray], tuple[float, NDArray]], start: NDArray) -> NDArray:
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}
    return minimize(function, start.ravel(), jac=True, method="L-BFGS-B", options=options).x


def descend_features(weight: NDArray, targets: NDArray, decay: float, *, seed: int = 0) -> NDArray:
    """The same optimum found without the theory: L-BFGS on free features H (n, d) of n targets (n, k), W fixed."""

    def loss(flat: NDArray) -> tuple[float, NDArray]:
        h = flat.reshape(len(targets), -1)
        value, gradient = _cross_entropy(h @ weight.T, targets)
        return value.sum() + decay / 2 * (h**2).sum(), (gradient @ weight + decay * h).ravel()

    start = np.random.default_rng(seed).normal(size=(len(targets), weight.shape[1]))
    return _minimise(loss, start).reshape(start.shape)


def descend_both(
    targets: NDArray, dim: int, feature_decay: float, weight_decay: float, *, seed: int = 0
) -> tuple[NDArray, NDArray]:
    """W (k, d) and H (n, d) both free, from a random start:

    mean over the targets of [CE(W h, y) + (μ_h / 2) ‖h‖²] + (μ_w / 2) ‖W‖², by L-BFGS.

    Returns:
        (W, H). The problem is not convex; another start may end elsewhere.
    """
    n, k = targets.shape

    def loss(flat: NDArray) -> tuple[float, NDArray]:
        w, h = flat[: k * dim].reshape(k, dim), flat[k * dim :].reshape(n, dim)
        value, gradient = _cross_entropy(h @ w.T, targets)
        total = value.mean() + feature_decay / 2 * (h**2).sum() / n + weight_decay / 2 * (w**2).sum()
        by_w, by_h = gradient.T @ h / n + weight_decay * w, (gradient @ w + feature_decay * h) / n
        return total, np.concatenate([by_w.ravel(), by_h.ravel()])

    start = np.random.default_rng(seed).normal(size=(k + n) * dim)
    found = _minimise(loss, start)
    return found[: k * dim].reshape(k, dim), found[k * dim :].reshape(n, dim)


def fit_scale(logits: NDArray, targets: NDArray, rows: NDArray) -> tuple[float, float]:
    """How far logits lie from the model, with the constant c that suits them best.

    Args:
        logits: (N, k); their mean over the classes is taken out, as it is 0 in the model.
        targets: (T, k), the different targets.
        rows: (N,), each sample's row in `targets`.

    Returns:
        (distance, c): sqrt(Σ ‖z − z*(y, c)‖² / Σ ‖z‖²) at the c in [1e-2, 1e6] where it is least. 0 is the model,
        1 is as far as all zeros.
    """
    z = logits - logits.mean(1, keepdims=True)
    size = (z**2).sum()
    if size == 0:
        return 1.0, 0.0
    # Samples of one target enter by their sum and their number only.
    sums = np.zeros_like(targets)
    np.add.at(sums, rows, z)
    counts = np.bincount(rows, minlength=len(targets))

    def squared(log_c: float) -> float:
        best = np.stack([optimal_logits(target, float(np.exp(log_c))) for target in targets])
        return float(size - 2 * (sums * best).sum() + (counts * (best**2).sum(1)).sum())

    found = minimize_scalar(squared, bounds=(np.log(1e-2), np.log(1e6)), method="bounded")
    return float(np.sqrt(max(found.fun, 0.0) / size)), float(np.exp(found.x))
