"""Solving transport problems and measuring the plans. A method overrides `solve`.

There is nothing to train: a run solves the test problems, see `regbench.data.transport`.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from regbench.functional.optimal_transport import Solution, check_problem
from regbench.registry import TASKS
from regbench.regularizers.base import Method, batch_fields

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1
ENTRY = 1e-10  # an entry of a plan is one above this share of the plan's sum


def plan_metrics(plan: Tensor, cost: Tensor, source: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What a plan (m, n) costs, how sparse it is, and how far its marginals are off; every value a scalar.

    - cost: <T, C>;
    - nonzeros: number of entries; nonzero_share: of m n; max_column: of the fullest column;
    - row_error, column_error: sums over the rows (columns) of |row sum − a| (|column sum − b|); row_error_squared and
      column_error_squared: of the squares.

    >>> plan = torch.tensor([[0.5, 0.0], [0.125, 0.25]])
    >>> half = torch.tensor([0.5, 0.5])
    >>> found = plan_metrics(plan, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), half, half)
    >>> {name: found[name].item() for name in ("cost", "nonzeros", "max_column", "row_error", "column_error")}
    {'cost': 0.125, 'nonzeros': 3.0, 'max_column': 2.0, 'row_error': 0.125, 'column_error': 0.375}
    """
    entries = (plan > ENTRY * plan.sum()).to(cost.dtype)
    rows, columns = plan.sum(1) - source, plan.sum(0) - target
    return {
        "cost": (plan * cost).sum(),
        "nonzeros": entries.sum(),
        "nonzero_share": entries.mean(),
        "max_column": entries.sum(0).max(),
        "row_error": rows.abs().sum(),
        "column_error": columns.abs().sum(),
        "row_error_squared": (rows**2).sum(),
        "column_error_squared": (columns**2).sum(),
    }


class TransportMethod(Method):
    """Solves each problem of the test split; metrics are means over the problems.

    A batch holds cost (B, m, n), source weights (B, m) and target weights (B, n). The backbone is not used:
    `backbone=none`.
    """

    trains: ClassVar[bool] = False

    def __init__(self, backbone: nn.Module, num_classes: int = 0, **base):
        super().__init__(backbone, num_classes, **base)
        self.first: Solution | None = None  # of the last test's first problem
        self._means: dict[str, MeanMetric] = {}

    # -- what a method overrides -----------------------------------------------------------------------------------

    def solve(self, cost: Tensor, source: Tensor, target: Tensor) -> Solution:
        """Solves one problem: cost (m, n), source (m,), target (n,)."""
        raise NotImplementedError(f"{type(self).__name__} defines no solve")

    def measure(self, solution: Solution, cost: Tensor, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """name → scalar of one problem; shown as test/<name>."""
        return {
            "value": solution.value,
            **plan_metrics(solution.plan, cost, source, target),
            "iterations": torch.tensor(float(solution.iterations)),
            "converged": torch.tensor(float(solution.converged)),
        }

    def evaluate(self, cost: Tensor, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Solves and measures one problem. A method whose answer is no plan overrides it in place of the two above."""
        check_problem(cost, source, target)
        solution = self.solve(cost, source, target)
        if self.first is None:
            self.first = solution
        return self.measure(solution, cost, source, target)

    # -- evaluation --------------------------------------------------------------------------------------------------

    @staticmethod
    def problems(batch: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The batch's problems, in float64 on the CPU: float32 is too coarse for marginals and for L-BFGS."""
        fields = batch_fields(batch, TASKS["optimal_transport"])
        return list(zip(*(field.to("cpu", torch.float64) for field in fields), strict=True))

    def on_test_epoch_start(self) -> None:
        self.first = None
        self._means.clear()

    def test_step(self, batch, batch_idx: int) -> None:
        for problem in self.problems(batch):
            for name, value in self.evaluate(*problem).items():
                mean = self._means.setdefault(name, MeanMetric().set_dtype(torch.float64))
                mean.update(value.double())

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": mean.compute().float() for name, mean in self._means.items()})
