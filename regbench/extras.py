"""Optional packages: imported where they are needed, with an error that names the extra."""

from regbench.errors import UserError


def need_torch_geometric() -> None:
    """Raises UserError, naming the extra, where PyTorch Geometric is not installed."""
    try:
        import torch_geometric  # noqa: F401
    except ImportError:
        raise UserError("Graphs need PyTorch Geometric: pip install 'regbench[graphs]'.") from None
