"""The wheel, installed by pip outside the repository: every config is there, and the command trains."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from support import ROOT, history, read_result

MINE = """
# @package _global_
defaults:
  - override /regularizer: label_smoothing
  - override /dataset: digits
  - override /backbone: mlp

regularizer:
  smoothing: 0.3
trainer:
  max_epochs: 1
"""


def pip(*arguments: str) -> None:
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run([sys.executable, "-m", "pip", *arguments, *offline], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel):
    """(interpreter, folder of the installed wheel).

    The interpreter is one that reads the .pth files of no other: an editable RegBench is not there.
    """
    folder, environment = wheel.parent / "site", wheel.parent / "env"
    pip("install", "--target", str(folder), str(wheel))
    venv.create(environment, symlinks=True)
    return environment / "bin" / "python", folder


@pytest.fixture
def regbench(installed, tmp_path):
    """Runs the `regbench` script that pip wrote, in an empty folder."""
    python, folder = installed
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *libraries]), "OMP_NUM_THREADS": "1"
    }  # fmt: skip

    def call(*arguments: str) -> subprocess.CompletedProcess:
        whole = [python, folder / "bin" / "regbench", *arguments]
        options = {"capture_output": True, "text": True, "timeout": 300}
        return subprocess.run(whole, cwd=tmp_path, env=environment, **options)

    return call


def test_the_wheel_has_every_config_template_page_and_plug_in(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shelves = [("configs", "regbench/configs"), ("regbench", "regbench"), ("hydra_plugins", "hydra_plugins"),
               ("docs/papers", "regbench/docs/papers")]  # fmt: skip
    for shelf, inside in shelves:
        for path in (ROOT / shelf).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".yaml", ".txt", ".md"):
                assert f"{inside}/{path.relative_to(ROOT / shelf).as_posix()}" in names
    assert "regbench/configs/train.yaml" in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "configs/", "train.py"))]


def test_the_catalogue_is_the_installed_one(regbench, installed):
    _, folder = installed
    done = regbench("info", "decoupled_mixup")
    assert done.returncode == 0, done.stderr
    assert f"method: {folder}/regbench/regularizers/classification/decoupled_mixup.py" in done.stdout
    assert f"config: {folder}/regbench/configs/regularizer/decoupled_mixup.yaml" in done.stdout
    assert "regbench train experiment=decoupled_mixup/cifar100_resnet18\n" in done.stdout
    assert str(ROOT) not in done.stdout


@pytest.mark.slow
def test_it_trains_in_two_processes(regbench, tmp_path):
    """Lightning starts the second process itself, from the command that it was started by."""
    done = regbench("train", "dataset=digits", "backbone=mlp", "trainer.max_epochs=1", "logger=none",
                    "accelerator=ddp_cpu", "hydra.run.dir=run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "run")["device"].endswith("2 processes")
    assert [row["epoch"] for row in history(tmp_path / "run")] == ["0", "1"]


def test_it_trains_with_a_config_folder_of_ones_own(regbench, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(MINE.lstrip())
    done = regbench("train", "--config-dir", "own", "experiment=mine", "logger=none")
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in tmp_path.glob("runs/label_smoothing-digits-mlp-s0/*/result.json"))
    result = read_result(run)
    assert result["config"]["regularizer"] == {"name": "label_smoothing", "smoothing": 0.3}
    assert result["epochs"] == 1
    assert "Did you mean mine?" in regbench("train", "--config-dir", "own", "experiment=mien").stderr


def test_a_new_method_goes_into_a_plug_in(regbench, tmp_path):
    done = regbench("new", "my_method")
    assert done.returncode == 2
    assert "--package" in done.stderr
    assert regbench("new", "my_method", "--package", "mine").returncode == 0
    assert (tmp_path / "mine" / "mine" / "regularizers" / "classification" / "my_method.py").is_file()
