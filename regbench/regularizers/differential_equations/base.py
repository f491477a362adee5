"""Training and evaluation of networks that solve a differential equation: classifiers of points, processes fitted to
paths, and latent ODEs fitted to series that are known here and there. A method overrides `penalty`, for points also
`end_time`, for series `training_time`, or `training_loss`.

The network is a `regbench.backbones.differential_equations.Flow`: it brings the field, the solver and the tolerance.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from regbench import seeding
from regbench.errors import UserError
from regbench.functional.distributed import gather_split, world_size
from regbench.metrics.classification import classification_metrics
from regbench.registry import TASKS
from regbench.regularizers.base import Method, batch_fields
from regbench.solvers.solution import Solution

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1


class DifferentialEquationMethod(Method):
    """What the tasks share: the hooks, the noise, the count of evaluations, and the samples of an evaluation, which is
    made when all are there.

    Logged beside a task's own metrics: `train/nfe`, evaluations of the field in a training step's solve, mean over the
    epoch; `val/nfe` and `test/nfe`, those of a solve without a method's changes; `test/training_nfe`, as `train/nfe`,
    mean over the whole training. What a penalty evaluates beside the solve is not counted.

    Args:
        backbone: a network with `solve` and `read`, see `regbench.backbones.differential_equations.Flow`.

    Attributes:
        fields: what an evaluation sees of a batch.
    """

    example = "neural_ode"  # a backbone that fits, for the error
    fields: ClassVar[tuple[str, ...]]

    def __init__(self, backbone: nn.Module, num_classes: int, **base):
        super().__init__(backbone, num_classes, **base)
        if not hasattr(self.flow, "solve"):
            raise UserError(
                f"{type(self).__name__} needs a network that solves a differential equation, e.g. "
                f"backbone={self.example}; {type(self.flow).__name__} does not."
            )
        # Evaluations and steps of the training so far; in checkpoints, so that a resumed run goes on counting.
        self.register_buffer("spent", torch.zeros(2, dtype=torch.float64))
        self._seen: list[tuple[Tensor, ...]] = []

    def setup(self, stage: str) -> None:
        precision = self.trainer.precision
        double = all(parameter.dtype == torch.float64 for parameter in self.flow.parameters())
        if precision != "32-true" and not (precision == "64-true" and double):
            raise UserError(
                f"accelerator.precision={precision} does not go with a solver: backbone.dtype decides what it computes "
                "in, float32 or float64. Set accelerator.precision=32-true."
            )
        if self.trainer.strategy.root_device.type == "mps":
            raise UserError(
                "Differential equations are solved with times in float64, which Apple's GPUs don't have: set "
                "accelerator=cpu."
            )

    @property
    def flow(self) -> nn.Module:
        """The network itself, see `regbench.backbones.differential_equations.Flow`."""
        return self.backbone.network

    # -- the hook that a method overrides ---------------------------------------------------------------------------

    def penalty(self, solution: Solution) -> Tensor | None:
        """A scalar that is added to the loss of a training step; None: nothing."""
        return None

    # -- what the tasks use ----------------------------------------------------------------------------------------

    def regularised(self, loss: Tensor, solution: Solution) -> Tensor:
        """The loss with the method's penalty; counts the evaluations."""
        self.watch("nfe", self._number(solution))
        self.spent += torch.tensor([solution.evaluations, 1.0], dtype=torch.float64, device=self.spent.device)
        penalty = self.penalty(solution)
        if penalty is None:
            return loss
        self.watch("penalty", penalty)
        return loss + penalty

    @property
    def progress(self) -> dict[str, int]:
        """Where training is: `epoch`, counted from 0, of `epochs`."""
        return {"epoch": self.current_epoch, "epochs": self.max_epochs}

    def _number(self, solution: Solution) -> Tensor:
        """The solution's evaluations, on the device: what is logged there may be summed over processes."""
        return torch.tensor(float(solution.evaluations), device=self.device)

    def training_seed(self) -> int:
        """Names the noise of a training step, which is another one on each process."""
        seed = int(torch.randint(2**62, (), generator=self.generator("noise")))
        return seeding.derive(seed, "rank", self.global_rank) if self.global_rank else seed

    def evaluation_seed(self, position: int = 0) -> int:
        """Names the noise of an evaluation, which is the same after each epoch and at the test."""
        return seeding.derive(self.seed, "evaluation", position)

    def common(self, time: Tensor) -> Tensor:
        """The times (T,), float64, of all samples (B, T) of a batch."""
        if (time != time[0]).any():
            raise UserError(
                "The paths or series of a batch must have common times: all are solved, and compared, together."
            )
        time, end = time[0].double(), self.flow.end
        if (time.diff() <= 0).any() or time[0] < 0 or (end and time[-1] > end):
            raise UserError(
                f"The times of paths and series must ascend from 0 or later to backbone.end={end} at most; these go "
                f"from {float(time[0]):g} to {float(time[-1]):g}."
            )
        return time

    def _keep(self, batch: Mapping[str, Tensor]) -> None:
        self._seen.append(tuple(batch_fields(batch, self.fields)))

    def _whole(self) -> list[Tensor]:
        """What was kept of this evaluation, all rows of each field; it is then forgotten."""
        whole = [torch.cat(parts) for parts in zip(*self._seen, strict=True)]
        self._seen.clear()
        return whole

    def validation_step(self, batch, batch_idx: int) -> None:
        self._keep(batch)

    def test_step(self, batch, batch_idx: int) -> None:
        self._keep(batch)

    def on_test_epoch_end(self) -> None:
        evaluations, steps = self.spent.tolist()
        if steps:
            self.log("test/training_nfe", evaluations / steps)


