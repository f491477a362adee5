"""Methods that make a classifier smaller or cheaper."""
