"""Methods that solve transport problems, and routers of sparse mixtures of experts."""