class JointlySolved(DifferentialEquationMethod):
    """Evaluation of samples in their order, `SOLVED_TOGETHER` to a solve whatever the loader's batches are, because all
    samples of a solve share its steps. `nfe` is that of the first solve.

    A subclass sets `val_metrics` and `test_metrics`, collections with the prefixes val/ and test/.

    Attributes:
        shown: names of metrics for the progress bar.
    """

    SOLVED_TOGETHER = 512
    shown: ClassVar[tuple[str, ...]]

    def evaluate(self, samples: tuple[Tensor, ...], seed: int, metrics: MetricCollection) -> Solution:
        """Solves for the samples, a tensor for each of `fields`, and updates the metrics; the seed names the noise."""
        raise NotImplementedError(f"{type(self).__name__} defines no evaluate")

    def _measure(self, metrics: MetricCollection) -> dict[str, Tensor]:
        nfe = None
        chunks = zip(*(field.split(self.SOLVED_TOGETHER) for field in self._whole()), strict=True)
        for position, samples in enumerate(chunks):
            seed = self.evaluation_seed(position * world_size() + self.global_rank)
            solution = self.evaluate(samples, seed, metrics)
            nfe = self._number(solution) if nfe is None else nfe
        values = metrics.compute() | {f"{metrics.prefix}nfe": nfe}
        metrics.reset()
        return values

    def on_validation_epoch_end(self) -> None:
        for name, value in self._measure(self.val_metrics).items():
            self.log(name, value, prog_bar=name in self.shown, sync_dist=name == "val/nfe")

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        for name, value in self._measure(self.test_metrics).items():
            self.log(name, value, sync_dist=name == "test/nfe")


class PointMethod(JointlySolved):
    """Cross entropy on labelled points; top-1 and top-5, negative log-likelihood and calibration as images have."""

    fields = TASKS["neural_ode"]
    shown = ("val/accuracy", "val/nfe")

    def __init__(self, backbone: nn.Module, num_classes: int, **base):
        super().__init__(backbone, num_classes, **base)
        self.val_metrics = classification_metrics(num_classes, "val/")
        self.test_metrics = classification_metrics(num_classes, "test/")

    def end_time(self) -> float | None:
        """The end time of a training step; None: the network's own."""
        return None

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        point, label = batch_fields(batch, self.fields)
        solution = self.flow.solve(point, end=self.end_time(), seed=self.training_seed())
        return self.regularised(F.cross_entropy(self.flow.read(solution), label), solution)

    def evaluate(self, samples: tuple[Tensor, ...], seed: int, metrics: MetricCollection) -> Solution:
        point, label = samples
        trajectories = self.flow.trajectories
        solution = self.flow.solve(point, seed=seed, trajectories=trajectories)
        metrics.update(self.flow.read(solution, trajectories).float(), label)
        return solution


