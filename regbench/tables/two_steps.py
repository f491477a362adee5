"""Two training steps of a planned run, to see that it works before it is queued: seconds instead of days."""

import gc
from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

from regbench.tables.plan import PlannedRun

STEPS = 2
BATCH = 2


def two_steps(run: PlannedRun, folder: Path, runs: Mapping[str, PlannedRun]) -> dict[str, float]:
    """Trains a run for two steps of two images, then validates and tests it on a batch; returns the test metrics.

    The images are random, of the shape and the number of classes that the dataset's config declares, so nothing is
    read or downloaded; a graph is replaced by a small random one. A set that declares no shape uses its own data: those
    that ship with a package, or are generated. Samples of named fields are its own too, unless its config names a
    `stand_in`, for files that this machine may lack or a set that takes long to make. The network, the method, the
    optimiser and the accelerator are the run's own; its schedule has no warm-up, which would outlast two steps.

    Args:
        folder: becomes the run's folder.
        runs: those of the plan; what the run starts from, they make first, in two steps too.

    Raises:
        UserError: what the run itself would raise.
    """
    from regbench import training

    cfg = OmegaConf.create(run.config)
    dataset = cfg.dataset
    made_anew = "samples" in dataset.get("datamodule", "")  # generated, or read, by the set's own function
    if made_anew:
        if (stand_in := dataset.get("stand_in")) is not None:
            dataset.load = stand_in
        if dataset.batch_size is not None:
            dataset.batch_size = BATCH
    elif dataset.shape is not None and len(dataset.shape) == 1:
        dataset.load = {
            "_target_": "regbench.data.graph_sets.load_random_graph",
            "features": dataset.shape[0],
            "num_classes": dataset.num_classes,
        }
    elif dataset.shape is not None:
        train = STEPS * BATCH
        if dataset.get("labelled") is not None:
            dataset.labelled = dataset.num_classes
            train = dataset.labelled + dataset.unlabelled.ratio * train
        dataset.load = {
            "_target_": "regbench.data.random_images.load_random_images",
            "shape": dataset.shape,
            "num_classes": dataset.num_classes,
            "sizes": [train, BATCH, BATCH],
        }
        dataset.train_size = None
    if not made_anew:
        dataset.batch_size = dataset.eval_batch_size = BATCH
    cfg.trainer.update(max_epochs=1, limit_train_batches=STEPS, limit_val_batches=1, limit_test_batches=1)
    cfg.trainer.update(check_val_every_n_epoch=1, accumulate_grad_batches=1)
    if "datamodule" in dataset:  # of a graph, or of samples, which may be one batch
        cfg.trainer.max_epochs = STEPS
    cfg.checkpoint.select = "last"
    if cfg.scheduler is not None and "warmup_epochs" in cfg.scheduler:
        cfg.scheduler.warmup_epochs = 0
    cfg.logger, cfg.progress = {}, "none"
    artifacts = {}
    for role, key in run.makers.items():
        two_steps(runs[key], folder / role, runs)
        artifacts[role] = folder / role / "checkpoints" / "last.ckpt"
    metrics = training.run(cfg, folder, artifacts)
    gc.collect()  # the trainer's reference cycles hold the network: over many runs they would fill the memory
    return metrics
