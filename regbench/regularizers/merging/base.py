"""What methods share that make one network of several trained ones: averages of weights, their search, one start."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from regbench import seeding
from regbench.api import check_state
from regbench.backbones.backbone import Backbone, as_backbone
from regbench.data.base import DataModule
from regbench.data.sets import fingerprint
from regbench.errors import UserError
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1

Batches = Iterable[Mapping[str, Tensor] | tuple[Tensor, ...]]
Parameters = dict[str, Tensor]


def weighted_mean(
    parameters: Sequence[Mapping[str, Tensor]], weights: Sequence[Mapping[str, Tensor]]
) -> Parameters:
    """theta_j = sum_i w_ij theta_ij / sum_i w_ij for each entry j of each parameter.

    Where all weights of an entry are zero, it is the first model's.

    Args:
        parameters: of each model, name → tensor; all with the same names and shapes.
        weights: of each model, name → tensor that broadcasts to the parameter's shape, at least 0.

    >>> weighted_mean([{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 6.0])}],
    ...               [{"a": torch.tensor([3.0, 0.0])}, {"a": torch.tensor([1.0, 0.0])}])
    {'a': tensor([1.5000, 2.0000])}
    """
    merged = {}
    for name, first in parameters[0].items():
        total = sum(weight[name] for weight in weights)
        value = sum(weight[name] * own[name] for own, weight in zip(parameters, weights, strict=True)) / total
        merged[name] = torch.where(total > 0, value, first)
    return merged


def average(parameters: Sequence[Mapping[str, Tensor]], coefficients: Sequence[float]) -> Parameters:
    """sum_i lambda_i theta_i: every entry of a model counts alike.

    >>> average([{"a": torch.tensor([1.0])}, {"a": torch.tensor([3.0])}], [0.75, 0.25])
    {'a': tensor([1.5000])}
    """
    one = next(iter(parameters[0].values())).new_ones(())
    return weighted_mean(
        parameters, [dict.fromkeys(own, c * one) for own, c in zip(parameters, coefficients, strict=True)]
    )


def candidates(models: int, count: int, generator: torch.Generator) -> list[tuple[float, ...]]:
    """Coefficients to try, each a tuple that sums to 1: for two models a grid from (1, 0) to (0, 1), for more of them
    draws from a flat Dirichlet distribution, as the released code has it.

    >>> candidates(2, 3, torch.Generator())
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    """
    if models == 2:
        return [(1 - i / (count - 1), i / (count - 1)) for i in range(count)]
    # Exponential variables divided by their sum are flat on the simplex.
    draws = torch.empty(count, models, dtype=torch.float64).exponential_(generator=generator)
    return [tuple(row) for row in (draws / draws.sum(1, keepdim=True)).tolist()]


@torch.no_grad()
def accuracy(network: nn.Module, batches: Batches) -> float:
    """Share of the images of batches (image, label) that a network in evaluation mode classifies rightly."""
    network.eval()
    right = seen = 0
    for batch in batches:
        image, label = batch_fields(batch, ("image", "label"))
        right += int((network(image).argmax(1) == label).sum())
        seen += len(label)
    return right / seen


def body_of(network: Backbone) -> Parameters:
    """The network's parameters without its classifier's, by their names in it."""
    head = {id(parameter) for parameter in network.classifier.parameters()}
    return {name: p.detach() for name, p in network.named_parameters() if id(p) not in head}


# -- one start: an average of networks that started from different weights is of no use -------------------------------


def weights_of(network: Backbone) -> str:
    """A fingerprint of the network's weights without its classifier's."""
    return fingerprint(*(value.cpu() for value in body_of(network).values()))


def lineage_of(network: Backbone) -> tuple[str, ...]:
    """Fingerprints of the trained weights that a network comes from, the oldest first, and of its own at the end.

    A run that started anew is known by its kind of network and the seed of its initial weights.
    """
    before = () if network.origin is None else network.origin.lineage
    if network.origin is not None and not before:
        config = network.origin.config
        seed = seeding.streams(config["seed"], config["seeds"])["init"]
        start = "pretrained" if config["backbone"].get("pretrained") else f"init {seed}"
        before = (f"{start} {json.dumps(config['backbone'], sort_keys=True)}",)
    return (*before, weights_of(network))


def common_lineage(networks: Sequence[Backbone]) -> tuple[str, ...]:
    """What all the networks come from. Raises UserError where that is nothing; one of unknown origin is not checked."""
    known = [lineage_of(network) for network in networks if network.origin is not None]
    if not known:
        return ()
    common = tuple(name for name in known[0] if all(name in other for other in known[1:]))
    if not common:
        raise UserError(
            "The models started from different weights, so an average of them means nothing. Fine-tune each from the "
            "same network (regularizer=fine_tune), or train them from the same seeds.init."
        )
    return common


def check_same_parameters(networks: Sequence[Backbone], whole: bool) -> None:
    """Raises UserError where what is merged (`whole`: the classifier too) has other names or shapes in one of them."""
    first, *others = [dict(n.named_parameters()) if whole else body_of(n) for n in networks]
    for i, other in enumerate(others, start=2):
        try:
            check_state(first, other, f"model_{i}")
        except UserError as error:
            difference = str(error).partition(": ")[2].partition(". Give")[0]
            hint = "" if whole else " beside their classifiers"
            raise UserError(
                f"model_{i} is of another architecture than model_1{hint}: {difference}. Merging takes networks of one "
                "architecture" + (", or merge_head=false for tasks with different classes." if whole else ".")
            ) from None


class TrainingImages:
    """Batches of some training images, drawn by a seed and not augmented; read where they are asked for.

    Args:
        data: gives the data module.
        count: how many images, at most.
    """

    def __init__(self, data: Callable[[], DataModule], count: int, seed: int, device: torch.device):
        self.data, self.count, self.seed, self.device = data, count, seed, device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        data = self.data()
        order = torch.randperm(len(data.sets.train), generator=seeding.generator(self.seed, "examples"))
        chosen = order[: self.count].to(self.device)
        for batch in data.plain_train_loader(self.device):
            keep = torch.isin(batch["index"], chosen)
            if keep.any():
                yield {name: values[keep] for name, values in batch.items()}


# -- methods ---------------------------------------------------------------------------------------------------------


class FromModels(ClassificationMethod):
    """A network made of trained ones without a step of an optimiser. The run validates, keeps and tests it.

    Args:
        backbone: what is tested, exported and kept in checkpoints.
        models: the trained networks, two or more; `artifacts.model_1`, `artifacts.model_2` … say which runs make them.
            The first is the target's.
    """

    artifacts = ("model_*",)
    owns_loop = True
    one_step = True

    def __init__(self, backbone: nn.Module, num_classes: int, *, models: Sequence[nn.Module], **base):
        super().__init__(backbone, num_classes, **base)
        self.automatic_optimization = False  # there is no loss
        if len(models) < 2:
            raise UserError(
                f"{self.slug} takes two models or more, model_1, model_2 …; it got {len(models)}."
            )
        # No submodules: they are no part of the outcome.
        self.models = [as_backbone(model) for model in models]

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch, batch_idx: int) -> None:
        """Nothing is trained."""

    def on_train_start(self) -> None:
        validation = list(self.validation())
        for i, model in enumerate(self.models, start=1):
            model.to(self.device)
            if validation and len(model.classifier.weight) == self.num_classes:
                share = accuracy(model, validation)
                self.log(f"val/accuracy_model_{i}", share)

    def validation(self) -> Batches:
        """The run's validation batches."""
        batches = self.trainer.datamodule.val_loader(self.device)
        return () if batches is None else batches


