"""What methods for noisy labels share: two networks that train on each other's word, and batch norm that is frozen."""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regbench.backbones import cifar_variants, resnet
from regbench.backbones.backbone import Backbone, as_backbone, reset_parameters
from regbench.errors import UserError
from regbench.functional import nested
from regbench.functional.co_teaching import exchanged_loss, forget_rate, small_loss
from regbench.functional.distributed import gather_rows
from regbench.regularizers.base import batch_fields, named_fields
from regbench.regularizers.classification.base import Batch, ClassificationMethod

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1

# Networks of RegBench whose constructor ends in `resnet.initialise`.
HE_INITIALISED = (resnet.ResNet, resnet.PreActResNet, cifar_variants.ResNeXt29, cifar_variants.PyramidNet)


class MeanOfTwo(nn.Module):
    """Images (B, C, H, W) → the mean of two networks' logits (B, num_classes)."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, image: Tensor) -> Tensor:
        return (self.first(image) + self.second(image)) / 2


def fresh_copy(backbone: Backbone, pretrained: bool = False) -> Backbone:
    """A network of the same kind with initial weights of its own, drawn from torch's global generator.

    RegBench's ResNets and timm's networks with `init_weights` get their own initialisation again, others PyTorch's of
    each layer.

    Args:
        pretrained: only the classifier is new, all else is kept.
    """
    other = copy.deepcopy(backbone)
    if pretrained:
        reset_parameters(other.classifier)
        return other
    reset_parameters(other)
    if isinstance(other.network, HE_INITIALISED):
        resnet.initialise(other.network)
    elif hasattr(other.network, "init_weights"):
        other.network.init_weights()
    return other


def freeze_batchnorm(network: nn.Module) -> None:
    """Puts every batch norm into evaluation mode. A method calls it at the end of its `train`."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def fix_batchnorm(network: nn.Module) -> None:
    """Takes scale and shift of every batch norm out of training."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(False)


def check_targets(method: ClassificationMethod, index: Tensor | None) -> None:
    """Raises UserError where a method that keeps `targets` of each sample lacks them, or the samples' index."""
    if index is None:
        raise UserError(
            f"{method.slug} keeps targets for each training sample and needs index, the sample's place in the training "
            "set; let the data set return (image, label, index)."
        )
    if "targets" not in method._buffers:
        raise UserError(
            f"{method.slug} has no targets yet; call on_data(<number of training samples>) before training."
        )


def check_compression(spread: float, rate: float, width_penalty: float) -> None:
    """Raises UserError for options of nested dropout or dropout that make no sense."""
    if spread <= 0 or width_penalty < 0:
        raise UserError(
            f"regularizer.spread={spread} must be above 0 and regularizer.width_penalty={width_penalty} at least 0."
        )
    if not 0 <= rate < 1:
        raise UserError(f"regularizer.rate={rate} is the share of features dropped, in [0, 1).")


