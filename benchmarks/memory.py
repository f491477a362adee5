"""Peak resident memory (MiB) above what the imports take.

    python memory.py bare|regbench <backbone> <dataset> <steps>

Each measurement is a process of its own, so that nothing stays from the one before.
"""

import resource
import sys

import regbench.torchvision_schemas  # noqa: F401

# isort: split
import pytorch_lightning  # noqa: F401
import timm  # noqa: F401
import torch

import bare_loop
from regbench import training  # noqa: F401
from runs import config, data_and_network, train_run


def resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def peak() -> float:
    """Not getrusage's ru_maxrss: a process inherits that of the one that started it."""
    with open("/proc/self/status") as file:
        (found,) = (line.split()[1] for line in file if line.startswith("VmHWM"))
    return int(found) / 1024


if __name__ == "__main__":
    kind, backbone, dataset, steps = sys.argv[1:]
    before = resident()
    cfg = config(backbone, dataset, epochs=1, steps=int(steps))
    if kind == "bare":
        data, network = data_and_network(cfg)
        torch.manual_seed(0)
        bare_loop.train(
            network, data.sets.train.images, data.sets.train.labels, batch=128, epochs=1, steps=int(steps)
        )
    else:
        train_run(cfg)
    print(peak() - before)
