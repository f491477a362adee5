"""RegBench: regularization papers' methods behind one command line and one Python API.

Importing this package imports no torch, so that the command line answers at once; the API is loaded when used.
"""

__version__ = "0.1.0"
__all__ = ["create_method"]


def __getattr__(name: str):
    if name == "create_method":
        from regbench.api import create_method

        return create_method
    raise AttributeError(f"module 'regbench' has no attribute {name!r}")
