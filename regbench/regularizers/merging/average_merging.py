"""Plain averaging of weights: every entry of a model counts alike."""

from collections.abc import Sequence

from regbench.registry import register
from regbench.regularizers.merging.base import MergingMethod, Parameters, average


@register("average_merging", task="classification", paper=None)
class AverageMerging(MergingMethod):
    """The average of the weights of networks that were fine-tuned from one start, with coefficients that validation
    chooses: the baseline of Fisher merging. Between a network and its start it is WiSE-FT's interpolation.

    Args:
        models: two or more, the target's first; `artifacts.model_1`, `artifacts.model_2` … say which runs make them.
        coefficients, search, merge_head, batchnorm_images: as in `MergingMethod`.
    """

    def merged(self, coefficients: Sequence[float]) -> Parameters:
        return average(self.mergeable, coefficients)
