"""Methods that learn codes of images whose parts are the factors of variation."""
