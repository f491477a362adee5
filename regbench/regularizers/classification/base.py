"""Training and evaluation of a classifier. A method overrides the hooks that its paper changes.

The hooks are: mix the batch, own the objective, add a penalty, reparameterise the weights, act after a step. Because a
method consists of them, methods stack: `stack` puts others, each with its own options, on top of the chosen one.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations, permutations
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchmetrics.classification import MulticlassConfusionMatrix

from regbench import registry
from regbench.errors import UserError
from regbench.functional.distributed import gather_rows, own_rows
from regbench.functional.losses import mixup_cross_entropy
from regbench.functional.mixing import Draw
from regbench.metrics.classification import classification_metrics
from regbench.regularizers.base import Method, batch_fields, named_fields
from regbench.stacking import read_stack

VERSION = (
    1  # raised when a change in this file changes numbers: the family's finished runs are then run again
)


class Partner(NamedTuple):
    """What the images of a batch were mixed with.

    Attributes:
        label: (B,), the classes of the images that were mixed in.
        lam: share of the image itself, in [0, 1].
        index: (B,), their positions in the training split; None where the data does not say.
    """

    label: Tensor
    lam: float
    index: Tensor | None = None


class Batch(NamedTuple):
    """What an objective may look at beside the logits.

    Attributes:
        image: (B, C, H, W) as the network saw it: mixed, where the batch is mixed at the input.
        label: (B,), the classes of the images themselves.
        partner: None where nothing was mixed.
        index: (B,), positions in the training split; None where the data does not say.
        original: (B, C, H, W), the images before they were mixed; `image` itself where nothing was mixed at the input.
    """

    image: Tensor
    label: Tensor
    partner: Partner | None = None
    index: Tensor | None = None
    original: Tensor | None = None


HOOKS = ("mix", "objective", "penalty", "reparameterise", "after_step")


class ClassificationMethod(Method):
    """Cross entropy on labelled images: batches (image (B, C, H, W), label (B,)), logits (B, num_classes).

    Args:
        stack: methods on top of this one, each a slug or {slug: {option: value}}; they share the backbone.

    Attributes:
        owns_loop: whether the method trains in a way of its own (it overrides `training_loss`, `training_step` or
            `configure_optimizers`); it then neither stacks nor takes others on top.
        objective_takes_mixed: whether `objective` can take a batch that another method has mixed.
        why_not_mixed: the reason where it can't, a clause.
        replaces_layers: whether it puts other layers in the place of the network's.
    """

    owns_loop: ClassVar[bool] = False
    objective_takes_mixed: ClassVar[bool] = True
    why_not_mixed: ClassVar[str] = ""
    replaces_layers: ClassVar[bool] = False

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        stack: Sequence[str | Mapping[str, Mapping[str, Any]]] = (),
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        self.val_metrics = classification_metrics(num_classes, "val/")
        self.test_metrics = classification_metrics(num_classes, "test/", ranking=True)
        self.test_confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)

        wanted = read_stack(stack)
        check_stack(type(self), {slug: registry.load(slug) for slug in wanted})
        self._stacked = tuple(f"stacked_{slug}" for slug in wanted)
        for name, (slug, options) in zip(self._stacked, wanted.items(), strict=True):
            part = registry.load(slug)(self.backbone, num_classes, seed=self.seed, **options)
            # The host trains and tests; of its own the part keeps only what its hooks need.
            for shared in ("backbone", "val_metrics", "test_metrics", "test_confusion"):
                del part._modules[shared]
            object.__setattr__(part, "backbone", self.backbone)
            self.add_module(name, part)
        # Bound methods of the members that have the hook: without any of them a step costs what it costs without hooks.
        self._mix = (_bound(self.members, "mix") or [None])[0]
        self._objective = (_bound(self.members, "objective") or [self.objective])[0]
        self._penalties = _bound(self.members, "penalty")
        self._after_step = _bound(self.members, "after_step")
        self._reparameterised = any("reparameterise" in hooks_of(type(member)) for member in self.members)

    @property
    def members(self) -> list[Method]:
        return [self, *(self._modules[name] for name in self._stacked)]

    def keep_samples(self, image: Tensor) -> None:
        """Keeps as many of the images (B, C, H, W), as the network sees them, as a logger wants; once."""
        if self.samples_wanted:
            self.samples, self.samples_wanted = image[: self.samples_wanted].detach().clone(), 0

    # -- hooks: a method overrides those that its paper changes --------------------------------------------------

    def mix(self, image: Tensor, label: Tensor) -> Draw | None:
        """How the images (B, C, H, W) with labels (B,), of all processes together, are mixed; None where they are not.

        It has to draw the same on every process, as `self.generator(...)` does.
        """
        return None

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss (scalar) of logits (B, C)."""
        if batch.partner is None:
            return F.cross_entropy(logits, batch.label)
        return mixup_cross_entropy(logits, batch.label, batch.partner.label, batch.partner.lam)

    def penalty(self) -> Tensor:
        """A scalar that is added to the objective at each step, a function of the (reparameterised) weights."""
        raise NotImplementedError

    def reparameterise(self) -> None:
        """Puts torch.nn.utils.parametrize on layers of the backbone; the last line of the method's constructor."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Acts after each step of the optimiser, without gradients."""
        raise NotImplementedError

    # -- training ------------------------------------------------------------------------------------------------

    def training_loss(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        # A parametrised weight is computed once a step, however many hooks look at it.
        with parametrize.cached() if self._reparameterised else nullcontext():
            loss = self._objective_of(batch)
            for penalty in self._penalties:
                loss = loss + penalty()
        return loss

    def _objective_of(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        image, label = batch_fields(batch, ("image", "label"))
        index = named_fields(batch).get("index")
        objective = self._objective
        # With several processes the global batch is mixed, so that together they do what one process does.
        draw, whole, original = None, image, image
        if self._mix is not None:
            whole, whole_label = gather_rows(image), gather_rows(label)
            draw = self._mix(whole, whole_label)
        if draw is not None and draw.layer == 0:
            image = own_rows(draw.mix(whole))
        self.keep_samples(image)
        if draw is None:
            return objective(self.backbone(image), Batch(image, label, None, index, original))
        if draw.layer == 0:
            logits = self.backbone(image)
        else:
            # Not through __call__: a compiled graph can't hold a mixture that differs at each step.
            stage = self.backbone.stages[draw.layer - 1]
            logits = self.backbone.forward(
                image, at=stage, apply=lambda x: own_rows(draw.mix(gather_rows(x)))
            )
        other = None if index is None else own_rows(gather_rows(index)[draw.partner])
        partner = Partner(own_rows(whole_label[draw.partner]), draw.lam, other)
        return objective(logits, Batch(image, label, partner, index, original))

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        if self._after_step:
            with torch.no_grad():
                for act in self._after_step:
                    act()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        for part in self.members[1:]:
            part._generators.clear()

    # -- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch, batch_idx: int) -> None:
        image, label = batch_fields(batch, ("image", "label"))
        self.val_metrics.update(self(image), label)

    def on_validation_epoch_end(self) -> None:
        for name, value in self.val_metrics.compute().items():
            self.log(name, value, prog_bar=name == "val/accuracy")
        self.val_metrics.reset()

    def test_step(self, batch, batch_idx: int) -> None:
        image, label = batch_fields(batch, ("image", "label"))
        logits = self(image)
        self.test_metrics.update(logits, label)
        self.test_confusion.update(logits, label)

    def on_test_epoch_start(self) -> None:
        self.test_confusion.reset()

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute())
        self.test_metrics.reset()
        self.confusion = self.test_confusion.compute()  # here, where every process takes part in the sum


def hooks_of(method: type[ClassificationMethod]) -> set[str]:
    """Names of the hooks that a method has, i.e. overrides."""
    default = {hook: getattr(ClassificationMethod, hook) for hook in HOOKS}
    return {hook for hook in HOOKS if getattr(method, hook, default[hook]) is not default[hook]}


def _bound(members: Sequence[Method], hook: str) -> list:
    return [getattr(member, hook) for member in members if hook in hooks_of(type(member))]


def check_stack(host: type[ClassificationMethod], parts: Mapping[str, type[Method]]) -> None:
    """Raises UserError, with the reason, where methods can't train together.

    Args:
        host: the class of the chosen method.
        parts: slug → class of what is stacked on top of it.
    """
    if not parts:
        return
    members = {getattr(host, "slug", host.__name__): host, **parts}
    if len(members) == len(parts):
        raise UserError(f"stack puts {host.slug} on top of itself; leave it out of stack.")
    for slug, method in members.items():
        if not issubclass(method, ClassificationMethod):
            raise UserError(f"stack takes classification methods; {slug} does {method.task}.")
        if method.owns_loop:
            raise UserError(
                f"{slug} trains in a loop of its own, so nothing stacks on top of it, and it stacks on nothing."
            )
    for one, other in combinations(members, 2):
        both = hooks_of(members[one]) & hooks_of(members[other])
        if "mix" in both:
            raise UserError(f"{one} and {other} both mix the batch; stack at most one method that does.")
        if "objective" in both:
            raise UserError(f"{one} and {other} both own the objective; stack at most one method that does.")
    for one, other in permutations(members, 2):
        if members[one].replaces_layers and "reparameterise" in hooks_of(members[other]):
            raise UserError(
                f"{one} puts other layers in the place of those whose weights {other} reparameterises; stack at most "
                "one of them."
            )
    for mixer, owner in permutations(members, 2):
        if "mix" in hooks_of(members[mixer]) and not members[owner].objective_takes_mixed:
            reason = members[owner].why_not_mixed
            raise UserError(f"{owner} can't be combined with {mixer}, which mixes the batch: {reason}.")
