"""Search for regularization hyperparameters: one fresh network after the other, each with fixed values of its own."""

import logging
import warnings
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench import seeding
from regbench.backbones.backbone import reset_parameters
from regbench.errors import UserError, unknown
from regbench.functional.hyperparameters import Current, Space, attach_dropout, dropout_sites
from regbench.registry import Paper, register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod
from regbench.schedules import lr_factor

SAMPLERS = ("grid", "random", "tpe", "fixed")


def grid_values(space: Space, trial: int, trials: int) -> Tensor:
    """The `trial`-th of `trials` values (H,): the same share trial / trials of each hyperparameter's range.

    >>> grid_values(Space(["input_scale", "hue"], {}, 0), 1, 5)
    tensor([0.0600, 0.1000])
    """
    return torch.tensor([r.low + (r.high - r.low) * trial / trials for r in space.ranges])


def sampled_values(
    space: Space,
    sampler: str,
    values: Sequence[Sequence[float]],
    losses: Sequence[float],
    seed: int,
    startup: int = 3,
) -> Tensor:
    """What Optuna's random or TPE sampler tries next (H,), given the trials so far.

    A function of its arguments alone: nothing of Optuna's state has to be kept for a run that goes on later.

    Args:
        sampler: random or tpe.
        values: of the trials so far, each H numbers.
        losses: their results, lower is better.
        seed: of the sampler; another one for each trial.
        startup: of tpe, the trials that are random before it chooses.

    Raises:
        UserError: Optuna is missing.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)  # of Optuna's storage, which tells of its plug-ins
    try:
        import optuna
    except ImportError:
        raise UserError(
            f"regularizer.sampler={sampler} needs Optuna; install it with `pip install 'regbench[optuna]'`."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = dict(zip(space.names, space.ranges, strict=True))
    distributions = {
        name: optuna.distributions.UniformDistribution(r.low, r.high) for name, r in ranges.items()
    }
    seed %= 2**32  # NumPy's limit
    if sampler == "random":
        samples = optuna.samplers.RandomSampler(seed)
    else:
        samples = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    study = optuna.create_study(sampler=samples)
    with warnings.catch_warnings():
        # Optuna 2 warns that both calls are experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for numbers, loss in zip(values, losses, strict=True):
            params = dict(zip(space.names, map(float, numbers), strict=True))
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=loss))
    trial = study.ask(distributions)
    return torch.tensor([trial.params[name] for name in space.names])


@register(
    "hyperparameter_search",
    task="classification",
    paper=Paper(
        title="Optuna: A Next-generation Hyperparameter Optimization Framework",
        authors="Takuya Akiba, Shotaro Sano, Toshihiko Yanase, Takeru Ohta, Masanori Koyama",
        year=2019,
        venue="KDD",
        arxiv="1907.10902",
        code="https://github.com/optuna/optuna",
    ),
)
class HyperparameterSearch(ClassificationMethod):
    """Training one network after the other, each with fixed dropout rates and augmentation strengths that a sampler
    proposes from the validation losses so far, finds values that lower the test loss.

    All networks together are one run: trainer.max_epochs is shared out evenly among the trials. The weights that
    checkpoint.select=best_val keeps are the best of all trials; select by val/nll, as the samplers do.

    Args:
        sampler: grid (the same share of every range, `trials` of them), random, tpe (Optuna's tree-structured Parzen
            estimator) or fixed (one network, with `values`).
        trials: networks that are trained, one after the other; no more than there are epochs.
        tune: hyperparameters, keys of `regbench.functional.hyperparameters.RANGES`.
        ranges: key → [low, high, start], where they differ from RANGES.
        startup: of tpe, trials at the start that are random.
        values: of the fixed sampler, key or dropout_1, … → value; what is missing has its range's start.
    """

    owns_loop = True  # weights and optimiser start anew with each trial

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        sampler: str = "tpe",
        trials: int = 5,
        startup: int = 3,
        tune: Sequence[str] = ("dropout", "input_dropout", "input_scale"),
        ranges: Mapping[str, Sequence[float]] = {},
        values: Mapping[str, float] = {},
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if sampler not in SAMPLERS:
            raise unknown("regularizer.sampler", sampler, SAMPLERS)
        if trials < 1:
            raise UserError(f"regularizer.trials={trials} must be at least 1.")
        if startup < 1:
            raise UserError(f"regularizer.startup={startup} must be at least 1.")
        if values and sampler != "fixed":
            raise UserError(f"regularizer.values is for sampler=fixed; with sampler={sampler} leave it out.")
        sites = dropout_sites(self.backbone)
        self.space = Space(tune, ranges, len(sites))
        self.sampler, self.trials = sampler, 1 if sampler == "fixed" else trials
        self.startup = startup
        self._fixed = self._fixed_values(values)
        self.current = Current()
        attach_dropout(self.backbone, sites, self.space, self.current)
        # What a run that goes on later needs: values and lowest validation loss of each trial.
        self.register_buffer("trial_values", torch.zeros(self.trials, len(self.space)))
        self.register_buffer("trial_losses", torch.full((self.trials,), torch.inf))
        self.register_buffer("pixel_mean", torch.zeros(1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.ones(1, 1, 1), persistent=False)
        self.trial = 0
        if sampler == "fixed":
            self.trial_values[0] = self._fixed

    def _fixed_values(self, values: Mapping[str, float]) -> Tensor:
        keys = {
            name: name.rpartition("_")[0] if name.startswith("dropout_") else name
            for name in self.space.names
        }
        for key in values:
            if key not in {*keys, *keys.values()}:
                raise unknown("hyperparameter in regularizer.values", key, {*keys, *keys.values()})
        found = []
        for (name, key), range_ in zip(keys.items(), self.space.ranges, strict=True):
            value = float(values.get(name, values.get(key, range_.start)))
            if not range_.low <= value < range_.high:
                raise UserError(
                    f"regularizer.values: {name}={value:g} must lie in [{range_.low:g}, {range_.high:g})."
                )
            found.append(value)
        return torch.tensor(found)

    @property
    def epochs_per_trial(self) -> int:
        """Epochs of each trial but the last, which has what is left."""
        return -(-self.max_epochs // self.trials)

    # -- training ------------------------------------------------------------------------------------------------

    def training_loss(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        image, label = batch_fields(batch, ("image", "label"))
        self.space.check_channels(image.shape[1])
        real = self.space.rounded(self.trial_values[self.trial]).expand(len(image), -1)
        image = self.space.regularised(image, real, self.pixel_mean, self.pixel_std)
        self.keep_samples(image)
        self.current.real = real
        try:
            return F.cross_entropy(self.backbone(image), label)
        finally:
            self.current.real = None

    def configure_optimizers(self):
        found = super().configure_optimizers()
        if not isinstance(found, dict):
            return found
        # The schedule starts anew with each trial.
        per_epoch = int(self.trainer.estimated_stepping_batches) / self.max_epochs
        total = round(per_epoch * self.epochs_per_trial)
        factor = lr_factor(self._schedule, total=total, per_epoch=per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(found["optimizer"], lambda step: factor(step % total))
        return {"optimizer": found["optimizer"], "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule
        if self.sampler != "fixed" and data is not None and data.sets.val is None:
            raise UserError(
                "hyperparameter_search compares trials on validation data; set dataset.val_fraction above 0."
            )
        if data is not None:
            self.space.check_channels(data.shape[0])
            mean, std = (torch.tensor(v, device=self.device).view(-1, 1, 1) for v in data.mean_std)
            self.pixel_mean, self.pixel_std = mean, std

    def on_train_epoch_start(self) -> None:
        self.trial, epoch = divmod(self.current_epoch, self.epochs_per_trial)
        if epoch == 0:
            self.trial_values[self.trial] = self._next_values(self.trial)
            if self.trial:
                self._start_anew()
        super().on_train_epoch_start()

    def _next_values(self, trial: int) -> Tensor:
        if self.sampler == "fixed":
            return self._fixed
        if self.sampler == "grid":
            return grid_values(self.space, trial, self.trials)
        done = [i for i in range(trial) if self.trial_losses[i].isfinite()]
        values, losses = self.trial_values[done].tolist(), self.trial_losses[done].tolist()
        return sampled_values(
            self.space,
            self.sampler,
            values,
            losses,
            seeding.derive(self.seed, "trial", trial),
            self.startup,
        )

    def _start_anew(self) -> None:
        """Layers get PyTorch's own initialisation, with a seed of the trial's; the optimiser forgets its state."""
        seeding.seed_globals(self.seed, "trial_init", self.trial)
        reset_parameters(self.backbone)
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    def on_validation_epoch_end(self) -> None:
        loss = self.val_metrics.compute()["val/nll"]
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            self.trial_losses[self.trial] = torch.minimum(self.trial_losses[self.trial], loss)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        for name, value in zip(self.space.names, self.trial_values[self.trial], strict=True):
            self.log(f"train/{name}", value)
        self.log("train/trial", float(self.trial))
