"""Measures that count every class alike, however many images it has (callback `macro`)."""

import pytorch_lightning as pl
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from regbench.regularizers.base import batch_fields


class Macro(pl.Callback):
    """Logs at the test, each a mean over the classes with equal weights, fractions:

    - test/macro_f1, test/macro_precision;
    - test/balanced_accuracy: the mean recall;
    - test/auroc: of each class's probability against the rest.

    It asks the network once more for each test batch.
    """

    def __init__(self):
        self.metrics: MetricCollection | None = None

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        common = {"num_classes": module.num_classes, "average": "macro", "validate_args": False}
        self.metrics = MetricCollection(
            {
                "macro_f1": MulticlassF1Score(**common),
                "macro_precision": MulticlassPrecision(**common),
                "balanced_accuracy": MulticlassRecall(**common),
                "auroc": MulticlassAUROC(**common),
            },
            prefix="test/",
            compute_groups=False,
        ).to(module.device)

    def on_test_batch_end(
        self, trainer, module, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        image, label = batch_fields(batch, ("image", "label"))
        self.metrics.update(module(image).float().softmax(1), label)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.log_dict(self.metrics.compute())
