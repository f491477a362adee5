"""A lock between processes, on a file. The system lets it go when the last process that holds it ends, in any way."""

import fcntl
from pathlib import Path


class Lock:
    """An exclusive lock on a file (flock; over NFS too on Linux). Not reentrant: each `Lock` is a holder of its own.

    Not the library filelock: a child process that goes on with the work has to keep the lock when its parent
    is killed, so the open file must be one that can be handed on (`subprocess.Popen(..., pass_fds=[lock.fileno()])`).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "lock"
    >>> first, second = Lock(path), Lock(path)
    >>> first.acquire(), second.acquire(), first.release(), second.acquire()
    (True, False, None, True)
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Takes the lock; False where another holds it and `wait` is false. Makes the file where it is missing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def fileno(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> "Lock":
        self.acquire(wait=True)
        return self

    def __exit__(self, *error) -> None:
        self.release()
