"""The geometry of last-layer features: simplex ETFs, the four measures of neural collapse, a plane for three classes.

Features h (N, d) are the input of the last linear layer, W (k, d) is its weight. Papyan, Han and Donoho 2020
(arXiv:2008.08186) found that late in training the features of a class collapse to their mean (NC1), the centred means
become a simplex equiangular tight frame (ETF) (NC2), the classifier's rows become parallel to them (NC3) and the
network decides for the nearest mean (NC4).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regbench.errors import UserError


def simplex_etf(num_classes: int, dim: int, norm: float, generator: torch.Generator) -> Tensor:
    """A simplex ETF in a random orientation: W = m sqrt(k / (k − 1)) (I − 11ᵀ / k) Uᵀ, U (d, k) with UᵀU = I.

    Its rows have norm m and inner products −m² / (k − 1), and sum to 0.

    Args:
        num_classes: k, at least 2.
        dim: d, at least k.
        norm: m, above 0.
        generator: draws the Gaussian matrix of whose QR decomposition U is.

    Returns:
        float64 (k, d). Raises UserError where there is none.

    >>> w = simplex_etf(4, 6, 1.5, torch.Generator().manual_seed(0))
    >>> [[round(x, 4) for x in row] for row in (w @ w.T).tolist()][0]
    [2.25, -0.75, -0.75, -0.75]
    """
    if num_classes < 2 or dim < num_classes or norm <= 0:
        raise UserError(
            f"A simplex ETF of {num_classes} classes with rows of norm {norm} in {dim} dimensions: it needs two "
            "classes, at least as many features as classes, and a norm above 0. Take a wider backbone or head=learnt."
        )
    basis = torch.linalg.qr(torch.randn(dim, num_classes, generator=generator, dtype=torch.float64)).Q
    centring = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    return norm * math.sqrt(num_classes / (num_classes - 1)) * centring @ basis.T


def class_means(features: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Means (k, d) of the features (N, d) of each class; every class must be there.

    >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([[2.],
            [5.]])
    """
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, label, features)
    return sums / label.bincount(minlength=num_classes)[:, None]


def scatter(features: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Covariances (d, d) within and between classes.

    Within: mean over the samples of (h − mean of its class)(…)ᵀ. Between: mean over the classes of
    (mean of the class − mean of the means)(…)ᵀ.
    """
    means = class_means(features, label, num_classes)
    within = features - means[label]
    between = means - means.mean(0)
    return within.T @ within / len(features), between.T @ between / num_classes


def relative_spread(features: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """tr(Σ_within) / tr(Σ_between), a scalar: 0 when each class is one point.

    >>> h = torch.tensor([[0.0], [2.0], [9.0], [11.0]])
    >>> relative_spread(h, torch.tensor([0, 0, 1, 1]), 2).item()  # means 1 and 10: 1 / 4.5²
    0.04938271641731262
    """
    within, between = scatter(features, label, num_classes)
    return within.trace() / between.trace()


def within_class_variability(features: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """NC1 = tr(Σ_within Σ_between⁺) / k (Papyan et al. 2020, section 3); ⁺ is the pseudo-inverse. A scalar."""
    means = class_means(features, label, num_classes)
    within = features - means[label]
    # Σ_between = B ᵀB / k has rank k − 1 or less: through B's singular vectors, as d may be far above k.
    _, s, v = torch.linalg.svd((means - means.mean(0)) / math.sqrt(num_classes), full_matrices=False)
    kept = s > s.max() * max(means.shape) * torch.finfo(s.dtype).eps
    return ((within @ v[kept].T) / s[kept]).square().sum() / len(features) / num_classes


def etf_error(rows: Tensor) -> Tensor:
    """NC2 = ‖G / ‖G‖ − (I − 11ᵀ / k) / sqrt(k − 1)‖ (Frobenius), G the Gram matrix of the centred rows (k, d).

    A scalar, 0 for a simplex ETF of any size in any orientation (Zhu et al. 2021, arXiv:2105.02375).
    """
    k = len(rows)
    centred = rows - rows.mean(0)
    gram = centred @ centred.T
    ideal = (torch.eye(k, dtype=rows.dtype, device=rows.device) - 1 / k) / math.sqrt(k - 1)
    return torch.linalg.norm(gram / torch.linalg.norm(gram) - ideal)


def self_duality(weight: Tensor, means: Tensor) -> Tensor:
    """NC3 = ‖W / ‖W‖ − M / ‖M‖‖ (Frobenius), both (k, d) with the mean row taken out. A scalar in [0, 2].

    (Papyan et al. 2020 centre the means only; a common part of W's rows moves no probability, so it goes too.)
    """
    weight, means = weight - weight.mean(0), means - means.mean(0)
    return torch.linalg.norm(weight / torch.linalg.norm(weight) - means / torch.linalg.norm(means))


def nearest_mean_disagreement(features: Tensor, logits: Tensor, means: Tensor) -> Tensor:
    """NC4: share of the samples that the network gives to another class than that of the nearest mean. A scalar.

    Args:
        features: (N, d).
        logits: (N, k), the network's.
        means: (k, d), the classes' means.
    """
    return (torch.cdist(features, means).argmin(1) != logits.argmax(1)).to(features.dtype).mean()


def alignment(features: Tensor, centre: Tensor, direction: Tensor) -> Tensor:
    """Mean cosine between h − centre (N, d) and each sample's direction (N, d). A scalar."""
    return F.cosine_similarity(features - centre, direction, dim=1).mean()


def chord_residual(features: Tensor, lam: Tensor) -> Tensor:
    """Mean over pairs and shares of ‖h(λ) − [λ h(1) + (1 − λ) h(0)]‖ / ‖h(1) − h(0)‖. A scalar.

    Args:
        features: (L, P, d) of P pairs mixed with each of L shares.
        lam: (L,) increasing from 0 to 1; the shares in between count.

    >>> h = torch.tensor([[[0.0, 0.0]], [[1.0, 0.5]], [[2.0, 0.0]]])  # half-way it is 0.5 beside a chord of length 2
    >>> chord_residual(h, torch.tensor([0.0, 0.5, 1.0])).item()
    0.25
    """
    start, end = features[0], features[-1]
    chord = torch.lerp(start, end, lam[1:-1, None, None])
    off = (features[1:-1] - chord).norm(dim=2)
    return (off / (end - start).norm(dim=1).clamp_min(1e-12)).mean()


def plane_of_three(weight: Tensor, features: Tensor) -> Tensor:
    """Features (N, d) in the plane that three classifier rows W (3, d) span: (N, 2).

    M = W − mean row = U S Vᵀ (singular values up to 1e-5 dropped), Q = U Vᵀ, and
    x = A Q (h − mean row) with A = [[1, −1, 0] / sqrt 2, [−1, −1, 2] / sqrt 6]. The rows themselves, if they are an
    ETF, become an equilateral triangle with their true distances.

    >>> w = simplex_etf(3, 3, 2.0, torch.Generator().manual_seed(0))
    >>> [[round(x, 4) + 0.0 for x in row] for row in plane_of_three(w, w).tolist()]
    [[1.7321, -1.0], [-1.7321, -1.0], [0.0, 2.0]]
    """
    centre = weight.mean(0)
    u, s, vh = torch.linalg.svd(weight - centre, full_matrices=False)
    kept = s > 1e-5
    q = u[:, kept] @ vh[kept]
    axes = weight.new_tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, 2.0]])
    return (features - centre) @ (axes / axes.norm(dim=1, keepdim=True) @ q).T
