"""A package of someone else's, really installed: its method, dataset and backbone beside RegBench's own."""

import os
import re
import subprocess
import sys

import pytest

from regbench import registry
from regbench.errors import UserError
from support import ROOT, read_result, weights

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

    def objective(self, logits, batch):
        log_p = F.log_softmax(logits, dim=1)
        return F.nll_loss(log_p, batch.label) + self.beta * (log_p.exp() * log_p).sum(dim=1).mean()
'''
PARTS = '''
import torch
from torch import nn

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


def linear(in_channels, image_size, num_classes, *, bias):
    height, width = image_size
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, num_classes, bias=bias))
'''
SHADOW = '''
from regbench.registry import register
from regbench.regularizers.classification.base import ClassificationMethod


@register("cutmix", task="classification", paper=None)
class Mine(ClassificationMethod):
    """Another cutmix."""
'''
CONFIG = """
defaults:
  - override /dataset@_global_.dataset: toy_stripes
  - override /backbone@_global_.backbone: toy_linear

name: toy_entropy
beta: 0.1  # share of the entropy
"""
STRIPES = """
defaults: [_base, _self_]
name: toy_stripes
batch_size: 16
load:
  _target_: toy_plugin.parts.load_stripes
  side: 6
"""
GRAPHS = """
name: toy_graphs
fields: [x, edge_index]
load:
  _target_: toy_plugin.parts.load_graphs
"""
LINEAR = """
name: toy_linear
_target_: toy_plugin.parts.linear
bias: true
"""
FILES = {
    "pyproject.toml": PROJECT,
    "toy_plugin/__init__.py": "import sys\n\nprint('toy_plugin is imported', file=sys.stderr)\n",
    "toy_plugin/parts.py": PARTS,
    "toy_plugin/regularizers/classification/toy_entropy.py": METHOD,
    "toy_plugin/regularizers/classification/cutmix.py": SHADOW,
    "toy_plugin/configs/regularizer/toy_entropy.yaml": CONFIG,
    "toy_plugin/configs/dataset/toy_stripes.yaml": STRIPES,
    "toy_plugin/configs/dataset/toy_graphs.yaml": GRAPHS,
    "toy_plugin/configs/dataset/digits.yaml": "name: other_digits\n",
    "toy_plugin/configs/backbone/toy_linear.yaml": LINEAR,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder into which pip installed the package; its name has a space."""
    project = tmp_path_factory.mktemp("toy")
    for path, text in FILES.items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(text.lstrip(), encoding="utf-8")
    folder = project / "the site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(folder), str(project)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def regbench(command, site):
    """Runs `regbench …` where the package is installed."""
    environment = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    return lambda *arguments: command(*arguments, program=("-P", "-c", MAIN), env=environment)


def test_the_catalogue_has_the_method_without_importing_it(regbench, site):
    listing = regbench("list", "--search", "toys that are")
    assert listing.stderr == ""
    (row,) = listing.stdout.splitlines()[1:]
    assert row.split() == ["toy_entropy", "classification", "A", "Toy", "2024", "toy_stripes", "toy_linear"]
    info = regbench("info", "toy_entropy")
    assert info.stderr == ""
    assert "Toys that are less sure of themselves play better.\n" in info.stdout
    assert "regularizer.beta  0.1      share of the entropy" in info.stdout
    assert f"method: {site}/toy_plugin/regularizers/classification/toy_entropy.py" in info.stdout
    assert f"config: {site}/toy_plugin/configs/regularizer/toy_entropy.yaml" in info.stdout
    assert regbench("cite", "toy_entropy").stdout.startswith("@inproceedings{toy-2024-toy,")


def test_its_method_dataset_and_backbone_train(regbench, tmp_path):
    options = ["trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]
    parts = ["regularizer=toy_entropy", "dataset=toy_stripes", "backbone=toy_linear"]
    own = ["regularizer.beta=0.2", "dataset.load.side=5", "backbone.bias=false"]
    done = regbench("train", *parts, *own, *options)
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "run")
    assert result["config"]["regularizer"] == {"name": "toy_entropy", "beta": 0.2}
    assert result["data"]["name"] == "toy_stripes"
    assert (result["data"]["shape"], result["data"]["train"]) == ([1, 5, 5], 72)
    assert set(weights(tmp_path / "run")) == {"backbone.network.1.weight"}


def test_it_mixes_with_regbenchs_own_and_its_config_chooses_the_defaults(regbench):
    chosen = regbench("train", "regularizer=toy_entropy", "--cfg", "job").stdout
    assert "toy_plugin.parts.load_stripes" in chosen
    assert "toy_plugin.parts.linear" in chosen
    chosen = regbench(
        "train", "regularizer=mixup", "dataset=toy_stripes", "backbone=mlp", "--cfg", "job"
    ).stdout
    assert "toy_plugin.parts.load_stripes" in chosen
    assert "val_fraction: 0.1" in chosen  # of RegBench's _base.yaml


def test_a_dataset_with_other_fields_is_refused_before_it_is_read(regbench):
    done = regbench("train", "regularizer=toy_entropy", "dataset=toy_graphs", "logger=none")
    assert done.returncode == 2
    (message,) = done.stderr.splitlines()
    assert message.startswith("regbench: regularizer=toy_entropy does classification and needs image, label")
    assert "dataset=toy_graphs gives x, edge_index" in message
    fitting = re.search(r"Datasets for this regularizer: ([^.]*)\.", message)[1].split(", ")
    assert {"toy_stripes", "digits", "mnist5k"} <= set(fitting)
    assert "toy_graphs" not in fitting


def test_nearest_names_include_the_plug_ins(regbench):
    assert "Did you mean toy_entropy" in regbench("info", "toy_entrpoy").stderr
    assert "Did you mean toy_stripes" in regbench("train", "dataset=toy_stripe").stderr
    assert "Did you mean toy_linear" in regbench("train", "backbone=toy_liner").stderr


def test_two_methods_of_one_slug_both_wait_for_a_new_name(regbench, site):
    for command in (("info", "cutmix"), ("cite", "cutmix"), ("train", "regularizer=cutmix", "logger=none")):
        done = regbench(*command)
        assert done.returncode == 2
        (message,) = done.stderr.splitlines()
        assert "Two methods are called 'cutmix'" in message
        assert str(site / "toy_plugin/regularizers/classification/cutmix.py") in message
        assert str(ROOT / "regbench/regularizers/classification/cutmix.py") in message
    listing = regbench("list")
    assert listing.returncode == 0
    assert listing.stdout.count("\ncutmix ") == 1
    assert f"'cutmix' is also in {site}" in listing.stderr
    assert regbench("info", "mixup").returncode == 0


def test_regbenchs_own_config_wins_over_a_plug_ins_of_the_same_name(regbench):
    chosen = regbench("train", "dataset=digits", "--cfg", "job").stdout
    assert "name: digits" in chosen
    assert "other_digits" not in chosen


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@register('odd', task='classification'\nclass Odd: ...", r"odd\.py, line 1: .* Mend it"),
        ("@register('even', task='classification')\nclass Odd: ...", "must be the file's name, odd"),
        ("@register('odd', task=TASK)\nclass Odd: ...", "all literals"),
        ("@register('odd')\nclass Odd: ...", "all literals.*'task'"),
        (
            "@registry.register('odd', task='classification', paper=Paper(title='x'))\nclass Odd: ...",
            "authors",
        ),
        ("@register('odd', task='clasification', paper=None)\nclass Odd: ...", "Did you mean classification"),
    ],
)
def test_a_method_that_cannot_be_read_is_named(tmp_path, monkeypatch, source, expected):
    path = tmp_path / "odd" / "regularizers" / "classification" / "odd.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    monkeypatch.setattr(registry, "plugins", lambda: {"odd": tmp_path / "odd"})
    with pytest.raises(UserError, match=expected) as raised:
        registry.entries.__wrapped__()
    assert str(path) in str(raised.value)