class TwoNetworks(ClassificationMethod):
    """The base of methods that train two networks at once. Subclasses own `pair_loss(batch)`.

    `backbone` is what is tested, exported and kept in checkpoints: one module that holds both networks and gives the
    mean of their logits. Its weights are `first.*` and `second.*`. `first` and `second` are the two as backbones, for
    training. One optimiser steps both on the sum of their losses, which is the same as one for each, except that
    `trainer.gradient_clip_val` clips the norm of both together.

    Args:
        second: the second network; None: a `fresh_copy` of the first.
        pretrained: whether the first network's weights are pretrained; then the second starts from them too, but for
            its classifier.
    """

    owns_loop = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        second: nn.Module | None = None,
        pretrained: bool = False,
        **base,
    ):
        first = as_backbone(backbone)
        second = fresh_copy(first, pretrained) if second is None else as_backbone(second)
        name = first._classifier_name
        both = Backbone(
            MeanOfTwo(first.network, second.network),
            stages=(),
            classifier=None if name is None else f"first.{name}",
            channels_last=first.channels_last,
        )
        super().__init__(both, num_classes, **base)
        # The wrappers are no submodules: the networks in them are `backbone`'s.
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "second", second)

    @property
    def pair(self) -> tuple[Backbone, Backbone]:
        """Both networks."""
        return self.first, self.second

    @property
    def networks(self) -> list[nn.Module]:
        return list(self.pair)

    def pair_loss(self, batch: Batch) -> Tensor:
        """The sum of both networks' losses, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} defines no pair_loss")

    def training_loss(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        image, label = batch_fields(batch, ("image", "label"))
        self.keep_samples(image)
        return self.pair_loss(Batch(image, label, None, named_fields(batch).get("index"), image))


class CoTeachingPair(TwoNetworks):
    """Two networks, each of which learns the samples of a batch whose loss is small in the other.

    With several processes each selects among its own rows.

    Args:
        forget_rate: share of a batch that is left out, in [0, 1).
        ramp_epochs: epochs over which that share rises from 0.
        exponent: the share ends at forget_rate to this power.
        split_batch: false: both networks see the whole batch and select in the pass that they learn from. true: in
            evaluation mode the first selects from one half of the batch for the second, the second from the other for
            the first.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        forget_rate: float,
        ramp_epochs: int,
        exponent: float,
        split_batch: bool,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not 0 <= forget_rate < 1:
            raise UserError(f"regularizer.forget_rate={forget_rate} is a share of the batch, in [0, 1).")
        if ramp_epochs < 0 or exponent <= 0:
            raise UserError(
                f"regularizer.ramp_epochs={ramp_epochs} must be at least 0, and exponent={exponent} above 0."
            )
        self.forget_rate, self.ramp_epochs, self.exponent = forget_rate, ramp_epochs, exponent
        self.split_batch = split_batch

    def pair_loss(self, batch: Batch) -> Tensor:
        forget = forget_rate(self.current_epoch, self.forget_rate, self.ramp_epochs, self.exponent)
        if not self.split_batch:
            return exchanged_loss(self.first(batch.image), self.second(batch.image), batch.label, forget)
        half = len(batch.label) // 2
        if half == 0:
            raise UserError("regularizer.split_batch=true halves the batch, which needs at least two images.")
        halves = [(batch.image[:half], batch.label[:half]), (batch.image[half:], batch.label[half:])]
        chosen = []
        self.eval()
        with torch.no_grad():
            for network, (image, label) in zip(self.pair, halves, strict=True):
                own = small_loss(F.cross_entropy(network(image), label, reduction="none"), forget)
                chosen.append((image[own], label[own]))
        self.train()
        image, label = zip(*reversed(chosen), strict=True)  # what the second chose is the first's
        return sum(F.cross_entropy(n(x), y) for n, x, y in zip(self.pair, image, label, strict=True))


class ChoosesWidth(ClassificationMethod):
    """Chooses, after each epoch, how many features K reach the classifier, on the validation data.

    Subclasses hold `masks`, one `NestedMask` for each of `networks`, and `width_penalty`. Without masks all is as ever.
    """

    masks: list[nested.NestedMask]
    width_penalty: float

    def on_validation_epoch_start(self) -> None:
        self._seen: list[tuple[list[Tensor], Tensor]] = []  # features of each network, and labels

    def validation_step(self, batch, batch_idx: int) -> None:
        if not self.masks:
            return super().validation_step(batch, batch_idx)
        image, label = batch_fields(batch, ("image", "label"))
        self._seen.append(([network.outputs(image).features.float() for network in self.networks], label))

    def on_validation_epoch_end(self) -> None:
        if self.masks:
            classifiers = [nested.unmasked(network.classifier) for network in self.networks]
            right = sum(nested.right_at_each_width(part, classifiers, label) for part, label in self._seen)
            number = torch.full_like(right[:1], sum(len(label) for _, label in self._seen))
            total = gather_rows(torch.cat([right, number])[None]).sum(0)  # over all processes
            width, score = nested.choose_width(total[:-1] / total[-1].double(), self.width_penalty)
            for mask in self.masks:
                mask.kept.fill_(width)
            for part, label in self._seen:
                logits = [
                    F.linear(f[:, :width], weight[:, :width], bias)
                    for f, (weight, bias) in zip(part, classifiers, strict=True)
                ]
                self.val_metrics.update(sum(logits) / len(logits), label)
            self._seen.clear()
            self.log_dict({"val/width": float(width), "val/score": score})
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        if self.masks:
            kept = self.masks[0].kept.float()
            self.log_dict({"test/width": kept, "test/width_share": kept / self.networks[0].num_features})
        super().on_test_epoch_end()

    def plain_backbone(self) -> Backbone:
        with torch.no_grad():  # then a mask keeps K features and draws none
            return super().plain_backbone()
