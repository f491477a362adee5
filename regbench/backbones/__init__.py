"""Networks that give logits, penultimate features and named intermediate activations."""

import regbench.torchvision_schemas  # noqa: F401  before anything that imports torchvision
from regbench.backbones.backbone import Backbone, Outputs, as_backbone
from regbench.backbones.factory import build

__all__ = ["Backbone", "Outputs", "as_backbone", "build"]
