"""The folder of runs: one folder a run, named by its hash, and what state each is in.

Everything that is known of a run lies in its folder, so that sweeps on one folder of runs need no other
memory: a finished run has result.json, a failed one failed.json, one that is at work holds the lock.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regbench.errors import UserError
from regbench.files import write_whole
from regbench.locks import Lock

DONE, FAILED, RUNNING, INTERRUPTED, LEFT = "done", "failed", "running", "interrupted", "left"
RESULT_KEYS = ("metrics", "seed", "config", "duration_s")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder: `<runs_dir>/<hash>`."""

    path: Path

    @property
    def lock(self) -> Lock:
        """A new holder of the run's lock, which the process that runs it has."""
        return Lock(self.path / ".lock")

    def result(self) -> dict[str, Any] | None:
        """What result.json holds; None where there is none.

        A file that was cut short is moved aside and said, so that the run is run again.
        """
        file = self.path / "result.json"
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(result, dict) and all(key in result for key in RESULT_KEYS):
                return result
        except FileNotFoundError:
            return None
        except ValueError:
            pass
        aside = file.with_name(f"result.json.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        try:
            os.replace(file, aside)
        except FileNotFoundError:  # another sweep has done it
            return None
        print(
            f"regbench: {file} is cut short or damaged; it was moved to {aside.name}, and the run is run again.",
            flush=True,
        )
        return None

    def failure(self) -> dict[str, Any] | None:
        """{"attempts", "error", "log"} of a run that failed; None where it did not."""
        try:
            return json.loads((self.path / "failed.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def attempts(self) -> int:
        """How often the run has failed since it was last forgiven."""
        failure = self.failure()
        return failure["attempts"] if failure else 0

    def fail(self, error: str) -> None:
        """Notes that the run has failed once more."""
        content = {"attempts": self.attempts() + 1, "error": error, "log": str(self.path / "train.log")}
        write_whole(self.path / "failed.json", json.dumps(content, indent=2) + "\n")

    def forgive(self) -> None:
        """Forgets earlier failures."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def checkpoint(self) -> Path | None:
        """The checkpoint of the last whole epoch, where there is one."""
        last = self.path / "checkpoints" / "last.ckpt"
        return last if last.is_file() else None

    def state(self) -> str:
        if self.result() is not None:
            return DONE
        if self.locked():
            return RUNNING
        if self.failure() is not None:
            return FAILED
        return INTERRUPTED if self.checkpoint() else LEFT

    def locked(self) -> bool:
        """Whether a process is at work in the folder."""
        if not (self.path / ".lock").exists():
            return False
        lock = self.lock
        free = lock.acquire()
        lock.release()
        return not free

    def epochs_done(self) -> int:
        """Whole epochs of a run that is not finished, as metrics.csv has them."""
        try:
            lines = (self.path / "metrics.csv").read_text(encoding="utf-8").splitlines()
            return 1 + int(float(lines[-1].split(",")[0]))
        except (OSError, ValueError, IndexError):
            return 0

    def set_aside(self) -> Path:
        """Moves the folder to `<runs_dir>/old/<hash>-<time>`, so that the run can be run anew and nothing is lost."""
        old = self.path.parent / "old" / f"{self.path.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        old.parent.mkdir(exist_ok=True)
        os.rename(self.path, old)
        return old


def check_runs_dir(folder: Path) -> None:
    """Raises UserError where the folder of runs can't be made or written, or has no room."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 1024)
        probe.unlink()
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        raise UserError(
            f"The runs folder {folder} can't be written ({error.strerror}). Free some space or choose another with "
            "runs_dir=<folder>; the runs that are finished are kept."
        ) from error
