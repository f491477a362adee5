"""How far a code's latents are the factors of variation: InfoMEC (Hsu et al. 2023), and the older MIG, DCI, modularity.

The definitions of InfoMEC are those of its authors' standalone file, kylehkhsu/latent_quantization
disentangle/metrics/infomec.py. All functions take NumPy arrays: factors as integers (N, F), latents (N, Z); `nmi` and
`importance` are (F, Z).
"""

import math
import warnings

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import Lasso, LogisticRegression
from sklearn.metrics import log_loss, mutual_info_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from regbench.errors import unknown

NEIGHBOURS = 10  # of the estimator of mutual information with a continuous latent
ACTIVE = 20  # a continuous latent is active where its range is above the largest range's share of 1 / ACTIVE
TINY = 1e-9  # information below it, in units of a factor's entropy, is rounding
REGRESSORS = ("boosting", "forest", "lasso")


def entropies(factors: np.ndarray) -> np.ndarray:
    """H(s_i) in nats, (F,)."""
    return np.array([mutual_info_score(s, s) for s in factors.T])


def mutual_information(factors: np.ndarray, latents: np.ndarray, discrete: bool) -> np.ndarray:
    """I(s_i; z_j) in nats, (F, Z).

    Args:
        discrete: whether the latents are symbols, whose mutual information is that of the counts; else it is estimated
            from each latent's nearest neighbours (Ross 2014), with noise of a fixed seed as scikit-learn adds it.

    >>> square = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> (mutual_information(square, square, discrete=True) / math.log(2)).round(6)
    array([[1., 0.],
           [0., 1.]])
    """
    if discrete:
        return np.array([[max(mutual_info_score(s, z), 0.0) for z in latents.T] for s in factors.T])
    scaled = StandardScaler().fit_transform(latents)
    return np.stack(
        [
            mutual_info_classif(scaled, s, discrete_features=False, n_neighbors=NEIGHBOURS, random_state=0)
            for s in factors.T
        ]
    )


def active(latents: np.ndarray, discrete: bool) -> np.ndarray:
    """Which latents vary, bool (Z,): any range above 0 for symbols, above a twentieth of the largest for numbers."""
    ranges = latents.max(0) - latents.min(0)
    return ranges > (0 if discrete else ranges.max() / ACTIVE)


def _concentration(table: np.ndarray) -> float:
    """Mean over the rows of max / sum, scaled from [1/n, 1] to [0, 1] for rows of n ≥ 0 entries.

    A row of zeros says nothing and counts as spread evenly; with n = 1, or without rows, the value is 0.
    """
    if len(table) == 0 or table.shape[1] < 2:
        return 0.0
    n, total = table.shape[1], table.sum(1)
    shares = np.divide(table.max(1), total, out=np.full(len(table), 1 / n), where=total > TINY)
    return float((shares.mean() - 1 / n) / (1 - 1 / n))


def infom(nmi: np.ndarray) -> float:
    """InfoM, modularity: whether each latent informs of one factor only, from 0 to 1.

    mean_j max_i NMI_ij / Σ_i NMI_ij over the active latents, scaled from [1/F, 1] to [0, 1].

    >>> infom(np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]))  # (1 + 1 + 1/2) / 3 is two thirds of the way from 1/2 to 1
    0.666...
    """
    return _concentration(nmi.T)


def infoc(nmi: np.ndarray) -> float:
    """InfoC, compactness: whether each factor is in one latent only, from 0 to 1; as InfoM, over the factors.

    >>> infoc(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))  # shares 1/2 and 1: 3/4, where 1/3 is the least
    0.625
    """
    return _concentration(nmi)


def infoe(factors: np.ndarray, latents: np.ndarray, discrete: bool) -> float:
    """InfoE, explicitness: how well a linear classifier reads each factor from the code, from 0 to 1.

    mean_i (H0_i − H_i) / H0_i. H_i is the log loss of a logistic regression without penalty, classes balanced, on the
    data it was fitted to, from one-hot symbols or standardised numbers; H0_i = log(number of values) is that of the
    same regression from nothing.

    Args:
        discrete: whether the latents are symbols.
    """
    code = OneHotEncoder().fit_transform(latents) if discrete else StandardScaler().fit_transform(latents)
    gains = []
    for s in factors.T:
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 100 steps are the definition
            model.fit(code, s)
        null = math.log(len(np.unique(s)))
        gains.append(1 - log_loss(s, model.predict_proba(code)) / null)
    return float(np.mean(gains))


def infomec(factors: np.ndarray, latents: np.ndarray, discrete: bool) -> dict[str, float]:
    """InfoM, InfoE and InfoC, and the number of active latents. Without an active latent all are 0.

    InfoM and InfoC are of NMI_ij = I(s_i; z_j) / H(s_i) over the active latents.
    """
    alive = active(latents, discrete)
    if not alive.any():
        return {"infom": 0.0, "infoe": 0.0, "infoc": 0.0, "active": 0.0}
    nmi = mutual_information(factors, latents[:, alive], discrete) / entropies(factors)[:, None]
    return {
        "infom": infom(nmi),
        "infoe": infoe(factors, latents, discrete),
        "infoc": infoc(nmi),
        "active": float(alive.sum()),
    }


