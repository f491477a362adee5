"""Methods that train a classifier on labels of which some are wrong."""
