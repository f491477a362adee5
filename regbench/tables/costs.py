"""What a run cost, as a cell's number: `value: {function: regbench.tables.costs.training_seconds}`."""

from collections.abc import Sequence

from regbench.tables.reductions import RunData


def training_seconds(runs: Sequence[RunData], metric: str) -> float:
    """Wall-clock seconds of the run's training, on the machine and beside the load that it had."""
    (run,) = runs
    return float(run.result["fit_s"])
