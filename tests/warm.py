"""Programs in processes of their own, without the seconds that importing torch and Lightning takes in each.

multiprocessing's fork server imports them once for each pytest process, and a program is a fork of it. What a program
starts itself (the second process of DDP, the workers of a launcher) are new interpreters, as for a user.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["regbench.torchvision_schemas", "regbench.training", "regbench.tables.sweep", "sklearn.datasets"]
)


def _main(
    program: str, arguments: tuple[str, ...], cwd: Path, environment: Mapping, outputs: list[Path]
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [str(Path(program).parent), *filter(None, folders)]
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(program, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a fork leaves them out; W&B ends its run there


class Program:
    """`python <program> <arguments>` in a session of its own; the part of subprocess.Popen that the tests use."""

    def __init__(self, program: Path, arguments: tuple[str, ...], *, cwd: Path, environment: Mapping,
                 merge: bool = False):  # fmt: skip
        folder = Path(mkdtemp(prefix="program-", dir=cwd))
        out = folder / "stdout"
        self.outputs = [out, out if merge else folder / "stderr"]
        for path in self.outputs:
            path.touch()
        self.process = FORKS.Process(
            target=_main, args=(str(program), arguments, cwd, dict(environment), self.outputs)
        )
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Standard output and error, once the program has ended; TimeoutError where that takes too long."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"{self.process.name} took more than {timeout} s")
        out, err = (path.read_text() for path in self.outputs)
        return out, err


def run(program: Path, arguments: tuple[str, ...], *, cwd: Path, environment: Mapping,
        timeout: float = 300) -> subprocess.CompletedProcess:  # fmt: skip
    """As subprocess.run with captured text."""
    started = Program(program, arguments, cwd=cwd, environment=environment)
    out, err = started.communicate(timeout)
    return subprocess.CompletedProcess([str(program), *arguments], started.returncode, out, err)
