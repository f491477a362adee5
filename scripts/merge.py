"""Merges finished runs: `python scripts/merge.py runs=[runs/a/…,runs/b/…] method=fisher`."""

import sys

from regbench.cli import merge

if __name__ == "__main__":
    sys.exit(merge())
