"""Methods that start from trained networks: merged into one, put side by side, or trained further."""
