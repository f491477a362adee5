"""Optional packages: imported where they are needed, with an error that names the extra."""

from importlib.util import find_spec

from regbench.errors import UserError


def need(module: str, extra: str, what: str) -> None:
    """Raises UserError, naming the extra, where a package is not installed.

    Args:
        module: what is imported, e.g. "torch_geometric".
        extra: the extra of RegBench that installs it.
        what: the start of the message, e.g. "Graphs need PyTorch Geometric".
    """
    if find_spec(module) is None:
        raise UserError(f"{what}: pip install 'regbench[{extra}]'.")


def need_torch_geometric() -> None:
    """Raises UserError, naming the extra, where PyTorch Geometric is not installed."""
    need("torch_geometric", "graphs", "Graphs need PyTorch Geometric")
