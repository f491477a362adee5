"""Lets torchvision be imported beside a torch that its compiled operators were not built for.

torchvision registers fake kernels for its operators `nms` and `qnms` at import. Where its compiled library does
not load (a CUDA build of torchvision beside a CPU build of torch), their schemas are missing, and the import, so
that of timm and torchmetrics too, fails. Declaring the two schemas, only when they are missing, mends the import.
The operators themselves stay unusable then; nothing in RegBench calls a compiled torchvision operator.

Imported for its effect by every package of ours that leads to torchvision (`regbench.data`, `regbench.backbones`,
`regbench.regularizers`), before anything else.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library = None  # the declarations live as long as this object


def declare_missing_schemas() -> list[str]:
    """Declares the operator schemas that torchvision's own library does not bring. Returns the declared names."""
    global _library
    spec = importlib.util.find_spec("torchvision")
    if spec is None or _library is not None:
        return []
    for compiled in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(compiled)
        except OSError:
            continue
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            _library.define(_SCHEMAS[name])
    return missing


declare_missing_schemas()
