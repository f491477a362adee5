"""Co-teaching: two networks from scratch, each of which learns what has a small loss in the other."""

from torch import nn

from regbench.registry import Paper, register
from regbench.regularizers.noisy_labels.base import CoTeachingPair


@register(
    "co_teaching",
    task="noisy_labels",
    paper=Paper(
        title="Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels",
        authors="Bo Han, Quanming Yao, Xingrui Yu, Gang Niu, Miao Xu, Weihua Hu, Ivor Tsang, Masashi Sugiyama",
        year=2018,
        venue="NeurIPS",
        arxiv="1804.06872",
        code="https://github.com/bhanML/Co-teaching",
    ),
)
class CoTeaching(CoTeachingPair):
    """Two networks filter each other's wrong labels: each step both learn only the samples whose loss is small in the
    other, of which fewer and fewer are taken over the first epochs, before wrong labels are memorised.

    Tested is the mean of both networks' logits (the paper tests each network).

    Args:
        forget_rate: τ, share of a batch that is left out in the end, in [0, 1); the noise rate, where it is known.
        ramp_epochs: epochs over which that share rises from 0.
        exponent: the share ends at forget_rate to this power.
        split_batch: false: both networks see the whole batch, as in the paper. true: each selects from its half for the
            other, as the code of nested co-teaching does.
        pretrained: whether the network's weights are pretrained; then the second network starts from them too, but for
            its classifier.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        forget_rate: float = 0.2,
        ramp_epochs: int = 10,
        exponent: float = 1.0,
        split_batch: bool = False,
        pretrained: bool = False,
        **base,
    ):
        super().__init__(
            backbone,
            num_classes,
            forget_rate=forget_rate,
            ramp_epochs=ramp_epochs,
            exponent=exponent,
            split_batch=split_batch,
            pretrained=pretrained,
            **base,
        )
