"""A plug-in with methods that sweeps are tested with, and a way to run sweeps in processes of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import warm
from support import ROOT

METHODS = '''
"""Methods for tests: one that starts from a trained teacher, one that fails when it is told to."""

import os
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from regbench.registry import register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod


def note(what):
    """Appends a line to the file that the test counts in."""
    if path := os.environ.get("SWEEP_TEST_NOTES"):
        with open(path, "a") as file:
            file.write(what + "\\n")

'''
DISTIL = (
    METHODS
    + '''
@register("distil", task="classification", paper=None)
class Distil(ClassificationMethod):
    """Learning from a trained teacher's probabilities.

    Args:
        weight: of the teacher's term.
    """

    artifacts = ("teacher",)

    def __init__(self, backbone, num_classes, *, weight=0.5, teacher=None, **base):
        super().__init__(backbone, num_classes, **base)
        self.weight, self.teacher = weight, teacher
        note(f"distil {sum(float(p.double().sum()) for p in teacher.parameters())!r}")

    def training_loss(self, batch):
        image, label = batch_fields(batch, ("image", "label"))
        logits, target = self.backbone(image), self.teacher(image).softmax(1)
        return F.cross_entropy(logits, label) + self.weight * F.cross_entropy(logits, target)
'''
)
TEACHER = (
    METHODS
    + '''
@register("teacher", task="classification", paper=None)
class Teacher(ClassificationMethod):
    """Plain cross entropy that notes how often it is made."""

    def __init__(self, backbone, num_classes, **base):
        super().__init__(backbone, num_classes, **base)
        note("teacher")
'''
)
FLAKY = (
    METHODS
    + '''
@register("flaky", task="classification", paper=None)
class Flaky(ClassificationMethod):
    """Fails while the file that the environment names is there.

    Args:
        extra: does nothing; makes several runs.
    """

    def __init__(self, backbone, num_classes, *, extra=0, **base):
        super().__init__(backbone, num_classes, **base)
        note(f"flaky {extra}")
        if Path(os.environ["SWEEP_TEST_FAIL"]).exists():
            raise RuntimeError("told to fail")
'''
)
CONFIG = """
defaults:
  - override /dataset@_global_.dataset: digits
  - override /backbone@_global_.backbone: mlp

name: {name}
{options}
"""
QUICK = ["dataset=digits", "backbone=mlp", "trainer.max_epochs=1", "accelerator=cpu", "accelerator.threads=1"]


@pytest.fixture(scope="session")
def plugin(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH with the plug-in and the metadata by which its entry point is found."""
    site = tmp_path_factory.mktemp("site")
    package = site / "sweep_plugin"
    folder = package / "regularizers" / "classification"
    folder.mkdir(parents=True)
    for path in (package, package / "regularizers", folder):
        (path / "__init__.py").touch()
    options = {
        "distil": "weight: 0.5  # of the teacher's term; no unit",
        "teacher": "",
        "flaky": "extra: 0  # nothing",
    }
    (package / "configs" / "regularizer").mkdir(parents=True)
    for name, source in {"distil": DISTIL, "teacher": TEACHER, "flaky": FLAKY}.items():
        (folder / f"{name}.py").write_text(source)
        text = CONFIG.format(name=name, options=options[name])
        (package / "configs" / "regularizer" / f"{name}.yaml").write_text(text)
    about = site / "sweep_plugin-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sweep-plugin\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[regbench.plugins]\nsweep_plugin = sweep_plugin\n")
    return site


class Sweeps:
    """Tables and sweeps in a folder of the test's."""

    def __init__(self, folder: Path, plugin: Path):
        self.folder = folder
        self.notes = folder / "notes.txt"
        self.fail = folder / "fail"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(plugin), str(ROOT), os.environ.get("PYTHONPATH")])
            ),
            "SWEEP_TEST_NOTES": str(self.notes),
            "SWEEP_TEST_FAIL": str(self.fail),
        }

    def table(self, runs: dict, cells: list, *, seeds=1, overrides=(), name="mine", **more) -> str:
        """Writes a table's file; returns what `table=` takes. A run is a list of overrides, or a mapping."""
        runs = {
            key: value if isinstance(value, dict) else {"overrides": value} for key, value in runs.items()
        }
        text = {
            "title": "A table of the tests",
            "metric": "test/accuracy",
            "unit": "percent",
            "direction": "max",
            "rows": {cell["row"]: cell["row"] for cell in cells},
            "columns": {cell["column"]: cell["column"] for cell in cells},
            "runs": runs,
            "cells": cells,
            "scales": {"tiny": {"seeds": seeds, "overrides": [*QUICK, *overrides]}},
            **more,
        }
        path = self.folder / "tables" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(text, sort_keys=False))
        return f"table={path}"

    def start(self, *arguments: str, runs="runs", logger="none") -> warm.Program | subprocess.Popen:
        """`python scripts/reproduce.py scale=tiny …` in a process group of its own; its errors are in its output."""
        own = ["scale=tiny", f"runs_dir={self.folder / runs}", f"reports_dir={self.folder / 'reports'}"]
        if logger:
            own.append(f"logger={logger}")
        program, whole = ROOT / "scripts" / "reproduce.py", (*own, *arguments)
        if any(argument.startswith("hydra/launcher=") for argument in arguments):
            # A new interpreter: joblib's workers wait for ever below a fork.
            return subprocess.Popen(
                [sys.executable, str(program), *whole], cwd=self.folder, env=self.environment, text=True,
                start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return warm.Program(program, whole, cwd=self.folder, environment=self.environment, merge=True)

    def run(self, *arguments: str, expect=0, **options) -> str:
        """The whole output of a sweep that ends with the exit code `expect`."""
        process = self.start(*arguments, **options)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == expect, output
        return output

    def kill_amid(self, changes: int, delay: float, *arguments: str, **options) -> bool:
        """SIGKILL for the sweep and what it started, `delay` seconds after so many new checkpoints or results.

        False where the sweep had ended by itself. Counted in what it writes, and not in seconds alone, so that a slow
        machine gets on too.
        """
        process = self.start(*arguments, **options)
        before = self._written(**options)
        while self._written(**options) < before + changes and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        killed = process.poll() is None
        if killed:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return killed

    def _written(self, runs="runs", **_) -> int:
        """Grows with each checkpoint and result: their times of change, each counted once."""
        self._times = getattr(self, "_times", set())
        for pattern in ("*/checkpoints/last.ckpt", "*/result.json"):
            for path in (self.folder / runs).glob(pattern):
                with contextlib.suppress(FileNotFoundError):
                    self._times.add((path, path.stat().st_mtime_ns))
        return len(self._times)

    def results(self, name="mine") -> dict:
        return json.loads((self.folder / "reports" / "tables" / name / "tiny" / "results.json").read_text())

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def result_files(self, runs="runs") -> dict[str, dict]:
        return {p.parent.name: json.loads(p.read_text()) for p in (self.folder / runs).glob("*/result.json")}


@pytest.fixture
def sweeps(tmp_path, plugin) -> Sweeps:
    return Sweeps(tmp_path, plugin)
