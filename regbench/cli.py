"""The command line: `regbench train …` (train.py in the root is the same), `list`, `info`, `cite` and `new`."""

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
"""


def main(argv: list[str] | None = None) -> int:
    """The entry point of `regbench`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        return train(argv[1:])
    parser = argparse.ArgumentParser(
        prog="regbench",
        description="Regularization papers' methods behind one command.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"regbench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("train", help="train and test a method (regbench train --help)")
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
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from regbench.composing import explain, overrides_to_resume
    from regbench.paths import configs_dir

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
        if not isinstance(error, OSError):
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
    try:
        check(cfg)  # before torch is imported
        from regbench.training import run

        return run(cfg, Path(hydra_cfg.runtime.output_dir)).get(cfg.checkpoint.monitor)
    except UserError as error:
        if hydra_cfg.mode == RunMode.MULTIRUN or cfg.debug:
            raise
        sys.exit(report(error))  # as an exception it would pass through Hydra, which prints a line of its own


_job.started = False
