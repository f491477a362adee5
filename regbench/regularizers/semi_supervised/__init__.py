"""Methods that train a classifier on a few labelled and many unlabelled images."""
