"""The command line: `regbench train …` (train.py in the root is the same), `reproduce`, `compare`, `rerun`, `list` …"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from regbench import __version__
from regbench.errors import UserError

USAGE_ERROR = 2  # exit code of the user's mistakes
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
EXAMPLES = """\
for example:
  regbench list --search mix
  regbench info decoupled_mixup
  regbench train regularizer=decoupled_mixup dataset=mnist5k trainer.max_epochs=5
  regbench reproduce table=decoupled_mixup/cifar100 scale=small
  regbench compare dataset=mnist5k regularizer=none,mixup,cutmix seeds=5
"""
REPRODUCE_HELP = """\
Runs what is left of a paper's table and shows the published values beside the measured ones.

  regbench reproduce table=<slug>/<table> scale=small          (python scripts/reproduce.py is the same)

  table=        which table; `regbench tables` lists them
  scale=small   smoke (seconds), small (minutes a cell on two CPU cores), paper, or what else the table has
  seeds=        a number of seeds, or a list such as [0,1,2], in place of the table's
  only=         some cells: row/column, a row or a column; several with commas
  dry_run=true  print each cell's command lines
  two_steps=true  try two steps of each run on random images of the data's shape
  status=true   what is done, running, failed and left, and the time still needed
  retries=1     how often a run that failed is tried again
  rerun=        run again: failed, stale (made by other code than this), or all
  runs_dir=runs/tables  where runs lie; a run that is finished there is never run again
  reports_dir=reports   where the report goes
  publish=true  write the results into docs/results and the paper's page too (in a checkout)
  hydra/launcher=joblib hydra.launcher.n_jobs=2   which Hydra launcher runs them, and its options

Anything else is an override of every run, e.g. dataset.root=<folder>, accelerator=gpu, logger=none.
A sweep may be stopped at any moment; the same command goes on with it.
"""
COMPARE_HELP = """\
Which regularizer helps on my data? Runs each over several seeds and ranks them on validation.

  regbench compare dataset=image_folder dataset.root=<folder> regularizer=none,mixup,decoupled_mixup seeds=5

  regularizer=  the methods, two or more; `regbench list` shows them
  seeds=5       a number of seeds, or a list such as [0,1,2]; more of them later add to the same comparison
  baseline=     what the others are compared with (default: none, where it is among them, else the first)
  mixup.alpha=0.2,1.0   settings of one method: all combinations are run, and validation chooses one of them
  optimizer.lr=0.05,0.1 an option of every run; with several values they are settings of each method
  name=         of the comparison (default: from dataset and request); the report goes to reports/compare/<name>
  status=true, dry_run=true, retries=, rerun=, runs_dir=, reports_dir=, hydra/launcher=   as regbench reproduce has them

Differences to the baseline are paired over seeds and corrected for the number of methods and settings; the test set
is looked at once, for the settings that validation chose. docs/compare.md says more.
A comparison may be stopped at any moment; the same command goes on with it.
"""
MERGE_HELP = """\
Makes one network of finished runs' networks, on the data of the first run, in a run folder of its own.

  regbench merge runs=[<run folder>,<run folder>] method=fisher      (python scripts/merge.py is the same)

  runs=          two or more, of one architecture and one start (regularizer=fine_tune); the first is the target
  method=fisher  fisher, average, or ensemble (of outputs, of any networks with the same classes)
  out=merged     the new run folder: config.yaml, result.json, checkpoints/ and model.pt, the plain state_dict

Anything else is an override of the merging run, e.g. regularizer.merge_head=true for runs of one task,
regularizer.coefficients=[0.5,0.5] (without it validation accuracy chooses), regularizer.examples=1000.
"""
RERUN_HELP = """\
Runs a run's own configuration again, from scratch in a new folder, and says whether the same metrics come out.

  regbench rerun <run folder>                    of train.py or of a sweep, finished or not
  regbench rerun <run folder> seed=1 ...         with further overrides, which win over the run's own
  regbench rerun <run folder> hydra.run.dir=...  where the new run goes (default: <run folder>-rerun-<time>)

