"""What a sweep leaves in W&B, read back from the offline runs' own files."""

import json

from support import wandb_records

RUNS = {"none": ["regularizer=none"]}
CELLS = [{"row": "none", "column": "a", "run": "none"}, {"row": "none", "column": "b", "run": "none"}]


def test_runs_have_group_and_tags_and_the_table_is_logged(sweeps):
    published = [{"source": "a page", "values": {"none": {"a": 61.5}}, "approximate": True}]
    table = sweeps.table(RUNS, CELLS, published=published)
    output = sweeps.run(table, logger="wandb")
    (folder,) = (path.parent for path in sweeps.folder.glob("runs/*/result.json"))
    run = next(record.run for record in wandb_records(folder) if record.HasField("run"))
    assert run.run_group == "tables/mine/tiny"
    assert set(run.tags) == {"none / a", "none / b"}
    assert run.display_name == "none-s0"
    assert f"wandb sync {sweeps.folder / 'runs'}/*/wandb/offline-run-*" in output

    report = sweeps.folder / "reports" / "tables" / "mine" / "tiny"
    about = next(record.run for record in wandb_records(report) if record.HasField("run"))
    assert (about.run_group, about.job_type) == ("tables/mine/tiny", "table")
    assert about.run_id == (report / "wandb_id.txt").read_text()
    tables = [
        json.loads(p.read_text()) for p in report.glob("wandb/offline-run-*/files/media/table/**/*.json")
    ]
    (cells,) = (t for t in tables if "measured" in t["columns"])
    rows = {row[1]: dict(zip(cells["columns"], row, strict=True)) for row in cells["data"]}
    accuracy = 100 * json.loads((folder / "result.json").read_text())["metrics"]["test/accuracy"]
    assert abs(rows["a"]["measured"] - accuracy) < 1e-4
    assert (rows["a"]["published"], rows["a"]["approximate"], rows["a"]["source"]) == (61.5, True, "a page")
    assert (rows["b"]["published"], rows["b"]["state"], rows["b"]["unit"]) == (None, "done", "percent")