def moments(path: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the paths, each (T, d), of paths (N, T, d).

    >>> moments(torch.tensor([[[1.0]], [[3.0]]]))
    (tensor([[2.]]), tensor([[2.]]))
    """
    return path.mean(0), path.var(0)


class PathMethod(DifferentialEquationMethod):
    """The mean squared error of a process's means, plus that of its variances, against those of the data's paths.

    A batch is a set of paths (N, T, d) at common times (N, T). The process starts where the paths do. Metrics, of all
    paths of a split at once: `mse`, the sum, of which `mse_mean` and `mse_variance` are the parts.

    Args:
        trajectories: paths of the process in a training step.
        test_trajectories: at an evaluation.
    """

    example = "path_sde"
    fields = TASKS["neural_sde"]

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        trajectories: int = 100,
        test_trajectories: int = 1000,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if trajectories < 2 or test_trajectories < 2:
            raise UserError(
                f"regularizer.trajectories={trajectories} and regularizer.test_trajectories={test_trajectories} must "
                "be at least 2: they have a variance."
            )
        self.trajectories, self.test_trajectories = trajectories, test_trajectories

    def compare(
        self, time: Tensor, path: Tensor, trajectories: int, seed: int
    ) -> tuple[Tensor, Tensor, Solution]:
        """Squared errors of means and of variances (scalars), and the solution.

        Args:
            time: (N, T).
            path: (N, T, d), of the data.
            trajectories: of the process.
        """
        if len(path) < 2:
            raise UserError(
                "A single path has no variance to compare with: set dataset.batch_size to 2 or more for each process, "
                "or null, and have 2 or more paths to evaluate."
            )
        time = self.common(time)
        start = path[torch.arange(trajectories, device=path.device) % len(path), 0]
        solution = self.flow.solve(start, seed=seed)
        states = solution.at(time)
        pairs = zip(moments(states.transpose(0, 1)), moments(path.to(states.dtype)), strict=True)
        of_mean, of_variance = (F.mse_loss(ours, data) for ours, data in pairs)
        return of_mean, of_variance, solution

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        time, path = batch_fields(batch, self.fields)
        of_mean, of_variance, solution = self.compare(time, path, self.trajectories, self.training_seed())
        return self.regularised(of_mean + of_variance, solution)

    def _measure(self, prefix: str) -> None:
        time, path = map(gather_split, self._whole())
        of_mean, of_variance, solution = self.compare(
            time, path, self.test_trajectories, self.evaluation_seed()
        )
        values = {"mse": of_mean + of_variance, "mse_mean": of_mean, "mse_variance": of_variance}
        values["nfe"] = self._number(solution)
        for name, value in values.items():
            self.log(f"{prefix}/{name}", value, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._measure("test")


def masked_mse(prediction: Tensor, values: Tensor, observed: Tensor) -> Tensor:
    """Mean square of the error over what was observed of each series: (B,).

    Args:
        prediction, values: (B, T, F).
        observed: (B, T, F), true or 1 where a value was observed; of each series at least once.

    >>> values, observed = torch.tensor([[[1.0, 2.0], [0.0, 4.0]]]), torch.tensor([[[1, 1], [0, 1]]])
    >>> masked_mse(torch.ones(1, 2, 2), values, observed)  # (0 + 1 + 9) / 3
    tensor([3.3333])
    """
    return ((prediction - values).square() * observed).sum((1, 2)) / observed.sum((1, 2))


def log_likelihood(prediction: Tensor, values: Tensor, observed: Tensor, deviation: float) -> Tensor:
    """Mean over what was observed of a series of log N(value; prediction, deviation²): (B,), in nats.

    Arguments as `masked_mse` has them.

    >>> value = torch.tensor([[[1.0]]])
    >>> log_likelihood(value - 2.0, value, torch.ones(1, 1, 1), 2.0)  # −1/2 − log 2 − log(2π) / 2
    tensor([-2.1121])
    """
    constant = math.log(deviation) + math.log(2 * math.pi) / 2
    return -masked_mse(prediction, values, observed) / (2 * deviation**2) - constant


def mean_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = (σ² + μ² − 1 − log σ²) / 2, mean over the latents: (B,), in nats.

    Args:
        mean, log_variance: (B, d).

    >>> mean_divergence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)]]))  # (1/2 + 3/2 − log 2) / 2
    tensor([0.6534])
    """
    return ((log_variance.exp() + mean**2 - 1 - log_variance) / 2).mean(1)


def divergence_weight(epoch: int, start: int, rate: float) -> float:
    """max(0, 1 − rate^(epoch − start)), epochs counted from 0.

    >>> [round(divergence_weight(epoch, 10, 0.99), 4) for epoch in (0, 10, 11, 110)]
    [0.0, 0.0, 0.01, 0.634]
    """
    return 1 - rate ** max(epoch - start, 0)


def with_gaps(time: Tensor, values: Tensor, observed: Tensor) -> Tensor:
    """What an encoder of series reads: values (0 where none was observed), observed, and the time to the next one.

    Args:
        time: (T,), ascending.
        values, observed: (B, T, F).

    Returns:
        (B, 2 F + 1, T), in the type of `values`. After the last time there is 0.

    >>> with_gaps(torch.tensor([0.0, 0.25]), torch.tensor([[[5.0], [6.0]]]), torch.tensor([[[True], [False]]]))
    tensor([[[5.0000, 0.0000],
             [1.0000, 0.0000],
             [0.2500, 0.0000]]])
    """
    gap = torch.cat([time.diff(), time.new_zeros(1)]).to(values.dtype)
    seen = observed.to(values.dtype)
    return torch.cat([values * seen, seen, gap[None, :, None].expand(len(values), -1, 1)], 2).transpose(1, 2)


class SeriesMethod(JointlySolved):
    """A latent ODE fitted to series by what was observed of them: −(log-likelihood − KL weight · KL), means over the
    series. The state at time 0 is drawn from what the encoder makes of the series itself.

    A batch is series (B, T, F) at common times (B, T), and what was observed of them. Metrics: `mse`, the mean square
    of the error over what was observed of a series, mean over the series, one draw for each.

    Args:
        deviation: σ, of the observations.
        kl_start, kl_rate: the KL's weight is max(0, 1 − kl_rate^(e − kl_start)) in epoch e, counted from 0.
    """

    example = "latent_ode"
    fields = TASKS["time_series"]
    shown = ("val/mse", "val/nfe")

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        deviation: float = 0.01,
        kl_start: int = 10,
        kl_rate: float = 0.99,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not hasattr(self.flow, "posterior"):
            raise UserError(
                f"{type(self).__name__} needs a network that draws states for a series, e.g. backbone={self.example}; "
                f"{type(self.flow).__name__} does not."
            )
        if deviation <= 0 or kl_start < 0 or not 0 < kl_rate <= 1:
            raise UserError(
                f"regularizer.deviation={deviation} must be above 0, regularizer.kl_start={kl_start} at least 0, "
                f"regularizer.kl_rate={kl_rate} above 0 and at most 1."
            )
        self.deviation, self.kl_start, self.kl_rate = deviation, kl_start, kl_rate
        self.val_metrics = MetricCollection({"mse": MeanMetric()}, prefix="val/")
        self.test_metrics = MetricCollection({"mse": MeanMetric()}, prefix="test/")

    def training_time(self, time: Tensor) -> Tensor:
        """The times (T,) at which a training step takes the series' values to be; those of the data."""
        return time

    def fit(
        self, time: Tensor, values: Tensor, observed: Tensor, seed: int
    ) -> tuple[Tensor, Tensor, Tensor, Solution]:
        """The prediction (B, T, F) at times (T,), mean and log variance (B, d) of the start, and the solution."""
        mean, log_variance = self.flow.posterior(with_gaps(time, values, observed))
        solution = self.flow.integrate(self.flow.draw(mean, log_variance, seed), self.flow.end, seed)
        return self.flow.head(solution.at(time)).transpose(0, 1), mean, log_variance, solution

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        time, values, observed = batch_fields(batch, self.fields)
        time = self.training_time(self.common(time))
        prediction, mean, log_variance, solution = self.fit(time, values, observed, self.training_seed())
        likelihood = log_likelihood(prediction, values, observed, self.deviation)
        weight = divergence_weight(self.current_epoch, self.kl_start, self.kl_rate)
        loss = -(likelihood - weight * mean_divergence(mean, log_variance)).mean()
        return self.regularised(loss, solution)

    def evaluate(self, samples: tuple[Tensor, ...], seed: int, metrics: MetricCollection) -> Solution:
        time, values, observed = samples
        prediction, _, _, solution = self.fit(self.common(time), values, observed, seed)
        metrics.update(masked_mse(prediction, values, observed))
        return solution
