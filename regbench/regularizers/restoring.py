"""What the families that restore test images share."""

import pytorch_lightning as pl


def noise_seed(method: pl.LightningModule) -> int:
    """Of masks and measurement noise: the run's stream `noise`; outside a run the method's own seed."""
    data = None if method._trainer is None else getattr(method._trainer, "datamodule", None)
    return method.seed if data is None else data.seeds["noise"]
