"""`regbench export`: the network of a run as a plain state_dict, which loads where RegBench is not installed."""

import io
from pathlib import Path

import torch

from regbench.errors import UserError
from regbench.files import write_whole
from regbench.runs import RunFolder
from regbench.training import load_network


def export(run: Path, out: Path | None = None) -> Path:
    """Writes the tested weights of a finished run as the state_dict of its plain network.

    What the method put into the network is folded in (see `Method.plain_backbone`), so that the keys are those of the
    network as its own package builds it, e.g. of `timm.create_model(...)`, and the outputs are the run's.

    Args:
        run: a run's folder.
        out: the file; None: model.pt in the run's folder.

    Returns:
        The file, to be read with `torch.load(file, weights_only=True)`.

    Raises:
        UserError: no finished run, one without weights, or the checkpoint is gone.
    """
    result = RunFolder(run).result() if run.is_dir() else None
    if result is None:
        raise UserError(f"{run} is no folder of a finished run: it has no result.json.")
    if not result["tested"] or result["config"]["backbone"]["name"] == "none":
        raise UserError(f"{run} has no network: {result['config']['regularizer']['name']} trains none.")
    checkpoint = run / result["tested"][-1]
    if not checkpoint.is_file():
        raise UserError(f"The weights that the run tested are gone: {checkpoint}.")
    data = result["data"]
    backbone = load_network(checkpoint, tuple(data["shape"]), data["num_classes"])
    out = run / "model.pt" if out is None else out
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write {out.name} into.")
    content = io.BytesIO()
    torch.save(backbone.network.state_dict(), content)
    write_whole(out, content.getvalue())
    return out


def describe(run: Path, out: Path) -> str:
    """What the file holds and how images go into the network, in words."""
    result = RunFolder(run).result()
    data, network = result["data"], result["config"]["backbone"]
    name = network.get("model_name") or network["name"]
    if "edges" in data:
        size, classes = data["shape"][0], data["num_classes"]
        return f"{out}: state_dict of {name} for nodes of {size} features and {classes} classes."
    shape = "×".join(map(str, data["shape"]))
    if "mean" not in data:
        outputs = f" and {data['num_classes']} outputs" if data["num_classes"] else ""
        return f"{out}: state_dict of {name} for {data.get('items', 'inputs')} of {shape}{outputs}."
    mean, std = ("[" + ", ".join(f"{value:.4f}" for value in data[key]) + "]" for key in ("mean", "std"))
    return (
        f"{out}: state_dict of {name} for images of {shape} and {data['num_classes']} classes.\n"
        f"Pixels in [0, 1] are normalised with mean {mean} and standard deviation {std}."
    )
