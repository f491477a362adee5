"""The files of a report."""

import csv
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from PIL import Image

from regbench.tables.report import write_report
from regbench.tables.report.figure import comparison, curves
from regbench.tables.report.latex import escape, latex_tables
from support import ROOT


def test_all_files_are_written_whole(results, tmp_path):
    folder = tmp_path / "reports" / "small"
    written = write_report(results, folder)

    names = ["figure.png", "figure.svg", "index.html", "results.json", "table.csv", "table.md", "table.tex"]
    assert sorted(path.name for path in written) == sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "results.json").read_text()) == results
    assert (
        (folder / "table.md")
        .read_text()
        .startswith("# Top-1 accuracy on CIFAR-100, ResNet-18: scale small\n")
    )
    assert Image.open(folder / "figure.png").size[0] == 1280
    assert ElementTree.parse(folder / "figure.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_csv_has_a_line_a_cell_at_full_precision(results, tmp_path):
    write_report(results, tmp_path)
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))

    assert len(lines) == 8
    assert lines[3]["row"] == "Mixup"
    assert lines[3]["approximate"] == "True"
    assert float(lines[3]["published"]) == 80
    assert float(lines[3]["mean"]) == pytest.approx(93.6)
    assert float(lines[3]["sd"]) == pytest.approx(0.025**0.5)
    assert (lines[4]["mean"], lines[4]["why"]) == ("", "Ran out of memory: runs/ab12/run.log.")


def test_latex_has_booktabs_rules_and_a_group_a_column(results):
    text = latex_tables(results)

    assert r"loss & \multicolumn{2}{c}{MCE} & \multicolumn{2}{c}{DM(CE)} \\" in text
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}" in text
    assert (
        r"Mixup & 79.50\textsuperscript{a} & 93.20 $\pm$ 0.16 (5 seeds) & $\approx$ 80\textsuperscript{b}"
        in text
    )
    assert (
        r"CutMix \& co\_1 & 78.17\textsuperscript{a} & failed\textsuperscript{2} & -- & not at this scale \\"
        in text
    )
    assert r"\quad FMix & fails & $-$1.1 points & -- & 2 &  \\" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{table}", r"\end{table}"):
        assert text.count(rule) == 2


def test_latex_escapes_what_latex_reads():
    assert escape(r"50 % of #1 & $x_2$ {~^\}") == (
        r"50 \% of \#1 \& \$x\_2\$ \{\textasciitilde{}\textasciicircum{}\textbackslash{}\}"
    )
    assert escape("λ ≤ Δ ± 1 × Α") == r"$\lambda$ $\leq$ $\Delta$ $\pm$ 1 $\times$ Α"
    assert escape("[a]") == "{[}a{]}"


def test_levels_of_another_scale_are_not_put_on_the_papers_axis(results):
    small, paper = comparison(results), comparison(results | {"scale": "paper"})

    assert [ax.get_title(loc="left") for ax in small.axes] == ["published", "measured, scale small"]
    assert [ax.get_title(loc="left") for ax in paper.axes] == ["published (hollow) and measured (filled)"]


def test_the_figure_shows_every_value_with_its_spread(results):
    published, measured = comparison(results).axes

    assert [list(line.get_xdata()) for line in published.lines if len(line.get_xdata())] == [
        [78.04, 79.5, 78.17],
        [80],
    ]
    # MCE: none, mixup, fmix; decoupled mixup: mixup 93.6 with sd 0.158, fmix 91.2 with sd 0.283
    [_, bars] = [collection.get_segments() for collection in measured.collections]
    assert bars[0][:, 0] == pytest.approx([93.6 - 0.1581, 93.6 + 0.1581], abs=1e-3)
    assert bars[1][:, 0] == pytest.approx([91.2 - 0.2828, 91.2 + 0.2828], abs=1e-3)


def test_a_column_of_another_quantity_has_no_place_on_the_axis(results):
    for cell in results["cells"]:
        if cell["column"] == results["columns"][1]["key"]:  # one of its cells has no run, and so no quantity
            cell["reduction"] = "test/ssim" if cell["runs"] else ""
    assert {cell["reduction"] for cell in results["cells"]} > {"", "test/ssim"}
    published, measured = comparison(results).axes
    assert [len(line.get_xdata()) for line in published.lines] == [3]
    assert len(measured.collections) == 1


def test_the_legend_stays_within_the_figure(results):
    for column in results["columns"]:
        column["label"] = (
            f"{column['label']}, of half of the pixels with noise of a tenth of their range, in dB"
        )
    figure = comparison(results)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_learning_curves_compare_the_columns_of_a_row(results):
    drawn = curves(results)

    assert [label for label, _ in drawn.panels] == ["none", "Mixup", "FMix, η=0.1"]
    assert drawn.lines == ["MCE", "DM(CE)"]
    assert len(drawn.panels[1][1].axes[0].lines) == 2

    results["columns"] = results["columns"][:1]
    results["cells"] = [cell for cell in results["cells"] if cell["column"] == "mce"]
    [(label, panel)] = curves(results).panels
    assert label == "MCE"
    assert len(panel.axes[0].lines) == 3


def test_a_table_of_which_nothing_is_known_is_reported(results, tmp_path):
    for cell in results["cells"]:
        nothing = {"published": None, "mean": None, "sd": None, "values": {}, "runs": {}, "seeds": 0}
        cell.update(nothing | {"curve": None, "state": "left", "why": "", "deterministic": False})
    results |= {"claims": [], "runs": {}, "paper": None, "about": "", "data": []}
    names = {path.name for path in write_report(results, tmp_path)}

    assert names == {"table.md", "table.tex", "table.csv", "results.json", "index.html"}
    assert "| Mixup | left | left |" in (tmp_path / "table.md").read_text()
    assert "Nothing is measured yet." in (tmp_path / "index.html").read_text()


def test_a_table_of_200_finished_cells_is_quick_and_needs_no_torch(large, tmp_path):
    """At most 8 million calls of functions. Calls are the same on each machine, seconds (`make bench`) are not."""
    (tmp_path / "large.json").write_text(json.dumps(large))
    program = (
        "import cProfile, json, pathlib, pstats, sys; from regbench.tables.report import write_report;"
        "results = json.loads(pathlib.Path('large.json').read_text()); profile = cProfile.Profile();"
        "profile.runcall(write_report, results, pathlib.Path('report'));"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules;"
        "print(pstats.Stats(profile).total_calls)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, env=environment, capture_output=True
    )
    assert 1_000_000 < int(done.stdout) < 8_000_000  # 6.2 million here, 2.4 s of a core
    assert (tmp_path / "report" / "index.html").exists()
