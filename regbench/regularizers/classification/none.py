"""No regularizer: the baseline that the others are compared with."""

from regbench.registry import register
from regbench.regularizers.classification.base import ClassificationMethod


@register("none", task="classification", paper=None)
class NoRegularizer(ClassificationMethod):
    """Plain cross entropy on the augmented images: the baseline."""