Where the metrics are not the same bit for bit, the two runs are compared as `regbench diff` does.
"""


def main(argv: list[str] | None = None) -> int:
    """The entry point of `regbench`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        return train(argv[1:])
    if argv[:1] == ["reproduce"]:
        return reproduce(argv[1:])
    if argv[:1] == ["compare"]:
        return compare(argv[1:])
    if argv[:1] == ["rerun"]:
        return rerun(argv[1:])
    if argv[:1] == ["merge"]:
        return merge(argv[1:])
    parser = argparse.ArgumentParser(
        prog="regbench",
        description="Regularization papers' methods behind one command.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"regbench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("train", help="train and test a method (regbench train --help)")
    commands.add_parser("reproduce", help="run a paper's table and report it (regbench reproduce --help)")
    commands.add_parser("compare", help="which regularizer helps on your data (regbench compare --help)")
    commands.add_parser("rerun", help="run a run again and compare the metrics (regbench rerun --help)")
    commands.add_parser("merge", help="make one network of finished runs' (regbench merge --help)")
    diff = commands.add_parser("diff", help="where two runs differ: configuration, code, versions, metrics")
    diff.add_argument("left", type=Path, help="a run's folder, of train.py or of a sweep")
    diff.add_argument("right", type=Path, help="another one")
    exported = commands.add_parser(
        "export", help="a run's network as a plain state_dict, without RegBench in it"
    )
    exported.add_argument("run", type=Path, help="the folder of a finished run")
    exported.add_argument(
        "file", type=Path, nargs="?", help="where it goes (default: model.pt in the run's folder)"
    )
    commands.add_parser("tables", help="the tables, with their scales")
    site = commands.add_parser("site", help="a static site over all papers and tables")
    site.add_argument(
        "folder", type=Path, nargs="?", default=Path("site"), help="where it goes (default: site)"
    )
    site.add_argument("--results", type=Path, action="append", default=[],
                      help="a folder with further results, such as reports; may be given several times")  # fmt: skip
    listing = commands.add_parser("list", help="the methods")
    listing.add_argument("--task", help="only methods of this task")
    listing.add_argument(
        "--search", help="only methods whose slug, title, authors or claim contain this text"
    )
    info = commands.add_parser("info", help="claim, hyperparameters and use of a method")
    info.add_argument("slug", help="the method's name, as `regbench list` shows it")
    cite = commands.add_parser("cite", help="a method's paper as BibTeX")
    cite.add_argument("slug", help="the method's name, as `regbench list` shows it")
    new = commands.add_parser("new", help="the five files of a new method")
    new.add_argument("slug", help="its name: lower case, digits and underscores")
    new.add_argument(
        "--family", default="classification", help="folder under regularizers/ (default: classification)"
    )
    new.add_argument("--package", type=Path, help="folder of a plug-in package (made where it is missing)")
    args = parser.parse_args(argv)
    return guard(lambda: _dispatch(args), debug=False)


def _dispatch(args: argparse.Namespace) -> int:
    from regbench import catalogue

    if args.command == "list":
        catalogue.show_list(args.task, args.search)
    elif args.command == "info":
        catalogue.show_info(args.slug)
    elif args.command == "export":
        from regbench.export import describe, export

        print(describe(args.run, export(args.run, args.file)))
    elif args.command == "tables":
        from regbench.tables.published import show_tables

        show_tables()
    elif args.command == "site":
        from regbench.tables.published import make_site

        print(make_site(args.folder, args.results))
    elif args.command == "diff":
        from regbench.run_diff import read_run, show_diff

        show_diff(read_run(args.left), read_run(args.right))
    elif args.command == "cite":
        print(catalogue.bibtex(args.slug))
    elif args.command == "new":
        from regbench.scaffold import new_method

        new_method(args.slug, args.family, args.package)
    return 0


def train(argv: list[str] | None = None) -> int:
    """`regbench train` and `python train.py`: hands Hydra's composed configuration to `regbench.training.run`."""
    argv = sys.argv[1:] if argv is None else argv
    return guard(lambda: _train(argv), debug="debug=true" in argv)


def reproduce(argv: list[str] | None = None) -> int:
    """`regbench reproduce` and `scripts/reproduce.py`: hands the request to Hydra's sweeper `regbench`."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or set(argv) & {"-h", "--help"}:
        print(REPRODUCE_HELP)
        return 0 if argv else USAGE_ERROR
    debug = "debug=true" in argv
    argv = [argument for argument in argv if not argument.startswith("debug=")]
    return guard(lambda: _train(sweeper_arguments(argv)), debug=debug)


def compare(argv: list[str]) -> int:
    """`regbench compare`: makes a table of the request, runs it as `reproduce` does, and prints the ranking."""
    if not argv or set(argv) & {"-h", "--help"}:
        print(COMPARE_HELP)
        return 0 if argv else USAGE_ERROR
    debug = "debug=true" in argv
    return guard(lambda: _compare([a for a in argv if not a.startswith("debug=")]), debug=debug)


def _compare(argv: list[str]) -> int:
    import json

    from regbench.tables.compare import prepare

    def written() -> int:
        return results.stat().st_mtime_ns if results.exists() else 0

    arguments, results = prepare(argv)
    before, code = written(), 0
    try:
        _train(sweeper_arguments(arguments))
    except SystemExit as ended:  # after the report, where runs have failed
        code = ended.code
    if written() != before:  # else it was a dry run, or status=true
        from regbench.tables.report.ranking import show

        show(json.loads(results.read_text(encoding="utf-8"))["ranking"])
    return code


def rerun(argv: list[str]) -> int:
    """`regbench rerun`: goes the way of `train` with a run's own overrides."""
    if not argv or set(argv) & {"-h", "--help"}:
        print(RERUN_HELP)
        return 0 if argv else USAGE_ERROR
    return guard(lambda: _rerun(argv), debug="debug=true" in argv)


def _rerun(argv: list[str]) -> None:
    from regbench.rerun import prepare, show_outcome

    earlier, arguments = prepare(Path(argv[0]), argv[1:])
    _train(arguments)
    show_outcome(earlier, _job.folder)


def merge(argv: list[str] | None = None) -> int:
    """`regbench merge` and `scripts/merge.py`."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or set(argv) & {"-h", "--help"}:
        print(MERGE_HELP)
        return 0 if argv else USAGE_ERROR
    return guard(lambda: _merge(argv), debug="debug=true" in argv)


def _merge(argv: list[str]) -> None:
    from regbench.merge_runs import describe, merge_runs

    options = {"runs": "", "method": "fisher", "out": "merged"}
    options |= {key: value for key, _, value in (a.partition("=") for a in argv) if key in options}
    overrides = [a for a in argv if a.partition("=")[0] not in options]
    runs = [Path(name.strip()) for name in options["runs"].strip("[]").split(",") if name.strip()]
    out = Path(options["out"])
    merge_runs(runs, options["method"], out, overrides)
    print(describe(out))


def sweeper_arguments(argv: list[str]) -> list[str]:
    """`table=… scale=… <overrides>` as the arguments by which Hydra starts the sweeper.

    Raises:
        UserError: an option that the sweeper does not have, or no table.

    >>> sweeper_arguments(["table=a/b", "only=x/y,z", "dataset.root=data", "hydra/launcher=joblib"])[4:]
    ["hydra.sweeper.only=['x/y','z']", 'hydra/launcher=joblib', "hydra.sweeper.overrides=['dataset.root=data']"]
    """
    from dataclasses import fields

    from regbench.tables.plan import hydra_list
    from regbench.tables.sweep import Request

    options = {field.name for field in fields(Request)} - {"overrides"}
    own, overrides = [], []
    for argument in argv:
        key, _, value = argument.partition("=")
        if key == "only":
            own.append(f"hydra.sweeper.only={hydra_list(value.strip('[]').split(','))}")
        elif key in options:
            own.append(f"hydra.sweeper.{key}={value}")
        elif key.startswith(("hydra/", "hydra.", "+hydra", "-")):
            own.append(argument)
        else:
            overrides.append(argument)
    if not any(argument.startswith("table=") for argument in argv):
        raise UserError("Which table? Give table=<slug>/<table>; `regbench tables` lists them.")
    quiet = (
        []
        if any("hydra_logging" in argument for argument in own)
        else ["hydra.hydra_logging.root.level=WARNING"]
    )
    return [
        "--multirun",
        "hydra/sweeper=regbench",
        *quiet,
        *own,
        f"hydra.sweeper.overrides={hydra_list(overrides)}",
    ]


def guard(call: Callable[[], int | None], *, debug: bool) -> int:
    """Runs `call`; turns a mistake of the user's into one message and exit code 2, Ctrl-C into 130."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without Unicode gets "?" instead of a traceback
    try:
        return call() or 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        if debug:
            raise
        return report(error)


def report(error: UserError) -> int:
    """Prints a mistake of the user's and returns its exit code."""
    print(f"regbench: {error}", file=sys.stderr)
    return USAGE_ERROR


def _train(argv: list[str]) -> None:
    import hydra
    import yaml
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from regbench.composing import explain, overrides_to_resume
    from regbench.paths import configs_dir

    # For each group that --help lists, Hydra copies its repository with the store of the plug-ins' configs, of which
    # nothing is changed: without this it would take longer with each paper.
    ConfigStore.__deepcopy__ = lambda self, memo: self
    argv = overrides_to_resume(argv)
    # Hydra reads sys.argv, and so does Lightning's DDP launcher, which starts this file for each further process.
    script = Path(sys.argv[0])
    if script.name != "train.py":
        script = Path(__file__).parent / "launch" / "train.py"
    sys.argv = [str(script), *argv]
    _job.started = False
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    try:
        hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name="train")(_job)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        if _job.started:  # then it is no mistake in the command, but a failure of the run
            raise
        if isinstance(error, yaml.YAMLError):
            raise UserError(f"A config file is no YAML: {' '.join(str(error).split())}.") from error
        if isinstance(error, HydraException | OmegaConfBaseException):
            raise explain(error, argv) from error
        if error.filename is None:
            raise
        folder = Path(error.filename)
        raise UserError(
            f"The run folder {folder} can't be made ({error.strerror}); set hydra.run.dir=<folder>."
        ) from error


