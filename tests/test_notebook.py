"""The notebooks as a reader runs them: cell by cell in a new kernel, in a copy outside the repository."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import regbench

FOLDER = Path(regbench.__file__).resolve().parents[1] / "notebooks"


@pytest.mark.parametrize("path", FOLDER.glob("*.ipynb"), ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_first_table(tmp_path, monkeypatch):
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(FOLDER / "01_first_table.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}})  # fmt: skip
    client.execute()  # raises CellExecutionError where a cell fails
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    (folder,) = tmp_path.glob("first-table-*")
    trained = json.loads((folder / "my_run" / "result.json").read_text())
    assert trained["config"]["regularizer"]["name"] == "decoupled_mixup"
    assert trained["metrics"]["test/accuracy"] > 0.5  # a tenth is chance
    results = json.loads((folder / "reports/decoupled_mixup/cifar100/smoke/results.json").read_text())
    done = [cell for cell in results["cells"] if cell["state"] == "done"]
    assert len(done) == 2 * 3  # rows; two losses and the gain
    assert len(results["runs"]) == 2 * 2 * 3  # rows, losses, seeds

    assert "image/png" in outputs["curve"][-1].data
    assert "image/png" in outputs["figure"][-1].data
    assert "image/png" in outputs["learning"][-1].data
    (printed,) = outputs["claims"]
    both = "Mixup and CutMix, each with decoupled mixup, beat mixup cross entropy"
    (line,) = [line for line in printed.text.splitlines() if both in line]
    assert line.split(":")[0] in ("holds", "fails", "undecided")
    assert "scale smoke, digits" in line
    shown = outputs["cells"][-1].data["text/html"]
    assert shown.count("<tr") == 1 + len(done)  # and a header
