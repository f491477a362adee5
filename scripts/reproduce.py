"""Reproduces a table: `python scripts/reproduce.py table=decoupled_mixup/cifar100 scale=small`."""

import sys

from regbench.cli import reproduce

if __name__ == "__main__":
    sys.exit(reproduce())
