"""Metrics: torchmetrics' own, and thin torchmetrics classes for what it lacks."""

import regbench.torchvision_schemas  # noqa: F401  before torchmetrics, which imports torchvision
