"""`regbench new`: what it writes, where, and what it refuses. That they work: test_docs.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hydra_plugins import regbench_searchpath
from regbench import cli, paths, registry, scaffold
from regbench.tables.measure import measure
from regbench.tables.plan import composer, make_plan
from regbench.tables.report import update_page
from regbench.tables.spec import load_table
from support import ROOT

FIVE = [
    "regbench/regularizers/classification/{}.py",
    "configs/regularizer/{}.yaml",
    "configs/table/{}/first.yaml",
    "tests/regularizers/classification/test_{}.py",
    "docs/papers/{}.md",
]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty checkout that `regbench new` takes for its own."""
    root = tmp_path / "checkout"
    (root / "regbench" / "regularizers" / "classification").mkdir(parents=True)
    for folder in ("", "regularizers", "regularizers/classification"):
        (root / "regbench" / folder / "__init__.py").touch()
    (root / "regbench" / "tables").mkdir()
    for module in [*(ROOT / "regbench").glob("*.py"), *(ROOT / "regbench" / "tables").glob("*.py")]:
        (root / module.relative_to(ROOT)).touch()  # by their names ruff sorts imports
    shutil.copy(ROOT / "pyproject.toml", root)
    monkeypatch.setattr(scaffold, "__file__", str(root / "regbench" / "scaffold.py"))
    return root


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_five_files_in_the_checkout(checkout, capsys):
    before = files(checkout)
    assert cli.main(["new", "my_method"]) == 0
    assert files(checkout) - before == {path.format("my_method") for path in FIVE}
    out = capsys.readouterr().out
    for path in FIVE:
        assert str(checkout / path.format("my_method")) in out
    assert "regbench train regularizer=my_method" in out
    assert "pip install" not in out


@pytest.mark.parametrize("slug", ["x", "my_method", "a_slug_of_twenty_eight_chars"])
def test_the_files_are_in_the_house_style(checkout, slug):
    cli.main(["new", slug])
    for command in ("check", "format --check"):
        ruff = [sys.executable, "-m", "ruff", *command.split(), "--no-cache", "."]
        done = subprocess.run(ruff, cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_a_new_family_becomes_a_package(checkout):
    before = files(checkout)
    cli.main(["new", "my_method", "--family", "my_family"])
    written = files(checkout) - before
    assert "regbench/regularizers/my_family/my_method.py" in written
    assert "regbench/regularizers/my_family/__init__.py" in written
    assert "tests/regularizers/my_family/test_my_method.py" in written


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["My-Method"], "lower case letters"),
        (["class"], "lower case letters"),
        (["../x"], "lower case letters"),
        (["x", "--family", "1st"], "lower case letters"),
        (["mixup"], "There is a method 'mixup' already"),
        (["x", "--package", "torch"], "can't name a package"),
        (["x", "--package", "2 words"], "can't name a package"),
    ],
)
def test_refusals_write_nothing(checkout, tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    assert cli.main(["new", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert files(tmp_path) == before


def test_nothing_is_overwritten(checkout, capsys):
    page = checkout / "docs" / "papers" / "my_method.md"
    page.parent.mkdir(parents=True)
    page.write_text("mine")
    before = files(checkout)
    assert cli.main(["new", "my_method"]) == 2
    assert str(page) in capsys.readouterr().err
    assert files(checkout) == before
    assert page.read_text() == "mine"


def test_an_installed_regbench_points_to_plug_ins(checkout, capsys):
    (checkout / "pyproject.toml").unlink()
    assert cli.main(["new", "my_method"]) == 2
    assert "--package" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["new", "my_method", "--package", str(tmp_path / "file" / "plugin")]) == 2
    assert "can't be written" in capsys.readouterr().err


def test_a_second_method_in_a_plug_in_leaves_its_project_as_it_is(tmp_path, capsys):
    plugin = tmp_path / "my-plugin"
    cli.main(["new", "one_method", "--package", str(plugin)])
    assert f"pip install -e {plugin}" in capsys.readouterr().out
    project = (plugin / "pyproject.toml").read_text()
    assert 'my_plugin = "my_plugin"' in project
    before = files(plugin)
    assert cli.main(["new", "two_method", "--package", str(plugin)]) == 0
    assert (plugin / "pyproject.toml").read_text() == project
    assert files(plugin) - before == {
        "my_plugin/regularizers/classification/two_method.py",
        "my_plugin/configs/regularizer/two_method.yaml",
        "my_plugin/configs/table/two_method/first.yaml",
        "tests/regularizers/classification/test_two_method.py",
        "docs/papers/two_method.md",
    }


def test_a_project_that_is_no_plug_in_yet_is_told_its_entry_point(tmp_path, capsys):
    project = tmp_path / "mine" / "pyproject.toml"
    project.parent.mkdir()
    project.write_text('[project]\nname = "mine"\n')
    assert cli.main(["new", "my_method", "--package", str(project.parent)]) == 0
    assert '[project.entry-points."regbench.plugins"]\n    mine = "mine"' in capsys.readouterr().out
    assert project.read_text() == '[project]\nname = "mine"\n'


def test_the_catalogue_reads_what_was_written(tmp_path, monkeypatch):
    cli.main(["new", "my_method", "--package", str(tmp_path / "mine")])
    monkeypatch.setattr(registry, "plugins", lambda: {"mine": tmp_path / "mine" / "mine"})
    entry = registry.entries.__wrapped__()["my_method"]
    assert (entry.class_name, entry.task) == ("MyMethod", "classification")
    assert entry.module == "mine.regularizers.classification.my_method"
    assert entry.paper.title == "My method"


def test_the_table_and_the_page_are_what_the_reports_expect(tmp_path, monkeypatch):
    cli.main(["new", "my_method", "--package", str(tmp_path / "mine")])
    for module in (paths, registry, regbench_searchpath):
        monkeypatch.setattr(module, "plugins", lambda: {"mine": tmp_path / "mine" / "mine"})
    monkeypatch.setattr(registry, "entries", registry.entries.__wrapped__)
    table = load_table("my_method/first")
    assert table.rows == {"none": "Cross entropy", "my_method": "My method"}
    with composer() as compose:
        plan = make_plan(table, "small", compose)
    assert list(plan.runs) == [f"{name}-s{seed}" for name in ("none", "my_method") for seed in range(5)]
    assert plan.runs["my_method-s3"].config["regularizer"] == {"name": "my_method", "weight": 0.01}
    results = measure(plan, tmp_path / "runs", "regbench reproduce table=my_method/first")
    assert results["paper"]["title"] == "My method"
    page = (tmp_path / "mine" / "docs" / "papers" / "my_method.md").read_text()
    filled = update_page(page, {"first/small": results})
    assert filled != page
    assert "| My method | " in filled
    assert "regbench reproduce table=my_method/first" in filled
