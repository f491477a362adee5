"""A table, from its plan to its report: what the Hydra sweeper `regbench` does.

All that a sweep knows lies in the folder of runs, so that it can be stopped at any moment and started again,
and several can work on one folder at once.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable

from regbench.errors import UserError, unknown
from regbench.fingerprints import fingerprint_of
from regbench.runs import DONE, FAILED, INTERRUPTED, LEFT, RUNNING, RunFolder, check_runs_dir
from regbench.tables.measure import BLOCKED, is_stale, measure, run_states
from regbench.tables.plan import NOT_RUNNABLE, Composer, Plan, PlannedRun, make_plan, quoted_value
from regbench.tables.spec import Table, load_table
from regbench.terminal import plain_console

log = logging.getLogger("regbench")

RERUNS = ("failed", "stale", "all")
POLL_SECONDS = 1.0

Launch = Callable[
    [list[list[str]]], Any
]  # starts jobs, each given by its overrides, and returns when they have ended


@dataclass
class Request:
    """What is asked for: the keys of `python scripts/reproduce.py`."""

    table: str = ""
    scale: str = "small"
    seeds: list[int] | None = None
    only: list[str] | None = None
    retries: int = 1
    rerun: str | None = None
    dry_run: bool = False
    status: bool = False
    two_steps: bool = False
    publish: bool = False
    runs_dir: str = "runs/tables"
    reports_dir: str = "reports"
    overrides: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        """The command that makes the table, without what concerns this machine."""
        own = [f"table={self.table}", f"scale={self.scale}"]
        if self.seeds:
            own.append(f"seeds={self.seeds}".replace(" ", ""))
        if self.only:
            own.append(f"only={','.join(self.only)}")
        return " ".join(["python scripts/reproduce.py", *own, *self.overrides])


def reproduce(request: Request, composer: Composer, launch: Launch) -> dict[str, Any] | None:
    """Runs what is left of a table and reports it. Returns the results; None where nothing was to be run.

    Raises:
        UserError: a mistake in the request or the table's file, before anything is run.
        SystemExit: with code 1, after the report, where runs have failed.
    """
    table = load_table(request.table)
    request.table = table.key
    if request.rerun is not None and request.rerun not in RERUNS:
        raise unknown("rerun", request.rerun, RERUNS)
    if request.dry_run or request.two_steps:
        plan = _plan(table, request, composer, read_data=False)
        if request.dry_run:
            _show_commands(plan)
        else:
            _try(plan)
        return None
    runs_dir = Path(request.runs_dir).absolute()
    check_runs_dir(runs_dir)
    plan = _plan(table, request, composer, read_data=True)
    if request.status:
        _show_status(plan, runs_dir)
        return None
    return run_plan(plan, request, runs_dir, launch)


def run_plan(plan: Plan, request: Request, runs_dir: Path, launch: Launch) -> dict[str, Any]:
    """Runs what is left of a plan, reports and shows it. Raises SystemExit as `reproduce` does."""
    if request.rerun:
        _make_anew(plan, runs_dir, request.rerun)
    done = sum(RunFolder(runs_dir / key).result() is not None for key in plan.runs)
    print(
        f"{plan.table.key} at scale {plan.scale}: {len(plan.runs)} runs, {done} of them finished. "
        f"Runs lie in {runs_dir}.",
        flush=True,
    )
    try:
        with _progress(plan, runs_dir):
            for wave in _waves(plan):
                _run_wave(wave, plan, request, runs_dir, launch)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is left, from the last whole epoch of each run.")
        raise
    results = measure(plan, runs_dir, request.command)
    _report(results, plan, request, runs_dir)
    unfinished = [run for run in results["runs"].values() if run["state"] != DONE]
    if unfinished:
        raise SystemExit(1)
    return results


def _plan(table: Table, request: Request, composer: Composer, *, read_data: bool) -> Plan:
    memory = Path(request.runs_dir).absolute() / ".fingerprints.json"
    return make_plan(
        table,
        request.scale,
        composer,
        overrides=request.overrides,
        seeds=request.seeds,
        only=request.only,
        fingerprint=partial(fingerprint_of, memory=memory) if read_data else None,
    )


def _waves(plan: Plan) -> list[list[str]]:
    """The runs' keys in groups, each of which starts only from runs of earlier groups.

    Within a group the first seed comes first: the whole table is there early, and then gains seeds.
    """
    level: dict[str, int] = {}
    for key, run in plan.runs.items():  # makers come before users
        level[key] = 1 + max((level[maker] for maker in run.makers.values()), default=-1)
    by_seed = sorted(level, key=lambda key: plan.runs[key].seed)
    return [[key for key in by_seed if level[key] == at] for at in range(max(level.values(), default=-1) + 1)]


def _run_wave(wave: list[str], plan: Plan, request: Request, runs_dir: Path, launch: Launch) -> None:
    """Launches what is left of a wave until all is finished, or has failed as often as it may."""
    launched: dict[str, int] = dict.fromkeys(wave, 0)
    while True:
        left = []
        for key in wave:
            folder, run = RunFolder(runs_dir / key), plan.runs[key]
            blocked = any(RunFolder(runs_dir / maker).result() is None for maker in run.makers.values())
            # A run that ended without a result and without noting a failure was killed; it counts by its launches.
            tried = max(folder.attempts(), launched[key]) > request.retries
            if not blocked and not tried and folder.result() is None:
                left.append(key)
        elsewhere = [key for key in left if RunFolder(runs_dir / key).locked()]
        mine = [key for key in left if key not in elsewhere]
        if not left:
            return
        if not mine:  # another sweep works on what is left: wait for it, and take over what it leaves
            time.sleep(POLL_SECONDS)
            continue
        for key in mine:
            launched[key] += 1
        try:
            launch([_job_overrides(plan.runs[key], plan, request, runs_dir) for key in mine])
        except UserError:
            raise
        except Exception as error:  # a worker that was killed; what it did is in the folder of runs
            log.warning("The launcher stopped: %s: %s", type(error).__name__, error)


def _job_overrides(run: PlannedRun, plan: Plan, request: Request, runs_dir: Path) -> list[str]:
    """What the launcher gets for a run: its overrides, and what only concerns how it is shown and where it lies."""
    shown = [] if any(o.startswith("progress=") for o in run.overrides) else ["progress=none"]
    cells = ",".join(quoted_value(cell) for cell in run.cells)
    return [
        *run.overrides,
        *shown,
        *(f"++artifacts.{role}.run={maker}" for role, maker in run.makers.items()),
        f"runs_dir={quoted_value(str(runs_dir))}",
        f"run_name={quoted_value(f'{run.name}-s{run.seed}')}",
        f"run_group={quoted_value(f'{plan.table.key}/{plan.scale}')}",
        f"run_tags=[{cells}]",
        f"hydra.sweep.dir={quoted_value(str(runs_dir))}",
        f"hydra.sweep.subdir={quoted_value(run.hash)}",  # 0e60290527173673 would be a number
        "hydra.job_logging.root.handlers=[file]",
    ]


def _make_anew(plan: Plan, runs_dir: Path, which: str) -> None:
    """Sets aside what `rerun` names, so that it is run again; failed runs are only forgiven."""
    for key in plan.runs:
        folder = RunFolder(runs_dir / key)
        lock = folder.lock
        if not folder.path.is_dir() or not lock.acquire():
            continue
        result = folder.result()
        if which == "failed" and result is None:
            folder.forgive()
        elif result is not None and (which == "all" or (which == "stale" and is_stale(result))):
            print(f"regbench: {key} is run anew; what was there lies in {folder.set_aside()}.")
        lock.release()


@contextmanager
def _progress(plan: Plan, runs_dir: Path):
    """Shows how many runs are finished: a bar in a terminal, else a line for each run.

    It looks into the folder of runs, so that it works with every launcher.
    """
    terminal = sys.stdout.isatty()
    bar = Progress(TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                   TextColumn("{task.description}"), disable=not terminal)  # fmt: skip
    task = bar.add_task("", total=len(plan.runs))
    open_runs = dict(plan.runs)
    stop = threading.Event()

    def look(say: bool) -> None:
        for key, run in list(open_runs.items()):
            folder = RunFolder(runs_dir / key)
            if (folder.path / "result.json").exists() and (result := folder.result()) is not None:
                del open_runs[key]
                if say and not terminal:
                    done = len(plan.runs) - len(open_runs)
                    print(
                        f"[{done}/{len(plan.runs)}] {run.name}, seed {run.seed}: {result['duration_s']:.1f} s",
                        flush=True,
                    )
        cells = sum(
            all(k not in open_runs for keys in c.runs.values() for k in keys) for c in plan.cells if c.runs
        )
        of = sum(bool(c.runs) for c in plan.cells)
        bar.update(task, completed=len(plan.runs) - len(open_runs), description=f"{cells} of {of} cells")

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            look(say=True)

    look(say=False)
    watcher = threading.Thread(target=watch, daemon=True)
    with bar:
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            look(say=True)


def _report(results: dict[str, Any], plan: Plan, request: Request, runs_dir: Path) -> None:
    from regbench.tables.report import write_report

    folder = Path(request.reports_dir) / plan.table.slug / plan.table.name / plan.scale
    files = write_report(results, folder)
    if "wandb" in plan.logger:
        from regbench.tables.wandb_table import log_table

        log_table(results, plan.logger["wandb"], folder)
    show_results(results)
    print(f"\nReport: {next(path for path in files if path.suffix == '.html')}")
    if request.publish:
        from regbench.tables.published import publish

        for path in publish(results):
            print(f"Written: {path}")
    offline = sorted(runs_dir.glob("*/wandb/offline-run-*"))
    if offline:
        print(f"{len(offline)} offline W&B runs; send them with: wandb sync {runs_dir}/*/wandb/offline-run-*")


def show_results(results: dict[str, Any]) -> None:
    """Prints the table, published beside measured, and the claims with their verdicts."""
    from regbench.tables.report.view import view

    shown = view(results)
    console = plain_console()
    title = f"{results['title']}: scale {results['scale']}, {', '.join(results['data'])}"
    table = RichTable(results["row_title"], title=title, title_justify="left", box=None, header_style="bold")
    for column in shown.columns:
        table.add_column(f"{column}\npublished | measured" if shown.published else column, justify="right")
    for label, entries in shown.rows:
        table.add_row(
            label, *(f"{e.published} | {e.measured}" if shown.published else e.measured for e in entries)
        )
    console.print()
    console.print(table)
    for i, note in enumerate(shown.notes):
        console.print(f"{i + 1}. {note}")
    for verdict in shown.verdicts:
        if not verdict.part:
            seeds = f"{verdict.seeds} seed{'' if verdict.seeds == '1' else 's'}"
            said = f"{verdict.effect}, {verdict.interval}, {seeds}"
            console.print(f"{verdict.verdict}: {verdict.says} ({said}; {verdict.context})", soft_wrap=True)


def _show_commands(plan: Plan) -> None:
    """Every cell with the command lines of its runs."""
    for cell in plan.cells:
        place = f"{cell.cell.row}/{cell.cell.column}"
        if cell.state == NOT_RUNNABLE:
            print(f"# {place} is not runnable: {cell.why}")
        for seed, keys in cell.runs.items():
            print(f"# {place}, seed {seed}")
            for key in keys:
                print(plan.runs[key].command)


def _try(plan: Plan) -> None:
    """Two steps of each run of the first seed on random images: what would fail, fails before it is queued."""
    import tempfile

    from regbench.tables.two_steps import two_steps

    runs = [run for run in plan.runs.values() if run.seed == plan.seeds[0]]
    for i, run in enumerate(runs):
        with tempfile.TemporaryDirectory() as folder:
            two_steps(run, Path(folder), plan.runs)
        print(f"[{i + 1}/{len(runs)}] {run.name}: two steps", flush=True)


def _show_status(plan: Plan, runs_dir: Path) -> None:
    """How many runs are in which state, which have failed, and the time still needed."""
    folders = {key: RunFolder(runs_dir / key) for key in plan.runs}
    states = run_states(plan, folders)
    print(f"{plan.table.key} at scale {plan.scale}, runs in {runs_dir}")
    table = RichTable("state", "runs", box=None)
    for state in (DONE, RUNNING, INTERRUPTED, FAILED, BLOCKED, LEFT):
        table.add_row(state, str(sum(found == state for found in states.values())))
    plain_console().print(table)
    for key, state in states.items():
        if state == FAILED:
            failure = folders[key].failure()
            print(
                f"failed: {plan.runs[key].name}, seed {plan.runs[key].seed}: {failure['error']} (log: {failure['log']})"
            )
    print(_time_needed(plan, folders, states))


def _time_needed(plan: Plan, folders: dict[str, RunFolder], states: dict[str, str]) -> str:
    """An estimate from finished runs of the same name, else of the whole table; whole epochs of started runs count."""
    taken: dict[str, list[float]] = {}
    for key, state in states.items():
        if state == DONE:
            taken.setdefault(plan.runs[key].name, []).append(folders[key].result()["duration_s"])
    open_keys = [key for key, state in states.items() if state in (RUNNING, INTERRUPTED, LEFT)]
    if not open_keys:
        return "Nothing is left to run."
    everything = [seconds for durations in taken.values() for seconds in durations]
    if not everything:
        return "The time still needed is not known before the first run is finished."
    seconds = 0.0
    for key in open_keys:
        run = plan.runs[key]
        durations = taken.get(run.name, everything)
        done = folders[key].epochs_done() / run.config["trainer"]["max_epochs"]
        seconds += max(0.0, 1 - done) * sum(durations) / len(durations)
    return f"Time still needed: about {_duration(seconds)} of one process ({len(open_keys)} runs)."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def as_seeds(value: Any) -> list[int] | None:
    """`seeds=5` is 0 to 4; `seeds=[3,4]` are these. Raises UserError for anything else."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return list(range(value))
    if isinstance(value, Sequence) and value and all(isinstance(seed, int) and seed >= 0 for seed in value):
        return list(dict.fromkeys(value))
    raise UserError(f"seeds={value}: it is a number of seeds, at least 1, or a list of them such as [0,1,2].")
