"""A package of someone else's, really installed: its method, datasets and backbone are RegBench's own equals."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, read_result

from regbench import registry
from regbench.errors import UserError

MAIN = "import sys; from regbench.cli import main; sys.exit(main(sys.argv[1:]))"
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "toy-plugin"
version = "1.0"

[project.entry-points."regbench.plugins"]
toy = "toy_plugin"

[tool.hatch.build.targets.wheel]
packages = ["toy_plugin"]
"""
METHOD = '''
"""Cross entropy minus a share of the entropy of the prediction."""

import torch.nn.functional as F

from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod


@register("toy_entropy", task="classification",
          paper=Paper(title="A Toy", authors="Ada Toy", year=2024, venue="Toys"))
class ToyEntropy(ClassificationMethod):
    """Toys that are less sure of themselves
    play better.

    More on toys.
    """

    def __init__(self, backbone, num_classes, *, beta: float = 0.1, **base):
        super().__init__(backbone, num_classes, **base)
        self.beta = beta

    def objective(self, logits, label, draw):
        log_p = F.log_softmax(logits, dim=1)
        return F.nll_loss(log_p, label) + self.beta * (log_p.exp() * log_p).sum(dim=1).mean()
'''
DATA = '''
import torch

from regbench.data.sets import Split, in_memory


def load_stripes(root, side):
    """Stripes (class 0) or columns (class 1) at a random place."""
    images = torch.zeros(120, 1, side, side, dtype=torch.uint8)
    for i in range(len(images)):
        (images[i, 0] if i % 2 else images[i, 0].T)[i % side] = 255
    labels = torch.arange(120) % 2
    return in_memory(Split(images[:80], labels[:80]), Split(images[80:], labels[80:]), ["stripe", "column"])


def load_graphs(root):
    raise RuntimeError("the data was read")
'''
NET = """
from torch import nn


def linear(in_channels, image_size, num_classes, *, bias):
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, num_classes, bias=bias))
"""
SHADOW = '''
from regbench.registry import register
from regbench.regularizers.classification.base import ClassificationMethod


@register("cutmix", task="classification", paper=None)
class Mine(ClassificationMethod):
    """Another cutmix."""
'''
DEFAULTS = """
defaults:
  - override /dataset@_global_.dataset: toy_stripes
  - override /backbone@_global_.backbone: toy_linear
"""
FILES = {
    "pyproject.toml": PROJECT,
    "toy_plugin/__init__.py": "raise RuntimeError('a plug-in is imported only when its method is used')\n",
    "toy_plugin/regularizers/classification/toy_entropy.py": METHOD,
    "toy_plugin/regularizers/classification/cutmix.py": SHADOW,
    "toy_plugin/configs/regularizer/toy_entropy.yaml": f"{DEFAULTS}\nname: toy_entropy\nbeta: 0.1  # share of the entropy\n",
    "toy_plugin/configs/dataset/toy_stripes.yaml": (
        "defaults: [_base, _self_]\nname: toy_stripes\nbatch_size: 16\n"
        "load:\n  _target_: toy_plugin_parts.load_stripes\n  side: 6\n"
    ),
    "toy_plugin/configs/dataset/toy_graphs.yaml": (
        "name: toy_graphs\nfields: [x, edge_index]\nload:\n  _target_: toy_plugin_parts.load_graphs\n"
    ),
    "toy_plugin/configs/dataset/digits.yaml": "name: not_these_digits\n",
    "toy_plugin/configs/backbone/toy_linear.yaml": (
        "name: toy_linear\n_target_: toy_plugin_parts.linear\nbias: true\n"
    ),
}
