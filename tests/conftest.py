"""Shared by all tests: one thread each (two workers share two cores), and no W&B account or proxy of the machine's."""

import gc
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

# Before torch reads it, and for every program that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# isort: split
import torch

import regbench.torchvision_schemas  # noqa: F401  before Lightning, which imports torchvision

# isort: split
import warm
from support import ROOT


def pytest_collection_finish():
    """What is imported and collected stays: Python's garbage collection need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch):
    torch.set_num_threads(1)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the command line in this process: train("regularizer=mixup", …) → (exit code, run folder)."""
    from regbench import cli

    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)

    def call(*overrides: str, run_dir: Path | str = "run") -> tuple[int, Path]:
        folder = tmp_path / run_dir
        own = [] if any(o.startswith("resume=") for o in overrides) else [f"hydra.run.dir={folder}"]
        try:
            code = cli.train([*own, *overrides])
        except SystemExit as exit_:
            code = exit_.code
        return code, folder

    return call


@pytest.fixture
def command(tmp_path):
    """Runs `python train.py …` in another process: command(…) → CompletedProcess.

    `program` is another one for a new interpreter: command("--help", program=("-m", "regbench")).
    """

    def call(*arguments: str, program: tuple[str, ...] = (), env: Mapping[str, str] = MappingProxyType({})):
        environment = {**os.environ, **env}
        if not program:
            return warm.run(ROOT / "train.py", arguments, cwd=tmp_path, environment=environment)
        return subprocess.run([sys.executable, *program, *arguments], cwd=tmp_path, capture_output=True, text=True,
                              env=environment, timeout=300)  # fmt: skip

    return call
