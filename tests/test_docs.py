"""docs/adding_a_method.md as a reader walks it: every command, in order, in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, read_result

# pip installs into a folder of the test's; Python reads the .pth files there, as it does in site-packages.
SITECUSTOMIZE = "import os, site\nsite.addsitedir(os.environ['PIP_TARGET'])\n"


def copy_checkout(folder: Path) -> None:
    """Copies the files that git tracks, or would track."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, check=True, text=True)  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


@pytest.mark.slow
def test_adding_a_method(tmp_path):
    checkout, site, start = tmp_path / "regbench", tmp_path / "site", tmp_path / "start"
    copy_checkout(checkout)
    site.mkdir()
    start.mkdir()
    (start / "sitecustomize.py").write_text(SITECUSTOMIZE)
    page = (checkout / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(start), str(checkout)]),
        "PIP_TARGET": str(site),
        "PIP_NO_INDEX": "1",
        "OMP_NUM_THREADS": "1",
    }
    script = ["bash", "-euxo", "pipefail", "-c", "\n".join(blocks)]
    options = {"capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(script, cwd=checkout, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr

    results = {path.parts[-3]: read_result(path.parent) for path in tmp_path.glob("**/runs/*/*/result.json")}
    assert set(results) == {
        "confidence_penalty-digits-mlp-s0",
        "logit_penalty-mnist5k-small_cnn-s0",
        "logit_norm-digits-mlp-s0",
    }
    for result in results.values():
        assert result["metrics"]["test/accuracy"] > 0.2  # one class in ten is 0.1
    assert "regularizer.beta  0.1      weight of the entropy" in done.stdout  # regbench info
    assert re.search(r"^logit_norm +classification ", done.stdout, re.MULTILINE)  # regbench list
    passed = [int(n) for n in re.findall(r"(\d+) passed", done.stdout)]
    assert len(passed) == 2
    assert passed[0] >= passed[1] + 4  # the method's own tests, and those that every method has
