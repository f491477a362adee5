"""Tree ensembles as adaptive smoothers, and how many parameters they effectively use (Curth et al. 2024).

Source of every equation: the released code, https://github.com/AliciaCurth/understanding-random-forests. The paper's
text (arXiv:2402.01502) was not seen.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from torch import Tensor, nn

from regbench import seeding
from regbench.data.samples import SampleSets
from regbench.errors import UserError, unknown
from regbench.registry import Paper, register
from regbench.regularizers.theory.base import SampleRegression

KINDS = ("forest", "boosting")


def leaf_means(values: Tensor, train_leaf: Tensor, leaf: Tensor, times: Tensor | None = None) -> Tensor:
    """Row j is the mean of the values of the training samples in the leaf of x_j, (m, k).

    Of values = I this is a tree's smoother: s_i(x) = w_i 1{leaf(x_i) = leaf(x)} / sum_l w_l 1{leaf(x_l) = leaf(x)}.

    Args:
        values: (n, k).
        train_leaf: int64 (n,), the leaf of each training sample.
        leaf: int64 (m,), the leaves of x.
        times: w, int64 (n,), how often the tree's bootstrap sample holds each training sample; None: once.

    >>> leaf_means(torch.eye(3), torch.tensor([7, 7, 9]), torch.tensor([7, 9]), torch.tensor([3, 1, 2]))
    tensor([[0.7500, 0.2500, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    leaves, place = train_leaf.unique(return_inverse=True)
    drawn = values.new_ones(len(place)) if times is None else times.to(values)
    count = values.new_zeros(len(leaves)).index_add_(0, place, drawn)
    share = drawn / count[place]
    means = values.new_zeros(len(leaves), values.shape[1]).index_add_(0, place, values * share[:, None])
    return means[torch.searchsorted(leaves, leaf)]


def effective_parameters(weights: Tensor) -> Tensor:
    """p = (n / m) sum_j ||s(x_j)||², a scalar: 1 where each prediction is the mean of all targets, n where it is one of
    them.

    Args:
        weights: S, (m, n): a row of weights of the n training targets for each of m inputs.

    >>> effective_parameters(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]))  # 4 / 2 · (1/2 + 1)
    tensor(3.)
    """
    return weights.shape[1] * weights.square().sum(1).mean()


def decompose(predictions: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(RepBias, ModVar, mean error) of R fits to the same data.

    With MSE_r the error of fit r and r* the best of them: RepBias = MSE_r*; ModVar = mean over r and inputs of
    (f_r − f_r*)²; the mean error is the mean of MSE_r.

    Args:
        predictions: f, (R, m).
        target: (m,), of the inputs that the fits are tested on.

    >>> decompose(torch.tensor([[1.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 0.0]))  # MSE 1/2 and 9/2; (0 + 4/2) / 2
    (tensor(0.5000), tensor(1.), tensor(2.5000))
    """
    errors = (predictions - target).square().mean(1)
    best = predictions[errors.argmin()]
    return errors.min(), (predictions - best).square().mean(), errors.mean()


def degrees_of_freedom(targets: Tensor, predictions: Tensor, noise_sd: Tensor) -> Tensor:
    """sum_i Cov(y_i, f(x_i)) / σ_i², a scalar, with covariances over R fits to resampled targets (divided by R − 1).

    Args:
        targets: y, (R, n): each row is a draw of the targets at the same inputs.
        predictions: f, (R, n): at these inputs, of the fit to the row's targets.
        noise_sd: σ, (n,).

    >>> y = torch.tensor([[0.0, 4.0], [2.0, 8.0]])
    >>> degrees_of_freedom(y, 0.5 * y, torch.tensor([1.0, 2.0]))  # 0.5 · 2 / 1 + 0.5 · 8 / 4
    tensor(2.)
    """
    products = (targets - targets.mean(0)) * (predictions - predictions.mean(0))
    return (products.sum(0) / (len(targets) - 1) / noise_sd**2).sum()


class Ensemble:
    """scikit-learn's random forest, or its gradient boosting from an initial prediction of 0, that grows by trees.

    Args:
        kind: forest | boosting.
        rate: learning rate of boosting.
        random_state: of the whole ensemble; one with fewer trees holds the first ones of one with more.
        options: bootstrap, max_features, max_leaf_nodes, see `ForestSmoothers`.
    """

    def __init__(self, kind: str, *, bootstrap: bool, rate: float, random_state: int, **options):
        self.boosting, self.rate = kind == "boosting", rate
        options |= {"random_state": random_state, "max_depth": None, "warm_start": True}
        self.model = (
            GradientBoostingRegressor(init="zero", learning_rate=rate, **options)
            if self.boosting
            else RandomForestRegressor(bootstrap=bootstrap, **options)
        )
        self.times: list[Tensor | None] = []  # of each tree, see `leaf_means`

    def grow(self, features: np.ndarray, target: np.ndarray, count: int) -> None:
        """Adds trees, always fitted to the same samples (n, d) and (n,), until there are `count`."""
        if count <= len(self.times):
            return
        self.model.set_params(n_estimators=count).fit(features, target)
        if self.boosting or not self.model.bootstrap:
            self.times = [None] * count
        else:
            drawn = self.model.estimators_samples_
            self.times = [torch.from_numpy(np.bincount(rows, minlength=len(target))) for rows in drawn]

    def _tree(self, k: int):
        return self.model.estimators_[k][0] if self.boosting else self.model.estimators_[k]

    def leaves(self, k: int, features: np.ndarray) -> Tensor:
        """The leaf of each row in the k-th tree, int64 (m,)."""
        return torch.from_numpy(self._tree(k).apply(features)).long()

    def predictions(self, features: np.ndarray, sizes: Sequence[int]) -> Tensor:
        """Of the first k trees, for each k of `sizes`, which ascend: (sizes, m)."""
        total, found = np.zeros(len(features)), []
        for k in range(sizes[-1]):
            total += self._tree(k).predict(features) * (self.rate if self.boosting else 1)
            if k + 1 in sizes:
                found.append(total / (1 if self.boosting else k + 1))
        return torch.from_numpy(np.stack(found))


class Smoother:
    """The weights S of an ensemble's first trees, for several sets of inputs; one of them is `train`, the training set.

    Forest: S is the mean of the trees' smoothers. Boosting: with A a tree's leaf means, and because it is fitted to the
    residuals y − S_train y, S(x) ← S(x) + rate (A(x) − A(x) S_train).

    Args:
        ensemble: whose trees are added with `advance`.
        inputs: name → features (m, d).
    """

    def __init__(self, ensemble: Ensemble, inputs: Mapping[str, np.ndarray]):
        self.ensemble, self.inputs, self.trees = ensemble, inputs, 0
        n = len(inputs["train"])
        self._sums = {name: torch.zeros(len(x), n, dtype=torch.float64) for name, x in inputs.items()}
        self._identity = torch.eye(n, dtype=torch.float64)

    def advance(self, trees: int) -> None:
        """To the first `trees` trees, of which the ensemble must have as many."""
        for k in range(self.trees, trees):
            leaf = {name: self.ensemble.leaves(k, x) for name, x in self.inputs.items()}
            boosting, values = self.ensemble.boosting, self._identity
            if boosting:
                values = self.ensemble.rate * (values - self._sums["train"])
            for name, total in self._sums.items():
                total += leaf_means(values, leaf["train"], leaf[name], self.ensemble.times[k])
        self.trees = max(self.trees, trees)

    def weights(self, name: str) -> Tensor:
        """S of a set of inputs, (m, n)."""
        return self._sums[name] / (1 if self.ensemble.boosting else self.trees)


@register(
    "forest_smoothers",
    task="regression",
    paper=Paper(
        title="Why do Random Forests Work? Understanding Tree Ensembles as Self-Regularizing Adaptive Smoothers",
        authors="Alicia Curth, Alan Jeffares, Mihaela van der Schaar",
        year=2024,
        venue="",
        arxiv="2402.01502",
        code="https://github.com/AliciaCurth/understanding-random-forests",
    ),
)
class ForestSmoothers(SampleRegression):
    """Forests that fit their training data exactly smooth more, that is use fewer effective parameters, on new inputs
    than single trees, the more so the more trees, the more randomness in building them, and the farther the inputs are
    from the training data; up to a point this lowers the test error.

    An epoch adds trees, so that training curves are curves over the size of the ensemble. A prediction is S(x) y, with
    weights S(x) of the n training targets y. Nothing follows a gradient: no network, no optimiser.

    Measured after each epoch: `train/ep` and `val/ep`, effective parameters on training and validation inputs, and
    `train/trace`, the trace of S. At the test, of the whole ensemble, and with `_k` at the end of the name of its first
    k trees for each k of `sizes`: `ep`, on test inputs; `ep_train`; `ep_gap`, the second less the first; `trace`; `mse`
    and `mse_train`; `in_sample`, the error at the training inputs with targets drawn anew (where the data have these).

    Args:
        kind: forest (random forest) | boosting (gradient boosting with squared error from a prediction of 0).
        bootstrap: whether each tree of a forest is fitted to n samples drawn with replacement; false: to all.
        max_features: share of the features, in (0, 1], that a split may choose from, drawn anew for each split.
        max_leaf_nodes: leaves of a tree at most; None: as many as there are different samples.
        learning_rate: share of each tree's prediction that boosting adds, in (0, 1]; a forest has no use for it.
        trees: trees that an epoch adds.
        sizes: numbers of trees at which the test measures too; those that the ensemble has not reached are left out.
        refits: R, fits to the same data with other random numbers, for `rep_bias`, `mod_var` and `mean_mse`, see
            `decompose`; 0: none. The ensemble itself is the first.
        resamplings: fits to targets drawn anew at the same inputs, for `dof`, see `degrees_of_freedom`, and `variance`,
            the test predictions' over these fits; 0: none. Needs generated data with noise.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        kind: str = "forest",
        bootstrap: bool = False,
        max_features: float = 0.33,
        max_leaf_nodes: int | None = None,
        learning_rate: float = 0.05,
        trees: int = 1,
        sizes: Sequence[int] = (1,),
        refits: int = 0,
        resamplings: int = 0,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if kind not in KINDS:
            raise unknown("regularizer.kind", str(kind), KINDS)
        if num_classes != 1:
            raise UserError(f"forest_smoothers predicts one number; the data have {num_classes} outputs.")
        if kind == "boosting" and bootstrap:
            raise UserError("Boosting fits each tree to all samples: set regularizer.bootstrap=false.")
        for name, share in (("max_features", max_features), ("learning_rate", learning_rate)):
            if not 0 < share <= 1:
                raise UserError(f"regularizer.{name}={share} is a share, above 0 and at most 1.")
        if max_leaf_nodes is not None and max_leaf_nodes < 2:
            raise UserError(f"regularizer.max_leaf_nodes={max_leaf_nodes} must be 2 or more, or null.")
        if trees < 1 or any(size < 1 for size in sizes):
            raise UserError(
                f"regularizer.trees={trees} and all of regularizer.sizes={list(sizes)} are 1 or more."
            )
        for name, fits in (("refits", refits), ("resamplings", resamplings)):
            if fits < 0 or fits == 1:
                raise UserError(f"regularizer.{name}={fits}: it takes 2 fits or more, or 0 for none.")
        self.automatic_optimization = False  # there is no loss to follow down
        self.options = {
            "kind": kind,
            "bootstrap": bootstrap,
            "rate": float(learning_rate),
            "max_features": float(max_features),
            "max_leaf_nodes": max_leaf_nodes,
        }
        self.trees, self.sizes = trees, tuple(sizes)
        self.refits, self.resamplings = refits, resamplings
        # Training features (n, d) and target (n,); weights of the training and validation inputs; of the last test the
        # predictions (m,) and the measures.
        self._samples: tuple[np.ndarray, np.ndarray] | None = None
        self._ensemble = self._new_ensemble()
        self._smoother: Smoother | None = None
        self._tested: tuple[Tensor, dict[str, Tensor]] | None = None
        # The state is the number of trees: the same data, options and seed give the same trees again.
        self.register_buffer("grown", torch.zeros((), dtype=torch.int64))

    def _new_ensemble(self, fit: int = 0) -> Ensemble:
        """Without trees; `fit` counts ensembles that differ in nothing but their random numbers."""
        return Ensemble(**self.options, random_state=seeding.derive(self.seed, "ensemble", fit) % 2**31)

    def configure_optimizers(self) -> list:
        return []

    # -- training ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        sets = self.trainer.datamodule.sets
        noise_sd = sets.train.hidden.get("noise_sd")
        if self.resamplings and (noise_sd is None or noise_sd.min() <= 0):
            raise UserError(
                f"regularizer.resamplings={self.resamplings} draws targets anew, which needs generated data with "
                "noise, e.g. dataset=mars_add dataset.sigma=1."
            )
        self._take(sets.train.fields)
        val = {} if sets.val is None else {"val": sets.val.fields["features"].numpy()}
        self._smoother = Smoother(self._ensemble, {"train": self._samples[0]} | val)
        self._smoother.advance(int(self.grown))  # 0, or what the run that is resumed had grown

    def _take(self, train: Mapping[str, Tensor]) -> None:
        """Takes the training samples, and grows the trees that the state counts."""
        features, target = self.fields(train)
        self._samples = features.cpu().numpy(), target[:, 0].double().cpu().numpy()
        self._ensemble.grow(*self._samples, int(self.grown))

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Adds an epoch's trees; the mean squared error (scalar) of all of them on the batch, the training set."""
        features, target = self.fields(batch)
        if self._samples is None:  # in a loop of one's own, without a trainer
            self._take(batch)
            self._smoother = Smoother(self._ensemble, {"train": self._samples[0]})
        if len(features) != len(self._samples[0]):
            raise UserError(
                f"Each tree is fitted to all {len(self._samples[0])} training samples at once, and this batch has "
                f"{len(features)}: set dataset.batch_size=null, on one process."
            )
        count = int(self.grown) + self.trees
        self._ensemble.grow(*self._samples, count)
        self._smoother.advance(count)
        self.grown.fill_(count)
        return self.objective(self._predictions("train").to(target)[:, None], target)

    def _predictions(self, name: str) -> Tensor:
        """S y of the smoother's inputs, (m,)."""
        return self._smoother.weights(name) @ torch.from_numpy(self._samples[1])

    def training_step(self, batch, batch_idx: int) -> None:
        self.track(self.training_loss(batch), batch_idx)
        weights = self._smoother.weights("train")
        self.watch("ep", effective_parameters(weights))
        self.watch("trace", weights.trace())

    # -- evaluation --------------------------------------------------------------------------------------------------

    def weights(self, features: Tensor) -> Tensor:
        """S of any inputs (m, d), float64 (m, n)."""
        if self._samples is None or not int(self.grown):
            raise UserError("There are no trees yet: call training_loss(batch) first, once for each epoch.")
        smoother = Smoother(self._ensemble, {"train": self._samples[0], "inputs": features.cpu().numpy()})
        smoother.advance(int(self.grown))
        return smoother.weights("inputs")

    def forward(self, features: Tensor) -> Tensor:
        """S y, (m, 1), of inputs (m, d)."""
        return (self.weights(features) @ torch.from_numpy(self._samples[1]))[:, None].to(features)

    def validation_step(self, batch, batch_idx: int) -> None:
        target = self.fields(batch)[1]
        predictions = self._predictions("val")[batch["index"].cpu()]
        self.val_metrics.update(predictions.to(target)[:, None], target)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("val/ep", effective_parameters(self._smoother.weights("val")))

    def on_test_epoch_start(self) -> None:
        sets = self.trainer.datamodule.sets
        self._take(sets.train.fields)
        self._tested = self._measure_test(sets)

    def test_step(self, batch, batch_idx: int) -> None:
        target = self.fields(batch)[1]
        self.test_metrics.update(self._tested[0][batch["index"].cpu()].to(target)[:, None], target)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.log_dict({f"test/{name}": value for name, value in self._tested[1].items()})

    def _measure_test(self, sets: SampleSets) -> tuple[Tensor, dict[str, Tensor]]:
        """The whole ensemble's predictions (m,), and all measures but its `mse`, which is a metric of the family's."""
        count = int(self.grown)
        sizes = sorted({size for size in self.sizes if size <= count} | {count})
        (features, y), test = self._samples, sets.test.fields
        x, truth = test["features"].numpy(), test["target"][:, 0].double()
        targets = torch.from_numpy(y)
        resampled = sets.train.hidden.get("resampled")
        smoother = Smoother(self._ensemble, {"train": features, "test": x})
        found: dict[int, dict[str, Tensor]] = {}
        for size in sizes:
            smoother.advance(size)
            train, weights = smoother.weights("train"), smoother.weights("test")
            fitted, predictions = train @ targets, weights @ targets
            ep, ep_train = effective_parameters(weights), effective_parameters(train)
            found[size] = {
                "mse": F.mse_loss(predictions, truth),
                "mse_train": F.mse_loss(fitted, targets),
                "ep": ep,
                "ep_train": ep_train,
                "ep_gap": ep_train - ep,
                "trace": train.trace(),
            }
            if resampled is not None:
                found[size]["in_sample"] = F.mse_loss(fitted, resampled[:, 0].double())
        if self.refits:
            fits = torch.stack(
                [self._fit(fit, y, count).predictions(x, sizes) for fit in range(self.refits)], 1
            )
            for size, predictions in zip(sizes, fits, strict=True):
                names = ("rep_bias", "mod_var", "mean_mse")
                found[size] |= dict(zip(names, decompose(predictions, truth), strict=True))
        if self.resamplings:
            mean, noise_sd = (sets.train.hidden[name][:, 0] for name in ("truth", "noise_sd"))
            generator = seeding.generator(self.seed, "resamplings")
            draws = mean + noise_sd * torch.randn(self.resamplings, len(mean), generator=generator)
            fits = [
                self._fit(0, draw.numpy(), count) for draw in draws
            ]  # the same random numbers, as in the code
            at_train = torch.stack([fit.predictions(features, sizes) for fit in fits], 1)
            at_test = torch.stack([fit.predictions(x, sizes) for fit in fits], 1)
            for size, fitted, predictions in zip(sizes, at_train, at_test, strict=True):
                found[size]["dof"] = degrees_of_freedom(draws, fitted, noise_sd)
                found[size]["variance"] = predictions.var(0, correction=0).mean()
        measures = {
            f"{name}_{size}": value
            for size in sizes
            if size in self.sizes
            for name, value in found[size].items()
        }
        whole = {name: value for name, value in found[count].items() if name != "mse"}
        return smoother.weights("test") @ targets, measures | whole

    def _fit(self, fit: int, target: np.ndarray, count: int) -> Ensemble:
        """A new ensemble of `count` trees on the training features."""
        ensemble = self._new_ensemble(fit)
        ensemble.grow(self._samples[0], target, count)
        return ensemble
