"""Modular arithmetic: corrupted and right labels, how periodic the weights are, and what pruned units leave."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from scipy.stats import spearmanr
from torch import Tensor

from regbench import seeding
from regbench.backbones.modular import ModularMLP
from regbench.data.modular import OPERATIONS
from regbench.data.samples import Samples
from regbench.errors import UserError
from regbench.functional.fourier import inverse_participation_ratio
from regbench.measures.pictures import draw_curves, log_picture
from regbench.regularizers.theory.base import SampleClassifier

ORDERS = ("lowest", "highest", "random")  # of the units that are pruned: by IPR, or drawn
CURVES = {  # name → style and label in the picture
    "train/accuracy": ("C0-", "training pairs, given labels"),
    "train/corrupted": ("C3--", "corrupted pairs, given labels"),
    "train/corrupted_right": ("C2--", "corrupted pairs, right results"),
    "train/uncorrupted": ("C0--", "uncorrupted training pairs"),
    "train/test_accuracy": ("k-", "test pairs"),
}


@cache
def residue_order(p: int, operation: str) -> Tensor | None:
    """int64 (n,): residues modulo p in the order in which the operation adds up their places modulo n.

    For addition they are all, as they come. For multiplication with p prime they are g^0, g^1, … of a primitive root g,
    as g^a g^b = g^(a + b); 0 has no place. Modulo another p there is no such order, nor for another operation: None.

    >>> residue_order(5, "multiplication"), residue_order(6, "multiplication")
    (tensor([1, 2, 4, 3]), None)
    """
    if operation == "addition":
        return torch.arange(p)
    for g in range(1, p) if operation == "multiplication" else ():
        powers = [pow(g, k, p) for k in range(p - 1)]
        if len(set(powers) - {0}) == p - 1:  # all residues but 0, so that p is prime
            return torch.tensor(powers)
    return None


def operation_of(pair: Tensor, result: Tensor, p: int) -> str:
    """The name of the operation modulo p that gives these results, int64 (N,), of the pairs (N, 2); "" for another."""
    i, j = pair.unbind(1)
    return next((name for name, f in OPERATIONS.items() if torch.equal(f(i, j) % p, result)), "")


def unit_ipr(network: ModularMLP, order: Tensor) -> Tensor:
    """(N,): mean over U, V and W of the inverse participation ratio of each hidden unit's weights.

    On the CPU in float64: strong weight decay leaves weights whose fourth powers float32 does not hold.

    Args:
        order: of the residues, see `residue_order`.
    """
    ratios = [inverse_participation_ratio(weights.cpu().double()[:, order]) for weights in network.units()]
    return torch.stack(ratios).mean(0)


def accuracies(prediction: Tensor, train: Samples, test: Samples) -> dict[str, float]:
    """Fractions of right predictions.

    Args:
        prediction: int64 (n + m,), of the n training pairs, then of the m test pairs.

    Returns:
        `train`: of the training pairs, against the given labels; `corrupted` and `uncorrupted`: of the two parts;
        `corrupted_right`: of the corrupted pairs, against the right results; `test`. A part without pairs is left out.
    """
    of_train, of_test = prediction.split([len(train), len(test)])
    fits, right = of_train == train.fields["label"], of_train == train.hidden["clean"]
    corrupted = train.hidden["corrupted"]
    parts = {
        "train": fits,
        "corrupted": fits[corrupted],
        "uncorrupted": fits[~corrupted],
        "corrupted_right": right[corrupted],
        "test": of_test == test.fields["label"],
    }
    return {name: float(part.double().mean()) for name, part in parts.items() if len(part)}


def pruned_predictions(
    features: Tensor, weight: Tensor, order: Tensor, percent: Sequence[int]
) -> Iterator[Tensor]:
    """int64 (B,), for each percentage: argmax of W z without the first so many units in `order`.

    Without its column of W a unit is gone: what its other weights, or a norm's bias, would give is multiplied by 0.

    Args:
        features: z, (B, N), the input of the last layer.
        weight: W, (p, N).
        order: int64 (N,), a permutation of the units.
        percent: whole numbers from 0 to 100.

    >>> z, weight = torch.tensor([[1.0, 3.0]]), torch.eye(2)
    >>> [int(p) for p in pruned_predictions(z, weight, torch.tensor([1, 0]), [0, 50])]
    [1, 0]
    """
    for share in percent:
        kept = order[round(share / 100 * len(order)) :].sort().values
        yield (features[:, kept] @ weight[:, kept].T).argmax(1)


class ModularMeasures(pl.Callback):
    """Measures on all pairs, in evaluation mode; training never sees which labels are corrupted.

    Logged after an epoch, as `train/…`: `accuracy` on the training pairs with their given labels, `corrupted` and
    `uncorrupted`, the same on the two parts, `corrupted_right`, the share of the corrupted pairs with the right result
    as prediction, and `test_accuracy`. Without corrupted pairs theirs are left out. Of a `ModularMLP` also `ipr`, the
    median over the hidden units of their inverse participation ratio, and `periodic`, the share of units where it is
    above 0.5. Residues are in the order in which solutions are periodic (`residue_order`); where there is none, as in
    multiplication modulo a number that is no prime, all that goes by the ratio is left out, and `prune` is refused.

    At the test: the same as `test/train_accuracy`, `test/corrupted` and so on; `test/right_labels`, the training
    accuracy of a network that is right on all pairs; for batch normalisation `test/gain_high_ipr` and
    `test/gain_low_ipr`, the mean of its absolute weights over the half of the units with the higher and the lower IPR,
    and `test/gain_ipr`, Spearman's correlation of the two.

    With `prune`, of a `ModularMLP`, also `test/<order>_<percent>_<part>`: accuracy with so many units pruned, the ones
    with the `lowest` or `highest` IPR first, or in `random` order (stream evaluation), on the parts `corrupted`,
    `uncorrupted`, `train` and `test`.

    The curves are drawn to figures/modular.png in the run's folder, pruning to figures/pruning.png, and to W&B where
    that is on.

    Args:
        every: epochs between two measurements; the last epoch is always measured.
        prune: percentages of the hidden units, whole numbers from 0 to 99.
        figures: whether the curves are drawn.
    """

    def __init__(self, *, every: int = 10, prune: Sequence[int] = (), figures: bool = True):
        if every < 1:
            raise UserError(f"callbacks.modular.every={every} is a number of epochs, 1 or more.")
        if any(not isinstance(share, int) or not 0 <= share < 100 for share in prune):
            raise UserError(
                f"callbacks.modular.prune={list(prune)} holds percentages, whole numbers from 0 to 99."
            )
        self.every = every
        self.prune = list(prune)
        self.figures = figures
        self.curves: list[dict[str, float]] = []
        self.order: Tensor | None = None  # of the residues; `setup` looks at the data

    def state_dict(self) -> dict[str, Any]:
        return {"curves": self.curves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curves = state["curves"]

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        hidden = getattr(trainer.datamodule.sets.train, "hidden", {})
        if not isinstance(module, SampleClassifier) or "corrupted" not in hidden:
            raise UserError(
                "callbacks=modular measures modular arithmetic, e.g. regularizer=grokking; leave it out for other data."
            )
        train, test, p = trainer.datamodule.sets.train, trainer.datamodule.sets.test, module.num_classes
        pair = torch.cat([train.fields["pair"], test.fields["pair"]])
        operation = operation_of(pair, torch.cat([train.hidden["clean"], test.fields["label"]]), p)
        self.order = residue_order(p, operation)
        if self.prune and self.order is None:
            raise UserError(
                "callbacks.modular.prune goes by how periodic the units are, which is defined for addition, and for "
                f"multiplication modulo a prime: take dataset.operation=addition, or another dataset.p than {p}."
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every and epoch < trainer.max_epochs:
            return
        values = self._accuracies(trainer, module) | self._periodicity(module)
        names = {"train": "accuracy", "test": "test_accuracy"}
        logged = {f"train/{names.get(name, name)}": value for name, value in values.items()}
        self.curves.append({"epoch": trainer.current_epoch, **logged})
        module.log_dict(logged)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        train = trainer.datamodule.sets.train
        values = self._accuracies(trainer, module)
        del values["test"]  # the method's own test/accuracy
        values["train_accuracy"] = values.pop("train")
        values["right_labels"] = float((train.fields["label"] == train.hidden["clean"]).double().mean())
        values |= self._periodicity(module) | gains(module, self.order)
        pruned = self._pruned(trainer, module)
        for (order, share), parts in pruned.items():
            values |= {f"{order}_{share}_{part}": value for part, value in parts.items()}
        module.log_dict({f"test/{name}": value for name, value in values.items()})
        if self.figures and self.curves:
            log_picture(
                trainer,
                "modular",
                "train/modular",
                lambda path: draw_curves(path, self.curves, CURVES, "accuracy"),
            )
        if self.figures and pruned:
            log_picture(trainer, "pruning", "test/pruning", lambda path: draw_pruning(path, pruned))

    # -- measuring -------------------------------------------------------------------------------------------------

    @staticmethod
    def _pairs(trainer: pl.Trainer, module: pl.LightningModule) -> Tensor:
        sets = trainer.datamodule.sets
        return torch.cat([split.fields["pair"] for split in (sets.train, sets.test)]).to(module.device)

    @torch.no_grad()
    def _accuracies(self, trainer: pl.Trainer, module: SampleClassifier) -> dict[str, float]:
        training = module.training
        module.eval()
        with trainer.strategy.precision_plugin.forward_context():
            prediction = module(self._pairs(trainer, module)).argmax(1).cpu()
        module.train(training)
        return accuracies(prediction, trainer.datamodule.sets.train, trainer.datamodule.sets.test)

    @torch.no_grad()
    def _periodicity(self, module: SampleClassifier) -> dict[str, float]:
        network = module.backbone.network
        if not isinstance(network, ModularMLP) or self.order is None:
            return {}
        ipr = unit_ipr(network, self.order)
        return {"ipr": float(ipr.median()), "periodic": float((ipr > 0.5).double().mean())}

    @torch.no_grad()
    def _pruned(
        self, trainer: pl.Trainer, module: SampleClassifier
    ) -> dict[tuple[str, int], dict[str, float]]:
        """(order, percentage) → `accuracies`, without corrupted_right."""
        network, data = module.backbone.network, trainer.datamodule
        if not self.prune or not isinstance(network, ModularMLP):
            return {}
        features = module.backbone.outputs(self._pairs(trainer, module)).features
        rising = unit_ipr(network, self.order).argsort(stable=True)
        generator = seeding.generator(data.seeds["evaluation"], "prune")
        drawn = torch.randperm(len(rising), generator=generator)
        found = {}
        for name, order in zip(ORDERS, (rising, rising.flip(0), drawn), strict=True):
            predictions = pruned_predictions(
                features, network.out.weight, order.to(features.device), self.prune
            )
            for share, prediction in zip(self.prune, predictions, strict=True):
                parts = accuracies(prediction.cpu(), data.sets.train, data.sets.test)
                parts.pop("corrupted_right", None)
                found[name, share] = parts
        return found


@torch.no_grad()
def gains(module: SampleClassifier, order: Tensor | None) -> dict[str, float]:
    """How the weights of batch normalisation go with the IPR of their units; empty without it, or without an `order`
    of the residues.
    """
    network = module.backbone.network
    if (
        not isinstance(network, ModularMLP)
        or not isinstance(network.norm, torch.nn.BatchNorm1d)
        or order is None
    ):
        return {}
    ipr, gain = unit_ipr(network, order), network.norm.weight.abs().cpu()
    low, high = ipr.argsort(stable=True).tensor_split(2)
    found = {"gain_low_ipr": float(gain[low].mean()), "gain_high_ipr": float(gain[high].mean())}
    if len(gain.unique()) > 1:  # else there is no correlation
        found["gain_ipr"] = float(spearmanr(ipr, gain).statistic)
    return found


def draw_pruning(path: Path, pruned: dict[tuple[str, int], dict[str, float]]) -> None:
    """A panel for each order: accuracy on each part against the percentage that is pruned."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for order, panel in zip(ORDERS, figure.subplots(1, len(ORDERS), sharey=True), strict=True):
        shares = sorted(share for name, share in pruned if name == order)
        for i, part in enumerate(pruned[order, shares[0]]):
            panel.plot(shares, [pruned[order, share][part] for share in shares], f"C{i}.-", label=part)
        panel.set(title=f"{order} IPR first" if order != "random" else order, xlabel="units pruned, %")
    figure.axes[0].set(ylabel="accuracy", ylim=(-0.02, 1.02))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=80)
