"""Training and evaluation of networks that solve a differential equation: classifiers of points, and processes fitted
to paths. A method overrides `penalty`, for points also `end_time`, or `training_loss`.

The network is a `regbench.backbones.differential_equations.Flow`: it brings the field, the solver and the tolerance.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench import seeding
from regbench.errors import UserError
from regbench.metrics.classification import classification_metrics
from regbench.registry import TASKS
from regbench.regularizers.base import Method, batch_fields
from regbench.solvers.solution import Solution

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1


class DifferentialEquationMethod(Method):
    """What both tasks share: the hooks, the noise, and the count of evaluations.

    Logged beside a task's own metrics: `train/nfe`, evaluations of the field in a training step, mean over the epoch;
    `val/nfe` and `test/nfe`, those of a solve without a method's changes; `test/training_nfe`, those of a training
    step, mean over the whole training.

    Args:
        backbone: a network with `solve` and `read`, see `regbench.backbones.differential_equations.Flow`.
    """

    example = "neural_ode"  # a backbone that fits, for the error

    def __init__(self, backbone: nn.Module, num_classes: int, **base):
        super().__init__(backbone, num_classes, **base)
        if not hasattr(self.flow, "solve"):
            raise UserError(
                f"{type(self).__name__} needs a network that solves a differential equation, e.g. "
                f"backbone={self.example}; {type(self.flow).__name__} does not."
            )
        # Evaluations and steps of the training so far; in checkpoints, so that a resumed run goes on counting.
        self.register_buffer("spent", torch.zeros(2, dtype=torch.float64))

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

    def _number(self, solution: Solution) -> Tensor:
        """The solution's evaluations, on the device: what is logged there may be summed over processes."""
        return torch.tensor(float(solution.evaluations), device=self.device)

    def training_seed(self) -> int:
        """Names the noise of a training step."""
        return int(torch.randint(2**62, (), generator=self.generator("noise")))

    def evaluation_seed(self, position: int = 0) -> int:
        """Names the noise of an evaluation, which is the same after each epoch and at the test."""
        return seeding.derive(self.seed, "evaluation", position)

    def on_test_epoch_end(self) -> None:
        evaluations, steps = self.spent.tolist()
        if steps:
            self.log("test/training_nfe", evaluations / steps)


class PointMethod(DifferentialEquationMethod):
    """Cross entropy on labelled points; top-1 and top-5, negative log-likelihood and calibration as images have.

    Points are evaluated in their order, `SOLVED_TOGETHER` to a solve whatever the loader's batches are, because all
    points of a solve share its steps. `nfe` is that of the first solve.
    """

    SOLVED_TOGETHER = 512

    def __init__(self, backbone: nn.Module, num_classes: int, **base):
        super().__init__(backbone, num_classes, **base)
        self.val_metrics = classification_metrics(num_classes, "val/")
        self.test_metrics = classification_metrics(num_classes, "test/")
        self._seen: list[tuple[Tensor, Tensor]] = []

    def end_time(self) -> float | None:
        """The end time of a training step; None: the network's own."""
        return None

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        point, label = batch_fields(batch, TASKS["neural_ode"])
        solution = self.flow.solve(point, end=self.end_time(), seed=self.training_seed())
        return self.regularised(F.cross_entropy(self.flow.read(solution), label), solution)

    def _keep(self, batch: Mapping[str, Tensor]) -> None:
        self._seen.append(tuple(batch_fields(batch, TASKS["neural_ode"])))

    def _measure(self, metrics) -> dict[str, Tensor]:
        points, labels = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        nfe = None
        chunks = zip(points.split(self.SOLVED_TOGETHER), labels.split(self.SOLVED_TOGETHER), strict=True)
        for position, (point, label) in enumerate(chunks):
            trajectories = self.flow.trajectories
            solution = self.flow.solve(point, seed=self.evaluation_seed(position), trajectories=trajectories)
            metrics.update(self.flow.read(solution, trajectories).float(), label)
            nfe = self._number(solution) if nfe is None else nfe
        values = metrics.compute() | {f"{metrics.prefix}nfe": nfe}
        metrics.reset()
        return values

    def validation_step(self, batch, batch_idx: int) -> None:
        self._keep(batch)

    def on_validation_epoch_end(self) -> None:
        for name, value in self._measure(self.val_metrics).items():
            self.log(name, value, prog_bar=name in ("val/accuracy", "val/nfe"), sync_dist=name == "val/nfe")

    def test_step(self, batch, batch_idx: int) -> None:
        self._keep(batch)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        for name, value in self._measure(self.test_metrics).items():
            self.log(name, value, sync_dist=name == "test/nfe")


def moments(path: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the paths, each (T, d), of paths (N, T, d).

    >>> moments(torch.tensor([[[1.0]], [[3.0]]]))
    (tensor([[2.]]), tensor([[2.]]))
    """
    return path.mean(0), path.var(0)


class PathMethod(DifferentialEquationMethod):
    """The mean squared error of a process's means, plus that of its variances, against those of the data's paths.

    A batch is a set of paths (N, T, d) at common times (N, T). The process starts where the paths do. Metrics: `mse`,
    the sum, of which `mse_mean` and `mse_variance` are the parts.

    Args:
        trajectories: paths of the process in a training step.
        test_trajectories: at an evaluation.
    """

    example = "path_sde"

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
        self, batch: Mapping[str, Tensor], trajectories: int, seed: int
    ) -> tuple[Tensor, Tensor, Solution]:
        """Squared errors of means and of variances (scalars), and the solution."""
        time, path = batch_fields(batch, TASKS["neural_sde"])
        if (time != time[0]).any():
            raise UserError(
                "The paths of a batch must have common times: means and variances are taken at each time."
            )
        start = path[torch.arange(trajectories, device=path.device) % len(path), 0]
        solution = self.flow.solve(start, seed=seed)
        states = solution.at(time[0])
        pairs = zip(moments(states.transpose(0, 1)), moments(path.to(states.dtype)), strict=True)
        of_mean, of_variance = (F.mse_loss(ours, data) for ours, data in pairs)
        return of_mean, of_variance, solution

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        of_mean, of_variance, solution = self.compare(batch, self.trajectories, self.training_seed())
        return self.regularised(of_mean + of_variance, solution)

    def _measure(self, batch: Mapping[str, Tensor], prefix: str) -> None:
        of_mean, of_variance, solution = self.compare(batch, self.test_trajectories, self.evaluation_seed())
        values = {"mse": of_mean + of_variance, "mse_mean": of_mean, "mse_variance": of_variance}
        values["nfe"] = self._number(solution)
        for name, value in values.items():
            self.log(f"{prefix}/{name}", value, sync_dist=True, batch_size=1)

    def validation_step(self, batch, batch_idx: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch, batch_idx: int) -> None:
        self._measure(batch, "test")
