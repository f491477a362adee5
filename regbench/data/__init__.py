"""Image sets: how they are read, split, kept on the device and augmented there."""

import regbench.torchvision_schemas  # noqa: F401  before anything that imports torchvision
