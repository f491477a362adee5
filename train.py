"""Trains one regularizer on one dataset: `python train.py regularizer=decoupled_mixup dataset=cifar100`."""

import sys

from regbench.cli import train

if __name__ == "__main__":
    sys.exit(train())
