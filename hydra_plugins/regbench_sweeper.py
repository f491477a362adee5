"""The Hydra sweeper `regbench`: runs a table, on whichever Hydra launcher is chosen.

`python scripts/reproduce.py table=…` chooses it; so does `train.py --multirun hydra/sweeper=regbench
hydra.sweeper.table=…`. Hydra reads every plug-in at each start, so what it needs is imported where it is used.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf, open_dict, read_write


@dataclass
class TableSweeperConf:
    _target_: str = "hydra_plugins.regbench_sweeper.TableSweeper"
    table: str = "???"  # <slug>/<table>
    scale: str = "small"
    seeds: Any = None  # a number of seeds or a list of them; null: the table's
    only: Any = None  # a list of cells as row/column, row or column; null: all
    retries: int = 1  # how often a run that failed is tried again
    rerun: Any = None  # failed | stale | all
    dry_run: bool = False
    status: bool = False
    two_steps: bool = False
    publish: bool = False  # also into docs/results and the paper's page
    runs_dir: str = "runs/tables"
    reports_dir: str = "reports"
    overrides: list[str] = field(default_factory=list)  # of every run


ConfigStore.instance().store(
    group="hydra/sweeper", name="regbench", node=TableSweeperConf, provider="regbench"
)


class TableSweeper(Sweeper):
    def __init__(self, **request: Any):
        self.request = request

    def setup(self, *, hydra_context, task_function, config) -> None:
        from pathlib import Path

        from hydra.core.plugins import Plugins

        from regbench.tables.job import job

        self.loader = hydra_context.config_loader
        with read_write(config), open_dict(config):  # where a launcher keeps its own files
            config.hydra.sweep.dir = str(Path(self.request["runs_dir"]).absolute())
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=job, config=config
        )
        self.launched = 0

    def sweep(self, arguments: list[str]) -> Any:
        from regbench.tables.plan import Composer
        from regbench.tables.sweep import Request, as_seeds, reproduce

        options = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in self.request.items()
        }
        options["seeds"] = as_seeds(options["seeds"])
        if isinstance(options["only"], str):
            options["only"] = [options["only"]]
        options["overrides"] += arguments
        return reproduce(Request(**options), Composer(self.loader), self._launch)

    def _launch(self, jobs: list[list[str]]) -> None:
        self.launcher.launch(jobs, initial_job_idx=self.launched)
        self.launched += len(jobs)
