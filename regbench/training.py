"""One run: check, build, fit, test the chosen weights, write the result."""

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import regbench.torchvision_schemas  # noqa: F401  before Lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from regbench import backbones, registry, results, seeding, stacking
from regbench.api import check_state
from regbench.artifacts import arguments, check_roles
from regbench.backbones.backbone import Backbone, Origin, as_backbone
from regbench.backbones.sync_batchnorm import synchronise_batchnorm
from regbench.callbacks import EpochCheckpoint, LineProgress
from regbench.checks import check, check_writable
from regbench.composing import build, flat
from regbench.data.base import DataModule
from regbench.data.module import data_module
from regbench.errors import UserError
from regbench.files import write_whole
from regbench.identity import code_fingerprint
from regbench.loggers import History, WandbPictures
from regbench.regularizers.classification.base import check_stack

log = logging.getLogger("regbench")

SHARES = ("test/accuracy", "test/ece", "test/aurc", "test/eaurc", "test/robust")  # metrics shown in percent
HARMLESS = ("root", "workers", "eval_batch_size")  # keys of `dataset` that change no number


def run(cfg: DictConfig, run_dir: Path, artifacts: Mapping[str, Path] | None = None) -> dict[str, float]:
    """Runs one configuration and returns the test metrics (`test/accuracy` and the like, fractions).

    Args:
        cfg: the composed configuration, see configs/train.yaml.
        run_dir: receives config.yaml, metrics.csv, checkpoints/ and result.json.
        artifacts: role → checkpoint of the trained network that the method takes in this role.

    Raises:
        UserError: a mistake in the configuration, found before training starts wherever it can be.
    """
    start = time.perf_counter()
    check(cfg)
    code = code_fingerprint(cfg)  # as it is now: the files may be edited while the run goes on
    check_writable(run_dir)
    check_accelerator(cfg.accelerator)
    _quieten_libraries()
    torch.set_float32_matmul_precision(cfg.accelerator.matmul_precision)
    if cfg.accelerator.threads:
        torch.set_num_threads(cfg.accelerator.threads)
    resolved = OmegaConf.to_container(cfg, resolve=True)
    stack = stacking.with_defaults(resolved["stack"])
    resolved["stack"] = [{slug: options} for slug, options in stack.items()]
    method_class = registry.load(cfg.regularizer.name)
    check_stack(method_class, {slug: registry.load(slug) for slug in stack})
    seeds = seeding.streams(cfg.seed, resolved["seeds"])

    data = data_module(resolved["dataset"], seeds)
    data.check(world_size(cfg.accelerator))
    data.prepare_data()
    seeding.seed_globals(seeds["init"], "init")
    backbone = backbones.build(resolved["backbone"], shape=data.shape, num_classes=data.num_classes)
    networks = {
        role: load_network(path, data.shape, data.num_classes, own_classes=method_class.takes_other_classes)
        for role, path in (artifacts or {}).items()
    }
    method = build_method(cfg, backbone, data.num_classes, seeds, networks)
    if cfg.test_only and not method.trains:
        raise UserError(f"{method.slug} has no weights to test: leave test_only and ckpt_path out.")
    for member in method.members:
        member.on_data(len(data.sets.train))
    checkpoint = read_checkpoint(cfg.ckpt_path, method, resolved) if cfg.ckpt_path else None

    history = History(run_dir / "metrics.csv")
    if checkpoint is not None and not cfg.test_only:
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]
        history.go_on_from(checkpoint["epoch"], batches, checkpoint["regbench"].get("row", {}))
    checkpoints = EpochCheckpoint(
        run_dir / "checkpoints",
        **resolved["checkpoint"] | ({"select": "last"} if method.one_step else {}),
        origin={"regularizer": method.slug, "config": resolved, "num_classes": data.num_classes},
    )
    with configured_loggers(cfg, run_dir) as loggers:
        pictures = [WandbPictures(lg, data.class_names) for lg in loggers if isinstance(lg, WandbLogger)]
        trainer = build_trainer(cfg, method, run_dir, [history, *loggers], [checkpoints, *pictures])
        if trainer.is_global_zero:
            write_whole(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
            size = sum(p.numel() for p in method.parameters()) / 1e6
            network = f"{resolved['backbone']['name']}, {size:.2f} M parameters"
            slugs = " + ".join([method.slug, *stack])
            log.info("%s\n%s on %s, in %s", describe_data(data.describe()), slugs, network, run_dir)
        for logger in loggers:
            logger.log_hyperparams(flat(resolved))

        steps, fit_s = 0, 0.0
        if cfg.test_only:
            candidates = [Path(cfg.ckpt_path)]
        elif not method.trains:
            candidates = []
        else:
            fit_start = time.perf_counter()
            fit(trainer, method, data, cfg.ckpt_path, run_dir)
            fit_s = time.perf_counter() - fit_start
            steps = trainer.global_step - (checkpoint["global_step"] if checkpoint else 0)
            candidates = checkpoints.candidates()
        metrics = test(trainer, method, data, candidates)

        if trainer.is_global_zero:
            inside = [
                path.relative_to(run_dir) if path.is_relative_to(run_dir) else path for path in candidates
            ]
            result = {
                "metrics": metrics,
                "seed": cfg.seed,
                "config": resolved,
                "epochs": trainer.current_epoch,
                "steps": steps,  # of the optimiser, in fit_s seconds: since the checkpoint that the run went on from
                "fit_s": round(fit_s, 3),
                "tested": [str(path) for path in inside],
                "data": data.describe(),
                "device": results.device_name(trainer.strategy.root_device, trainer.world_size),
                "machine": results.machine(),
                "precision": cfg.accelerator.precision,
                "versions": results.versions(),
                "git_commit": results.git_commit(),
                "code": code,
                "duration_s": round(time.perf_counter() - start, 3),
            }
            results.write_result(run_dir / "result.json", result)
            for picture in pictures:
                picture.log_result(metrics, method.confusion)
            if cfg.progress != "none":
                show_metrics(metrics, candidates)
    return metrics


@contextmanager
def configured_loggers(cfg: DictConfig, run_dir: Path) -> Iterator[list[Logger]]:
    """The loggers of `cfg.logger`, ended also after a mistake or Ctrl-C: the next run has a W&B run of its own."""
    loggers = []
    status = "failed"
    try:
        for node in cfg.logger.values():
            if (logger := build(node, run_dir=run_dir)) is not None:
                loggers.append(logger)
        yield loggers
        status = "success"
    finally:
        for logger in loggers:
            logger.finalize(status)
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=0 if status == "success" else 1)