def _job(cfg):
    """What Hydra calls with the composed configuration. Returns what a Hydra optimiser such as Optuna looks at."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from regbench.checks import check

    _job.started = True
    logging.getLogger("regbench").setLevel(logging.INFO)
    hydra_cfg = HydraConfig.get()
    _job.folder = Path(hydra_cfg.runtime.output_dir)
    try:
        check(cfg)  # before torch is imported
        from regbench.artifacts import obtain
        from regbench.training import run

        run(cfg, _job.folder, obtain(cfg, run))
        return _objective(_job.folder, cfg.checkpoint.monitor) if hydra_cfg.mode == RunMode.MULTIRUN else None
    except UserError as error:
        if hydra_cfg.mode == RunMode.MULTIRUN or cfg.debug:
            raise
        sys.exit(report(error))  # as an exception it would pass through Hydra, which prints a line of its own


def _objective(folder: Path, monitor: str) -> float | None:
    """The validation metric of the tested weights, which a search looks at; None where nothing was validated."""
    from regbench.runs import RunFolder
    from regbench.tables.ranking import validation
    from regbench.tables.reductions import RunData

    result = RunFolder(folder).result()
    if result is None or result["data"]["val"] == 0:
        return None
    return validation([RunData(result, folder)], monitor)


_job.started = False
