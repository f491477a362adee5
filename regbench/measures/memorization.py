"""Whether a network learns wrong labels: its predictions on training images against both labels (`memorization`)."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from regbench.data.module import ImageDataModule
from regbench.errors import UserError
from regbench.functional.distributed import world_size
from regbench.measures.pictures import draw_curves, log_picture

NAMES = ("clean_accuracy", "wrong_true", "wrong_given", "wrong_other")
CURVES = {  # name → style and label in the picture
    "train/clean_accuracy": ("k--", "correctly labelled: predicted right"),
    "train/wrong_true": ("C2-", "wrongly labelled: predicted the true class"),
    "train/wrong_given": ("C3-", "wrongly labelled: predicted the given label"),
    "train/wrong_other": ("C7-", "wrongly labelled: predicted another class"),
    "train/target_true": ("C0:", "wrongly labelled: largest target is the true class"),
    "val/true_accuracy": ("C4-.", "validation: predicted right"),
}


def counts(prediction: Tensor, given: Tensor, true: Tensor) -> Tensor:
    """int64 (6,): correctly labelled samples, those of them that are predicted right, wrongly labelled samples, those
    of them whose prediction is the true class, the given label, and another.

    Args:
        prediction, given, true: int64 (B,), classes.

    >>> counts(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 2, 1])).tolist()
    [1, 1, 3, 1, 1, 1]
    """
    wrong = given != true
    on_true, on_given = wrong & (prediction == true), wrong & (prediction == given)
    parts = (~wrong, ~wrong & (prediction == true), wrong, on_true, on_given, wrong & ~on_true & ~on_given)
    return torch.stack([part.sum() for part in parts])


def shares(total: Tensor) -> dict[str, float]:
    """The measures, fractions, of summed `counts`; without a wrong (or correct) label those of it are 0."""
    clean, right, wrong, *kinds = total.tolist()
    values = [right / max(clean, 1), *(kind / max(wrong, 1) for kind in kinds)]
    return dict(zip(NAMES, values, strict=True))


class Memorization(pl.Callback):
    """Predictions on the training images as they are, in evaluation mode, against their true and their given labels.

    Logged after an epoch:

    - `train/clean_accuracy`: accuracy on the correctly labelled images;
    - `train/wrong_true`, `train/wrong_given`, `train/wrong_other`: shares of the wrongly labelled images whose
      prediction is the true class, the given label (memorised), and another class;
    - `train/target_true`, for a method that keeps a running target of each sample (`targets`, as ELR does): share of
      the wrongly labelled images of whose target the true class is the largest entry;
    - `val/true_accuracy`, where validation labels are noisy too: accuracy against the true ones.

    At the test the first four again, as `test/…`, but wrong_given as `test/memorized`; and `test/label_noise`, the
    share of wrong labels. The curves are drawn to figures/memorization.png in the run's folder, and to W&B where that
    is on.

    True labels come from the data module; the method never sees them.

    Args:
        every: epochs between two measurements; the last epoch is always measured. One costs a pass forward over the
            training images.
        figures: whether the curves are drawn.
    """

    def __init__(self, *, every: int = 1, figures: bool = True):
        if every < 1:
            raise UserError(f"callbacks.memorization.every={every}: a number of epochs, 1 or more.")
        self.every = every
        self.figures = figures
        self.curves: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"curves": self.curves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curves = state["curves"]

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not isinstance(trainer.datamodule, ImageDataModule):
            raise UserError(
                "callbacks=memorization measures on images; for graphs take callbacks=[default,nodes]."
            )
        _true_labels(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        if (epoch + 1) % self.every and epoch + 1 < trainer.max_epochs:
            return
        data = trainer.datamodule
        values = shares(self._counts(trainer, module, "train"))
        logged = {f"train/{name}": value for name, value in values.items()}
        targets = [member.targets for member in module.members if hasattr(member, "targets")]
        if targets:
            true, wrong = _true_labels(trainer), data.sets.train.labels != data.clean_labels
            right = (targets[0].argmax(1).cpu() == true)[wrong]
            logged["train/target_true"] = float(right.float().mean()) if len(right) else 0.0
        if data.sets.val is not None and data.sets.val.clean is not None:
            total = self._counts(trainer, module, "val")
            logged["val/true_accuracy"] = float(total[1] + total[3]) / float(total[0] + total[2])
        self.curves.append({"epoch": epoch, **logged})
        module.log_dict(logged)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        total = self._counts(trainer, module, "train")
        values = shares(total)
        values["memorized"] = values.pop("wrong_given")
        values["label_noise"] = float(total[2]) / float(total[0] + total[2])
        module.log_dict({f"test/{name}": value for name, value in values.items()})
        if self.figures and self.curves:
            log_picture(
                trainer,
                "memorization",
                "train/memorization",
                lambda path: draw_curves(path, self.curves, CURVES, "share of images"),
            )

    @torch.no_grad()
    def _counts(self, trainer: pl.Trainer, module: pl.LightningModule, split: str) -> Tensor:
        """Summed `counts` of all images of the split, over all processes."""
        data = trainer.datamodule
        true = getattr(data.sets, split).clean.to(module.device)
        loader = data.plain_train_loader if split == "train" else data.val_loader
        total = torch.zeros(6, dtype=torch.int64, device=module.device)
        training = module.training
        module.eval()
        with trainer.strategy.precision_plugin.forward_context():
            for batch in loader(module.device, trainer.global_rank, trainer.world_size):
                total += counts(module(batch["image"]).argmax(1), batch["label"], true[batch["index"]])
        module.train(training)
        return total if world_size() == 1 else trainer.strategy.reduce(total, reduce_op="sum")


def _true_labels(trainer: pl.Trainer) -> Tensor:
    """int64 (N,), the true classes of the training images. Raises UserError where they are not known."""
    true = trainer.datamodule.clean_labels
    if true is None:
        raise UserError(
            "callbacks=memorization compares predictions with true labels, which are known where dataset.noise put the "
            "wrong ones, or where a set brings both. Set dataset.noise.kind, or leave the callback out."
        )
    return true