def show_metrics(metrics: dict[str, float], tested: list[Path]) -> None:
    """Prints the test metrics as a table: what is a share in percent, other measures as they are."""
    table = Table("test metric", ", ".join(path.stem for path in tested), box=None, pad_edge=False)
    for name, value in sorted(metrics.items()):
        shown = f"{100 * value:.2f} %" if name.startswith(SHARES) else f"{value:.4f}"
        shown += " nats" if name == "test/nll" else ""
        table.add_row(name, shown)
    Console().print(table)


def describe_data(data: dict[str, Any]) -> str:
    """One line on the data, e.g. "digits: 1078 training, 120 validation, 599 test images of 1×8×8, 10 classes"."""
    shape = "×".join(map(str, data["shape"]))
    items = f"{data.get('items', 'images')} of {shape}"
    if "edges" in data:
        items = f"nodes of {shape} features, among {data['nodes']} nodes with {data['edges']} edges"
    sizes = f"{data['train']} training, {data['val']} validation, {data['test']} test {items}"
    outputs = "classes" if "items" not in data else "outputs"
    classes = f", {data['num_classes']} {outputs}" if data["num_classes"] else ""
    line = f"{data['name']}: {sizes}{classes}. Validation: {data['validation']}."
    return f"{line} {data['notes']}".strip()


