"""What every method shares, whatever its family: optimiser and schedule, random streams, and the check of the loss."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regbench import seeding
from regbench.backbones.backbone import Backbone, as_backbone
from regbench.errors import UserError
from regbench.schedules import lr_factor


class Method(pl.LightningModule):
    """A method on a backbone. Subclasses own `training_loss(batch)` and the evaluation of their task.

    A method with a training loop of its own sets `automatic_optimization = False`, overrides `training_step`, says
    why, and hands each loss to `optimize`, which clips, accumulates and steps the schedule as Lightning does for
    the others.

    Args:
        backbone: a `Backbone`, or any module that maps images (B, C, H, W) to logits (B, num_classes).
        num_classes: number of classes C, or of what else the network gives for a sample; 0 where the task says that.
        optimizer: makes the optimiser from the parameters; SGD with lr 0.05 and momentum 0.9 unless given.
        scheduler: the learning rate's schedule, e.g. {"name": "cosine", "warmup_epochs": 5}, see
            `regbench.schedules`; constant unless given. Stepped with each optimiser step.
        seed: fixes every random number that the method draws.
        clip: for methods with manual optimisation, the largest gradient norm; None clips nothing.
        accumulate: for methods with manual optimisation, batches for each optimiser step.

    Attributes:
        artifacts: roles of the trained networks that the method starts from, e.g. ("teacher",). Each is a keyword
            argument of its constructor, and a key of the configuration's `artifacts`, which says where it comes from.
            A role such as "model_*" takes as many as the configuration names, model_1, model_2 …; they come as a list,
            the argument `models`.
        takes_other_classes: whether these networks may have been trained on another number of classes.
        trains: False for a method that has nothing to fit: its run is the test alone, and leaves no checkpoint.
        one_step: True for a method that is fitted by one computation, before the first step (`on_train_start`): its run
            takes one batch of one epoch, whatever `trainer` says, and the outcome is its last checkpoint.
        confusion: (C, C) counts of the last test, rows are the true classes; None where there are no classes.
        samples_wanted, samples: how many images of the next batch a logger asks for, and those images, mixed.
    """

    artifacts: ClassVar[tuple[str, ...]] = ()
    takes_other_classes: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    one_step: ClassVar[bool] = False
    confusion: Tensor | None = None
    samples_wanted: int = 0
    samples: Tensor | None = None

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
        clip: float | None = None,
        accumulate: int = 1,
    ):
        super().__init__()
        self.backbone = as_backbone(backbone)
        self.num_classes = num_classes
        self.seed = seed
        self.clip = clip
        self.accumulate = accumulate
        self._make_optimizer = optimizer or (lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9))
        self._schedule = dict(scheduler or {"name": "constant"})
        self._generators: dict[str, torch.Generator] = {}
        self._loss_sum: Tensor | None = None
        self._first_bad: Tensor | None = None
        self._watched: dict[str, tuple[Tensor, int]] = {}  # name → sum and count over the epoch's batches

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes), as at test time."""
        return self.backbone(image)

    def training_loss(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        """The loss (scalar) of one batch; usable in a plain PyTorch loop too."""
        raise NotImplementedError(f"{type(self).__name__} defines no training_loss")

    @property
    def members(self) -> list["Method"]:
        """The method itself, and those that are stacked on it."""
        return [self]

    @property
    def max_epochs(self) -> int:
        """Epochs that training takes; 1 outside a trainer."""
        return self.trainer.max_epochs if self._trainer is not None else 1

    def on_data(self, train_size: int) -> None:
        """Called once before training, testing or a checkpoint is read, with the number of training samples.

        For methods that keep something of each sample. In a loop of one's own call it for each of `members`.
        """

    def keep_table(self, name: str, rows: int) -> None:
        """Registers a buffer (rows, num_classes) of zeros, with a row for each training sample; called by `on_data`.

        As a buffer it is in checkpoints. With several processes each has to write the rows of all: DDP would copy the
        table to every process at each step, and is told to leave it alone.
        """
        self.register_buffer(name, torch.zeros(rows, self.num_classes, device=self.device))
        ignored = getattr(self, "_ddp_params_and_buffers_to_ignore", ())
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self, [*ignored, name]
        )

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that a training step runs; `accelerator.compile` compiles each."""
        return [self.backbone]

    def parameter_options(self) -> list[dict[str, Any]]:
        """Parameters of the method's own with other options of the optimiser than the rest, e.g.
        [{"params": [...], "weight_decay": 0.0, "lr_factor": 0.1}]; `lr_factor` multiplies the learning rate.
        """
        return []

    def plain_backbone(self) -> Backbone:
        """The network as it is tested, a copy without anything of the method's in it: reparameterised weights are
        folded into plain ones.
        """
        network = copy.deepcopy(self.backbone)
        for module in network.modules():
            if parametrize.is_parametrized(module):
                # A parametrised module has a class of its own, which a copy shares and removing changes.
                cls = type(module)
                module.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))
                for name in list(module.parametrizations):
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        return network

    # Optimisation

    def configure_optimizers(self):
        groups = [dict(group) for member in self.members for group in member.parameter_options()]
        own = {id(parameter) for group in groups for parameter in group["params"]}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        optimizer = self._make_optimizer([{"params": rest}, *groups] if groups else rest)
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_factor", 1.0)
        if self._schedule["name"] == "constant" and not self._schedule.get("warmup_epochs"):
            return optimizer
        total = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs
        if not self.automatic_optimization:  # then Lightning counts batches
            total = math.ceil(self.trainer.num_training_batches / self.accumulate) * epochs
        factor = lr_factor(self._schedule, total=total, per_epoch=total / epochs)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch, batch_idx: int) -> Tensor:
        loss = self.training_loss(batch)
        self.track(loss, batch_idx)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log("train/loss_step", loss.detach())
        return loss

    def optimize(self, loss: Tensor, batch_idx: int, optimizer_idx: int = 0) -> None:
        """Backward, and on every `accumulate`-th batch: clip, step the optimiser and its schedule.

        For methods with manual optimisation; call it once a batch for each optimiser.
        """
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        optimizer = optimizers[optimizer_idx] if isinstance(optimizers, list) else optimizers
        self.manual_backward(loss / self.accumulate)
        last_batch = batch_idx + 1 == self.trainer.num_training_batches
        if (batch_idx + 1) % self.accumulate and not last_batch:
            return
        if self.clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        optimizer.step()
        optimizer.zero_grad()
        if schedulers is not None:
            (schedulers[optimizer_idx] if isinstance(schedulers, list) else schedulers).step()

    # The means of an epoch, and where the loss stopped being a number. Nothing here waits for a GPU within an epoch but
    # the check every `log_every_n_steps` batches.

    def track(self, loss: Tensor, batch_idx: int) -> None:
        """Adds the batch's loss to the epoch's mean and notes the first step at which it is not finite."""
        loss = loss.detach()
        if self._loss_sum is None:
            self._loss_sum = torch.zeros((), device=loss.device, dtype=torch.float32)
            self._first_bad = torch.full((), -1, device=loss.device)
        self._loss_sum += loss
        if loss.device.type == "cpu":
            if not loss.isfinite():
                self._stop_at(batch_idx)
            return
        self._first_bad = torch.where((self._first_bad < 0) & ~loss.isfinite(), batch_idx, self._first_bad)
        if batch_idx % self.trainer.log_every_n_steps == 0:
            self._check_loss()

    def watch(self, name: str, value: Tensor) -> None:
        """Logs the mean over the epoch of what it is called with as `train/<name>`."""
        total, count = self._watched.get(name, (0.0, 0))
        self._watched[name] = total + value.detach(), count + 1

    def _check_loss(self) -> None:
        if self._first_bad is not None and (bad := int(self._first_bad)) >= 0:
            self._stop_at(bad)

    def _stop_at(self, batch_idx: int) -> None:
        step = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        raise UserError(
            f"The training loss is not a finite number at step {step} (epoch {self.current_epoch}, batch {batch_idx}). "
            "Lower optimizer.lr, set trainer.gradient_clip_val=1, or use accelerator.precision=32-true. "
            "The checkpoint of the last whole epoch is kept in the run folder."
        )

    def on_train_epoch_start(self) -> None:
        # Every stream starts anew from (seed, stream, epoch): a resumed run draws what the first one drew.
        self._generators.clear()
        seeding.seed_globals(self.seed, "globals", self.current_epoch, self.global_rank)
        self._loss_sum = self._first_bad = None
        self._watched.clear()

    def on_train_epoch_end(self) -> None:
        self._check_loss()  # before the checkpoint of this epoch is written
        if self._loss_sum is not None:
            batches = max(int(self.trainer.num_training_batches), 1)
            self.log("train/loss", self._loss_sum / batches, sync_dist=True, prog_bar=True)
        if self.trainer.optimizers and self.trainer.optimizers[0].param_groups:
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        for name, (total, count) in self._watched.items():
            self.log(f"train/{name}", total / count, sync_dist=True)

    def generator(self, stream: str) -> torch.Generator:
        """The CPU generator of a random stream of this method, at its place in this epoch; alike on every process."""
        if stream not in self._generators:
            self._generators[stream] = seeding.generator(self.seed, stream, self.current_epoch)
        return self._generators[stream]


def named_fields(batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Mapping[str, Tensor]:
    """A batch as a mapping; a tuple is in the order (image, label, index), of which the last may be missing."""
    return (
        batch if isinstance(batch, Mapping) else dict(zip(("image", "label", "index"), batch, strict=False))
    )


def batch_fields(batch: Mapping[str, Tensor] | tuple[Tensor, ...], needs: tuple[str, ...]) -> list[Tensor]:
    """The named fields of a batch, which is a mapping, or a tuple in the order (image, label, index).

    Raises:
        UserError: a field that the method needs is missing, e.g. the sample's index.
    """
    batch = named_fields(batch)
    missing = [name for name in needs if name not in batch]
    if missing:
        raise UserError(
            f"This method needs {', '.join(missing)} of each batch, which has only {', '.join(batch)}. Let the data "
            "set return (image, label, index), or a mapping with these keys; index is the place of the sample in it."
        )
    return [batch[name] for name in needs]
