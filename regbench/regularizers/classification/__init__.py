"""Methods that train a classifier on labelled images."""