def load_network(
    path: Path, shape: tuple[int, ...], num_classes: int, *, own_classes: bool = False
) -> Backbone:
    """The trained network of a run's checkpoint, in evaluation mode and without gradients; see `Method.plain_backbone`.

    Args:
        own_classes: it may have been trained on another number of classes, and is then built for that.

    Raises:
        UserError: the file is no checkpoint of RegBench, or of a network for other images or classes.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        cfg = OmegaConf.create({"stack": [], **checkpoint["regbench"]["config"]})
        prefix, state = "backbone.", checkpoint["state_dict"]
        state = {name: value for name, value in state.items() if name.startswith(prefix)}
        origin = Origin(checkpoint["regbench"]["config"], tuple(checkpoint.get("lineage", ())))
        if own_classes:
            num_classes = checkpoint["regbench"].get("num_classes", num_classes)
    except Exception as error:
        raise UserError(f"{path} is no checkpoint of RegBench ({type(error).__name__}: {error}).") from error

    def build_network() -> Backbone:
        return as_backbone(backbones.build(dict(cfg.backbone), shape=shape, num_classes=num_classes))

    network = build_network()
    plain = {name.removeprefix(prefix): value for name, value in state.items()}
    if plain.keys() == network.state_dict().keys():
        check_state(network.state_dict(), plain, str(path))
        network.load_state_dict(plain)
        network.origin = origin
        return network.eval().requires_grad_(False)
    # The method has put its own into the network, so it is built too. What it started from is not needed for that.
    networks = {role: build_network() for role in cfg.get("artifacts", {})}
    method = build_method(cfg, network, num_classes, seeding.streams(0), networks)
    own = {name: value for name, value in method.state_dict().items() if name.startswith(prefix)}
    check_state(own, state, str(path))
    method.load_state_dict(state, strict=False)
    network = method.plain_backbone()
    network.origin = origin
    return network.eval().requires_grad_(False)


def build_method(
    cfg: DictConfig,
    backbone: torch.nn.Module,
    num_classes: int,
    seeds: dict[str, int],
    networks: Mapping[str, torch.nn.Module],
) -> pl.LightningModule:
    """The LightningModule of `cfg.regularizer` with the optimiser and the schedule of the configuration."""
    cls = registry.load(cfg.regularizer.name)
    stack = stacking.with_defaults(OmegaConf.to_container(cfg.stack, resolve=True))
    roles = {slug: registry.load(slug).artifacts for slug in (cfg.regularizer.name, *stack)}
    check_roles(roles, networks)
    options = OmegaConf.to_container(cfg.regularizer, resolve=True)
    options.pop("name")
    options |= arguments(cls.artifacts, networks)
    if stack:
        options["stack"] = [{slug: own | arguments(roles[slug], networks)} for slug, own in stack.items()]
    if cfg.optimizer is not None:
        options["optimizer"] = build(cfg.optimizer)
        try:
            options["optimizer"](list(backbone.parameters()))
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"The optimizer {cfg.optimizer._target_} refuses its options: {error}."
            ) from error
    if cfg.scheduler is not None:
        options["scheduler"] = OmegaConf.to_container(cfg.scheduler, resolve=True)
    method = cls(backbone, num_classes, seed=seeds["order"], clip=cfg.trainer.gradient_clip_val,
                 accumulate=cfg.trainer.accumulate_grad_batches, **options)  # fmt: skip
    channels_last = cfg.accelerator.channels_last
    if method.backbone.channels_last if channels_last == "auto" else channels_last:
        method = method.to(memory_format=torch.channels_last)
    if cfg.accelerator.compile:
        for network in method.networks:
            network.compile()
    if cfg.accelerator.sync_batchnorm and cfg.accelerator.accelerator == "cpu":
        synchronise_batchnorm(method)
    return method


def build_untrained(cfg: DictConfig, networks: Mapping[str, DictConfig]) -> None:
    """Builds what `run` would train, with new networks in place of trained ones, only to see that it can be built.

    Args:
        networks: role → configuration of the network that the method takes in this role.

    Raises:
        UserError: a mistake in the configuration.
    """
    data = data_module(OmegaConf.to_container(cfg.dataset, resolve=True), seeding.streams(cfg.seed))
    data.prepare_data()

    def new(node: DictConfig) -> Backbone:
        config = OmegaConf.to_container(node, resolve=True)
        return as_backbone(backbones.build(config, shape=data.shape, num_classes=data.num_classes))

    built = {role: new(node).requires_grad_(False) for role, node in networks.items()}
    build_method(cfg, new(cfg.backbone), data.num_classes, seeding.streams(cfg.seed), built)


def build_trainer(
    cfg: DictConfig, method: pl.LightningModule, run_dir: Path, loggers: list, callbacks: list
) -> pl.Trainer:
    """Lightning's Trainer for the configuration."""
    options = dict(cfg.trainer)
    if not method.automatic_optimization:  # the method clips and accumulates itself, see Method.optimize
        options["gradient_clip_val"], options["accumulate_grad_batches"] = None, 1
    if method.one_step:
        options.update(max_epochs=1, limit_train_batches=1, check_val_every_n_epoch=1)
    progress = cfg.progress
    if progress == "auto":
        progress = "bar" if sys.stdout.isatty() else "lines"
    callbacks = callbacks + [build(node) for node in cfg.callbacks.values()]
    if progress == "bar":
        callbacks.append(pl.callbacks.RichProgressBar())
    elif progress == "lines":
        callbacks.append(LineProgress(["val/accuracy", cfg.checkpoint.monitor, "val/loss"]))
    node = cfg.accelerator
    devices = OmegaConf.to_container(node.devices) if OmegaConf.is_list(node.devices) else node.devices
    try:
        return pl.Trainer(
            **options,
            accelerator=node.accelerator,
            devices=devices,
            num_nodes=node.num_nodes,
            strategy=node.strategy,
            sync_batchnorm=node.sync_batchnorm and node.accelerator != "cpu",  # torch's own needs GPUs
            precision=node.precision,
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=run_dir,
            enable_checkpointing=True,
            enable_model_summary=False,
            enable_progress_bar=progress == "bar",
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the loaders share the global batch out themselves
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(
            f"Lightning's Trainer refuses the options of trainer and accelerator: {error}"
        ) from error


def fit(
    trainer: pl.Trainer,
    method: pl.LightningModule,
    data: DataModule,
    ckpt_path: str | None,
    run_dir: Path,
) -> None:
    """Trains. After Ctrl-C it says how to go on and raises KeyboardInterrupt."""
    try:
        trainer.fit(method, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit as interrupted:  # what Lightning makes of Ctrl-C
        log.info("Stopped. Go on from the last whole epoch with: python train.py resume=%s", run_dir)
        raise KeyboardInterrupt from interrupted


def test(
    trainer: pl.Trainer,
    method: pl.LightningModule,
    data: DataModule,
    candidates: list[Path],
) -> dict[str, float]:
    """The median of each test metric over the checkpoints (usually one); without any, of the method as it is."""
    measured: list[dict[str, float]] = []
    if not candidates:
        measured += trainer.test(method, datamodule=data, verbose=False)
    for path in candidates:
        state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        method.load_state_dict(state)
        measured += trainer.test(method, datamodule=data, verbose=False)
    return {name: statistics.median(m[name] for m in measured) for name in measured[0]}


def read_checkpoint(path: str, method: pl.LightningModule, config: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's content. Raises UserError for a file that is none, or of another model.

    Warns where the data is prepared in another way than when the checkpoint was made: its pixels' mean and standard
    deviation, for one, then differ.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        state = checkpoint["state_dict"]
    except Exception as error:
        raise UserError(f"{path} is no checkpoint of RegBench ({type(error).__name__}: {error}).") from error
    check_state(method.state_dict(), state, path)
    before, now = (
        flat(c.get("dataset", {})) for c in (checkpoint.get("regbench", {}).get("config", {}), config)
    )
    changed = [key for key in now if key not in HARMLESS and key in before and before[key] != now[key]]
    if changed:
        was = ", ".join(f"dataset.{key}={before[key]}" for key in changed)
        log.warning("%s was made with %s; the data is prepared differently now.", path, was)
    return checkpoint


def check_accelerator(node: DictConfig) -> None:
    """Raises UserError where the configuration asks for a device that this machine lacks."""
    wanted = node.accelerator
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"accelerator={node.name} needs a GPU, and torch sees none here. Use accelerator=auto or accelerator=cpu; "
            "if there is a GPU, install a CUDA build of torch (see the README) and check the driver with nvidia-smi."
        )
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "accelerator=mps needs Apple silicon with macOS. Use accelerator=auto or accelerator=cpu."
        )
    if wanted == "cuda" and isinstance(node.devices, int) and node.devices > torch.cuda.device_count():
        raise UserError(
            f"accelerator.devices={node.devices}, but there are {torch.cuda.device_count()} GPUs."
        )


def world_size(node: DictConfig) -> int:
    """Number of processes that the accelerator's configuration asks for."""
    devices = len(node.devices) if OmegaConf.is_list(node.devices) else node.devices
    if not isinstance(devices, int):
        raise UserError(
            f"accelerator.devices={devices}: it is a number of devices, -1 for all, or a list such as [0,2]."
        )
    if devices == -1:
        devices = torch.cuda.device_count()
    return devices * node.num_nodes


def _quieten_libraries() -> None:
    """Keeps Lightning's remarks that concern how we use it, and not the user, off the terminal."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",  # in-memory loaders have none
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*`LightningModule.on_.*` signature.*",
        ".*Checkpoint directory .* exists.*",
        ".*resuming from a checkpoint.*",
        ".*it is recommended to use `self.log.*sync_dist=True.*",  # torchmetrics has summed over the processes
        ".*Using `DistributedSampler` with the dataloaders.*",
        ".*Found .* module.s. in eval mode.*",  # a method's teacher
        ".*isinstance.treespec, LeafSpec.*",
        ".*Total length of `list` across ranks is zero.*",  # no validation data
        ".*`LightningModule.configure_optimizers` returned `None`.*",  # a method that takes no step
        ".*`srun` command is available on your system but is not used.*",  # a SLURM job of its own starts the run
    ):
        warnings.filterwarnings("ignore", text)
