"""The papers' methods: `<family>/<slug>.py`, found by `regbench.registry` from their place on the shelf."""

import regbench.torchvision_schemas  # noqa: F401  before anything that imports torchvision
