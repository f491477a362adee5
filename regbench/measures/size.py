"""What a trained network costs (callback `size`), for methods that don't say it themselves."""

import pytorch_lightning as pl
import torch

from regbench.functional.cost import cost_of
from regbench.regularizers.base import batch_fields


class Size(pl.Callback):
    """Logs at the test `test/params_m` and `test/macs_m`: millions of parameters, and of multiply-accumulates for one
    sample, of the network as it would be exported. Methods that compress log these themselves, and are left to it.
    """

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.shape = tuple(batch_fields(batch, ("image",))[0].shape[1:])

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if hasattr(module, "cost"):
            return
        with torch.inference_mode(False):
            cost = cost_of(module.plain_backbone(), self.shape)
        module.log_dict({"test/params_m": cost.params / 1e6, "test/macs_m": cost.macs / 1e6})