class MergingMethod(FromModels):
    """The weights of several networks made into one network's, by coefficients that sum to 1. Subclasses own
    `prepare(training)` (once) and `merged(coefficients)`.

    The classifier stays the first model's unless `merge_head`. The search looks at validation images alone.

    Args:
        coefficients: lambda_i of each model; None: the best of `search` on validation accuracy, the first of several.
        search: how many coefficients are tried: for two models a grid from (1, 0) to (0, 1), for more random ones.
        merge_head: whether the classifier is merged too; the models then need the same classes.
        batchnorm_images: training images of the target that batch norms' statistics are taken anew from; 0: they are
            averaged. Of no concern to networks without batch norm.
    """

    takes_other_classes = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        models: Sequence[nn.Module],
        coefficients: Sequence[float] | None = None,
        search: int = 51,
        merge_head: bool = False,
        batchnorm_images: int = 512,
        **base,
    ):
        super().__init__(backbone, num_classes, models=models, **base)
        if search < 2 or batchnorm_images < 0:
            raise UserError(
                f"regularizer.search={search} must be at least 2 and regularizer.batchnorm_images={batchnorm_images} "
                "at least 0."
            )
        if coefficients is not None:
            fits = len(coefficients) == len(self.models) and min(coefficients) >= 0
            if not fits or abs(sum(coefficients) - 1) > 1e-6:
                raise UserError(
                    f"regularizer.coefficients={list(coefficients)}: one for each of the {len(self.models)} models, at "
                    "least 0, with the sum 1."
                )
        check_state(self.backbone.state_dict(), self.models[0].state_dict(), "model_1, the target's,")
        check_same_parameters(self.models, merge_head)
        self.lineage = common_lineage(self.models)
        self.given, self.search, self.merge_head = coefficients, search, merge_head
        self.batchnorm_images = batchnorm_images
        self.backbone.load_state_dict(self.models[0].state_dict())
        self.register_buffer("coefficients", torch.eye(len(self.models))[0])

    # -- what a paper owns -----------------------------------------------------------------------------------------

    examples = 0  # training images of each model that `prepare` gets, at most

    def prepare(self, training: Sequence[Batches]) -> None:
        """Called once with training images of each model, before anything is merged."""

    def merged(self, coefficients: Sequence[float]) -> Parameters:
        """The merged parameters, by their names in the backbone."""
        raise NotImplementedError(f"{type(self).__name__} defines no merged")

    # -- merging ---------------------------------------------------------------------------------------------------

    @property
    def mergeable(self) -> list[Parameters]:
        """The parameters of each model that are merged."""
        if not self.merge_head:
            return [body_of(model) for model in self.models]
        return [{name: p.detach() for name, p in model.named_parameters()} for model in self.models]

    def merge(
        self, training: Sequence[Batches] = (), validation: Batches = (), statistics: Batches = ()
    ) -> float | None:
        """Makes `backbone` the merged network; returns its validation accuracy, None where nothing was searched.

        A run does this itself; in a loop of one's own call it.

        Args:
            training: batches (image, label) of each model's training images, for `prepare`.
            validation: batches of the target's validation images, which choose the coefficients.
            statistics: batches of the target's training images, for batch norms' statistics.
        """
        self.prepare(training)
        if self.given is not None:
            self.use(self.given, statistics)
            return None
        validation = list(validation)
        if not validation:
            raise UserError(
                f"{self.slug} chooses its coefficients on validation images, and there are none: give "
                "regularizer.coefficients=[…], or set dataset.val_fraction."
            )
        tried = candidates(len(self.models), self.search, self.generator("coefficients"))
        shares = []
        for coefficients in tried:
            self.use(coefficients, statistics)
            shares.append(accuracy(self.backbone, validation))
        best = shares.index(max(shares))  # the first of several
        self.use(tried[best], statistics)
        return shares[best]

    @torch.no_grad()
    def use(self, coefficients: Sequence[float], statistics: Batches) -> None:
        """Gives `backbone` the merged weights, and batch norms the averaged statistics, or those of some images."""
        own = dict(self.backbone.named_parameters())
        for name, value in self.merged(coefficients).items():
            own[name].copy_(value)
        self.coefficients.copy_(torch.tensor(coefficients))
        networks = (self.backbone, *self.models)
        norms = [[m for m in network.modules() if isinstance(m, _BatchNorm)] for network in networks]
        for mine, *theirs in zip(*norms, strict=True):
            for name in ("running_mean", "running_var") if mine.track_running_stats else ():
                values = [{name: getattr(norm, name)} for norm in theirs]
                getattr(mine, name).copy_(average(values, coefficients)[name])
        if norms[0] and self.batchnorm_images:
            update_bn((batch_fields(batch, ("image",))[0] for batch in statistics), self.backbone)
        self.backbone.eval()

    def on_train_start(self) -> None:
        super().on_train_start()
        training = [
            TrainingImages(partial(self.data_of, model), self.examples, self.seed, self.device)
            for model in self.models
        ]
        statistics = TrainingImages(
            lambda: self.trainer.datamodule, self.batchnorm_images, self.seed, self.device
        )
        self.merge(training, self.validation(), statistics)

    def data_of(self, model: Backbone) -> DataModule:
        """The data whose training images stand for those of a model: the run's."""
        return self.trainer.datamodule

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.log_dict({f"test/coefficient_{i}": c for i, c in enumerate(self.coefficients, start=1)})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lineage"] = list(self.lineage)
