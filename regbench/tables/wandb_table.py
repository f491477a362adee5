"""The aggregated table in W&B: a run of its own in the group of the table's runs, with a W&B table of all cells."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regbench.loggers import wandb_mode

COLUMNS = ("row", "column", "published", "approximate", "source", "measured", "sd", "seeds", "unit", "state")


def log_table(results: Mapping[str, Any], node: Mapping[str, Any], folder: Path) -> None:
    """Logs the cells, published beside measured, and the claims' verdicts.

    Args:
        results: of `regbench.tables.measure`.
        node: the runs' resolved config `logger.wandb`.
        folder: of the report; wandb's files go to `wandb/` in it, and the same report goes on with the same W&B run.
    """
    import wandb

    mode = wandb_mode(node["mode"])
    id_file = folder / "wandb_id.txt"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    key = f"{results['slug']}/{results['table']}/{results['scale']}"
    run = wandb.init(
        project=node["project"],
        entity=node["entity"],
        name=f"table {key}",
        group=key,
        tags=["table"],
        job_type="table",
        dir=folder,
        id=id_file.read_text(),
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(silent=True, console="off", mode=mode, init_timeout=60),
    )
    try:
        cells = [_row(cell, results["unit"]) for cell in results["cells"]]
        claims = [
            [
                c["says"],
                c["verdict"],
                c["effect"],
                *(c["interval"] or (None, None)),
                c["unit"],
                c["seeds"],
                c["context"],
            ]
            for c in results["claims"]
        ]
        names = ["claim", "verdict", "effect", "low", "high", "unit", "seeds", "judged on"]
        run.log({
            "table": wandb.Table(columns=list(COLUMNS), data=cells),
            "claims": wandb.Table(columns=names, data=claims),
        })  # fmt: skip
    finally:
        run.finish()


def _row(cell: Mapping[str, Any], unit: str) -> list[Any]:
    published = cell["published"] or {"value": None, "approximate": None, "source": None}
    return [
        cell["row"],
        cell["column"],
        published["value"],
        published["approximate"],
        published["source"],
        cell["mean"],
        cell["sd"],
        cell["seeds"],
        unit,
        cell["state"],
    ]
