"""Downloads by torchvision, which owns the addresses and the checksums, with an early stop where no network is."""

import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from regbench.errors import UserError

CONNECT_SECONDS = 5.0


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
    host = urlsplit(cls.url).hostname
    try:
        socket.create_connection((host, 443), timeout=CONNECT_SECONDS).close()
    except OSError as problem:
        raise error(f"(No download: {host} can't be reached: {problem}.)") from None
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # for each read, so that a stalled download ends
    try:
        root.mkdir(parents=True, exist_ok=True)
        cls(root, download=True, **options)
    except (OSError, RuntimeError, ValueError) as problem:
        raise error(f"(The download from {host} failed: {problem}.)") from None
    finally:
        socket.setdefaulttimeout(before)
