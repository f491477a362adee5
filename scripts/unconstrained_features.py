"""The unconstrained features model of mixup: theory against descent, and two pictures of it.

    python scripts/unconstrained_features.py <folder>

The model is in regbench/functional/unconstrained_features.py, the results in docs/papers/mixup_neural_collapse.md.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from regbench.functional import unconstrained_features as ufm
from regbench.functional.neural_collapse import etf_error, plane_of_three, simplex_etf

MODELS = {
    3: (1.0, 0.1),
    4: (1.5, 0.05),
    10: (3.0, 0.01),
}  # classes → norm m of W's rows, decay μ of the features
SHARES = np.linspace(0, 1, 21)
SEEDS = range(5)
DECAY = 0.01  # of features and classifier where both are free


def fixed_classifier() -> None:
    """Largest difference between theory and descent, for k = 3 to 10."""
    for k in range(3, 11):
        norm, decay = MODELS.get(k, (1.5, 0.05))
        weight = simplex_etf(k, k, norm, torch.Generator().manual_seed(0)).numpy()
        targets = np.stack([ufm.mixed_target(k, lam) for lam in SHARES])
        theory = np.stack([ufm.features(weight, target, decay) for target in targets])
        off = np.abs(ufm.descend_features(weight, targets, decay) - theory).max()
        norms = np.linalg.norm(theory, axis=1)
        chord = np.linalg.norm(theory[0] + theory[-1]) / 2
        print(
            f"W fixed, k={k:2d}, m={norm}, mu={decay}: theory against descent {off:.0e}; norm at lambda 1 "
            f"{norms[-1]:.4f}, at 1/2 {norms[len(SHARES) // 2]:.4f}, of the chord there {chord:.4f}"
        )


def free_classifier() -> None:
    """Whether W becomes an ETF where it is free too, and whether H is then what theory says for that W."""
    for k in (3, 4):
        pairs = [(i, j) for i in range(k) for j in range(k)]
        targets = np.stack([ufm.mixed_target(k, lam, *pair) for pair in pairs for lam in SHARES])
        for seed in SEEDS:
            weight, found = ufm.descend_both(targets, k + 1, DECAY, DECAY, seed=seed)
            theory = np.stack([ufm.features(weight, target, DECAY) for target in targets])
            off = np.abs(found - theory).max()
            error = etf_error(torch.tensor(weight)).item()
            norms = np.linalg.norm(weight, axis=1)
            print(
                f"W free, k={k}, seed {seed}: ETF error of W {error:.0e}, its rows' norms {norms.min():.4f} to "
                f"{norms.max():.4f}, H against theory {off:.0e}"
            )


def draw(folder: Path) -> None:
    """mixup_neural_collapse-theory.png: norm of h against λ, and the features in the plane of three classifier rows."""
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, 4)
    for k, (norm, decay) in MODELS.items():
        norms = np.array([ufm.feature_norm(ufm.mixed_target(k, lam), norm, decay) for lam in SHARES])
        panels[0].plot(
            SHARES, norms / norms[-1], label=f"k = {k}, c = {ufm.scale_constant(k, norm, decay):g}"
        )
    panels[0].set(title="‖h(λ)‖ / ‖h(1)‖, cross entropy", xlabel="λ", ylim=(0, None))
    panels[0].legend()
    k, (norm, decay) = 10, MODELS[10]
    weight = simplex_etf(k, k, norm, torch.Generator().manual_seed(0)).numpy()
    shares = np.linspace(0, 1, 41)
    for panel, (title, feature, model_decay) in zip(
        panels[1:],
        (
            ("cross entropy, k = 10, c = 1000", ufm.features, decay),
            ("cross entropy, k = 10, c = 10", ufm.features, 100 * decay),
            ("squared error, k = 10", ufm.features_squared_error, decay),
        ),
        strict=True,
    ):
        targets = [ufm.mixed_target(k, lam, a, b) for a, b in ((0, 1), (0, 2), (1, 2)) for lam in shares]
        h = torch.tensor(np.stack([feature(weight, target, model_decay) for target in targets]))
        # The rows are drawn at the same-class features' norm: only their directions matter here.
        rows = torch.tensor(weight[:3]) * h[0].norm() / norm
        plane = plane_of_three(rows, h).numpy()
        colour = np.zeros((len(plane), 3))
        colour[:, 2] = np.tile(2 * np.abs(shares - 0.5), 3)
        panel.scatter(*plane.T, s=8, c=colour, linewidths=0)
        pure = plane_of_three(rows, h[[len(shares) - 1, 0, len(shares)]]).numpy()
        panel.scatter(*pure.T, s=40, c="red", label="same class")
        panel.scatter(
            *plane_of_three(rows, rows).numpy().T, s=60, c="black", marker="^", label="direction of W"
        )
        panel.set_title(title)
        panel.set_aspect("equal", adjustable="datalim")
    panels[1].legend(loc="center", fontsize=8)
    figure.savefig(folder / "mixup_neural_collapse-theory.png", dpi=70)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Say where the pictures go: python scripts/unconstrained_features.py <folder>")
    target_folder = Path(sys.argv[1])
    target_folder.mkdir(parents=True, exist_ok=True)
    fixed_classifier()
    free_classifier()
    draw(target_folder)
