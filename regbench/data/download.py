"""Downloads by the library that owns the addresses; they stop early without a network."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from regbench.errors import UserError

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0


def download(torchvision_class: str, root: Path, error: Callable[[str], UserError], **options) -> None:
    """Downloads and unpacks a torchvision dataset into `root`.

    Args:
        torchvision_class: name of a class in torchvision.datasets that has `url` and takes `download`.
        error: makes the error to raise from the reason, a sentence.
        options: further arguments of the class.

    Raises:
        UserError: within seconds where the host does not answer, or where the download fails.
    """
    from torchvision import datasets

    cls = getattr(datasets, torchvision_class)
    with from_host(cls.url, error):
        root.mkdir(parents=True, exist_ok=True)
        cls(root, download=True, **options)


@contextmanager
def from_host(address: str, error: Callable[[str], UserError]) -> Iterator[None]:
    """Around a download from an address: stops before it where the host does not answer, and where it stalls or fails.

    Args:
        error: makes the error to raise from the reason, a sentence.
    """
    url = urlsplit(address)
    host, port = url.hostname, 443 if url.scheme == "https" else 80
    if url.scheme not in getproxies():  # through a proxy, only the proxy knows whether the host answers
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
        except OSError as problem:
            raise error(f"(No download: {host} can't be reached: {problem}.)") from None
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(READ_SECONDS)  # else a stalled download waits for ever
    try:
        yield
    except (OSError, RuntimeError, ValueError) as problem:
        raise error(f"(The download from {host} failed: {problem}.)") from None
    finally:
        socket.setdefaulttimeout(before)