class InfoMEC(Metric):
    """InfoM, InfoE and InfoC of all codes that it was updated with.

    Args:
        discrete: whether the latents are symbols.
    """

    full_state_update = False

    def __init__(self, discrete: bool):
        super().__init__()
        self.discrete = discrete
        self.add_state("factors", [], dist_reduce_fx="cat")
        self.add_state("latents", [], dist_reduce_fx="cat")

    def update(self, factors: Tensor, latents: Tensor) -> None:
        """Factors int64 (B, F) and latents (B, Z)."""
        self.factors.append(factors)
        self.latents.append(latents)

    def compute(self) -> dict[str, float]:
        return infomec(*self.code(), self.discrete)

    def code(self) -> tuple[np.ndarray, np.ndarray]:
        """(factors, latents) of all samples so far."""
        return dim_zero_cat(self.factors).cpu().numpy(), dim_zero_cat(self.latents).cpu().numpy()


# -- older measures ----------------------------------------------------------------------------------------------------


def discretised(latents: np.ndarray, bins: int = 20) -> np.ndarray:
    """Each latent as one of `bins` intervals of equal width between its least and its largest value, int (N, Z)."""
    symbols = []
    for z in latents.T:
        edges = np.histogram_bin_edges(z, bins)
        symbols.append(np.digitize(z, edges[1:-1]))
    return np.stack(symbols, axis=1)


def mig(information: np.ndarray, entropy: np.ndarray) -> float:
    """Mutual information gap (Chen et al. 2018): mean_i (largest − second largest I(s_i; z_j)) / H(s_i).

    Args:
        information: (F, Z) in nats.
        entropy: (F,) in nats.

    >>> mig(np.array([[0.75, 0.125, 0.25], [0.0, 0.5, 0.5]]), np.array([1.0, 1.0]))  # (0.5 + 0) / 2
    0.25
    """
    if information.shape[1] < 2:
        return float((information[:, 0] / entropy).mean())
    ordered = np.sort(information, axis=1)
    return float(((ordered[:, -1] - ordered[:, -2]) / entropy).mean())


def modularity(information: np.ndarray) -> float:
    """Modularity (Ridgeway & Mozer 2018): mean_j 1 − Σ_{i ≠ best} I_ij² / (I_best,j² (F − 1)).

    A latent without information counts 0.

    >>> modularity(np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))  # 1 − 1/(4·2) and 1 − 1/(1·2)
    0.6875
    """
    best = information.max(0) ** 2
    rest = (information**2).sum(0) - best
    share = np.divide(rest, best * (len(information) - 1), out=np.ones_like(best), where=best > 0)
    return float((1 - share).mean())


def dci_importance(
    factors: np.ndarray, latents: np.ndarray, regressor: str = "boosting", seed: int = 0
) -> tuple[np.ndarray, float]:
    """Importances (F, Z) of each latent for each factor, and how well factors are read (DCI; Eastwood & Williams 2018).

    Half of the samples, at random, fit a regressor for each factor; the other half measure it. Importances are those of
    scikit-learn's gradient boosting (as Locatello et al. 2019) or random forest, or the sizes of a lasso's coefficients
    (α = 0.02) of standardised latents. Informativeness is the mean accuracy of the classifiers, and R² of the lasso.

    Raises:
        UserError: an unknown regressor.
    """
    if regressor not in REGRESSORS:
        raise unknown("regressor", regressor, REGRESSORS)
    order = np.random.default_rng(seed).permutation(len(factors))
    fitted, held = order[: len(order) // 2], order[len(order) // 2 :]
    code = StandardScaler().fit_transform(latents)
    importance, scores = [], []
    for s in factors.T:
        model = {
            "boosting": lambda: GradientBoostingClassifier(random_state=seed),
            # at every split all latents: chosen ones would spread the importance over those that were not
            "forest": lambda: RandomForestClassifier(max_features=None, random_state=seed),
            "lasso": lambda: Lasso(alpha=0.02),
        }[regressor]()
        model.fit(code[fitted], s[fitted])
        importance.append(abs(model.coef_) if regressor == "lasso" else model.feature_importances_)
        scores.append(model.score(code[held], s[held]))
    return np.stack(importance), float(np.mean(scores))


def dci(importance: np.ndarray) -> tuple[float, float]:
    """(disentanglement, completeness) of importances (F, Z) (Eastwood & Williams 2018).

    Disentanglement: Σ_j ρ_j (1 − H_F(P_·j)), with P_·j latent j's importances over the factors divided by their sum,
    H_F their entropy to base F and ρ_j the latent's share of all importance. Completeness: the same over the latents.

    >>> d, c = dci(np.array([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]]))
    >>> d, round(c, 6)  # factor 0 is spread evenly over 2 of 3 latents and holds half of all: 1/2 (1 − log_3 2) + 1/2
    (1.0, 0.684535)
    """
    return _evenness_gap(importance.T), _evenness_gap(importance)


def _evenness_gap(table: np.ndarray) -> float:
    """Σ_r w_r (1 − H_n(row r)), rows of n entries ≥ 0, with w their shares of the table's sum; 0 of an empty one."""
    total = table.sum(1)
    if total.sum() == 0 or table.shape[1] < 2:
        return 0.0
    p = np.divide(table, total[:, None], out=np.zeros_like(table), where=total[:, None] > 0)
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1) / math.log(table.shape[1])
    return float((total / total.sum() * (1 - entropy)).sum())
