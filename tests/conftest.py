"""Shared by all tests: one thread each (two workers share two cores), and no W&B account or proxy of the machine's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regbench.torchvision_schemas  # noqa: F401  before Lightning, which imports torchvision

# isort: split
from support import ROOT


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
    """Runs `python train.py …` as a user does, in another process: command(…) → CompletedProcess."""

    def call(*arguments: str, program: tuple[str, ...] = (str(ROOT / "train.py"),), **options):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        return subprocess.run([sys.executable, *program, *arguments], cwd=tmp_path, capture_output=True, text=True,
                              env=environment, timeout=300, **options)  # fmt: skip

    return call
