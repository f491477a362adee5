"""torchvision and timm can be imported whether or not torchvision's compiled library loads."""

import sys

import pytest
import torch

from regbench import torchvision_schemas
from regbench.torchvision_schemas import declare_missing_schemas
from support import ROOT

IMPORTS = "import regbench.torchvision_schemas, torchvision, timm; print(torchvision.ops.nms.__name__)"


@pytest.fixture
def declared(monkeypatch):
    """Runs the function where only the operators `present` exist: (what it returns, what it defined)."""

    def call(*present: str, load=lambda path: None) -> tuple[list[str], list[str]]:
        defined = []

        class Library:
            def __init__(self, namespace, kind):
                assert (namespace, kind) == ("torchvision", "FRAGMENT")

            def define(self, schema):
                defined.append(schema.partition("(")[0])

        class Ops:
            torchvision = type("torchvision", (), dict.fromkeys(present))
            load_library = staticmethod(load)

        monkeypatch.setattr(torchvision_schemas, "_library", None)
        monkeypatch.setattr(torch, "ops", Ops)
        monkeypatch.setattr(torch.library, "Library", Library)
        return declare_missing_schemas(), defined

    return call


def test_torchvision_and_timm_import_after_it(command):
    done = command(program=("-c", IMPORTS), env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (0, "nms\n"), done.stderr


def test_both_operators_have_schemas_and_declaring_again_does_nothing():
    assert declare_missing_schemas() == []
    for name in ("nms", "qnms"):
        assert str(getattr(torch.ops.torchvision, name).default._schema).startswith(f"torchvision::{name}(")


def test_nothing_is_declared_where_torchvisions_own_library_loads(declared):
    assert declared("nms", "qnms") == ([], [])


def test_what_is_missing_is_declared(declared):
    assert declared() == (["nms", "qnms"], ["nms", "qnms"])
    assert declared("nms") == (["qnms"], ["qnms"])


def test_a_library_that_does_not_load_is_no_error(declared):
    def load(path):
        raise OSError("libcudart.so.13: cannot open shared object file")

    assert declared(load=load) == (["nms", "qnms"], ["nms", "qnms"])


def test_without_torchvision_nothing_is_done(monkeypatch):
    monkeypatch.setattr(torchvision_schemas, "_library", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert declare_missing_schemas() == []
