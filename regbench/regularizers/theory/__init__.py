"""Methods that study how networks train and generalise."""
