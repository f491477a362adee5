"""Nested dropout before the classifier: the first few features hold the signal, and only those are kept at test time.

Of the paper the released code, the project page and the README were read, not the text beyond the abstract.
"""

from torch import nn

from regbench.backbones.backbone import Backbone
from regbench.errors import unknown
from regbench.functional import nested
from regbench.registry import Paper, register
from regbench.regularizers.noisy_labels.base import (
    ChoosesWidth,
    check_compression,
    fix_batchnorm,
    freeze_batchnorm,
)

MODES = ("nested", "dropout")


@register(
    "nested_dropout",
    task="noisy_labels",
    paper=Paper(
        title="Compressing Features for Learning with Noisy Labels",
        authors="Yingyi Chen, Shell Xu Hu, Xi Shen, Chunrong Ai, Johan A. K. Suykens",
        year=2022,
        venue="IEEE TNNLS",
        arxiv="2206.13140",
        code="https://github.com/yingyichen-cyy/Nested-Co-teaching",
    ),
)
class NestedDropout(ChoosesWidth):
    """Dropping features before the classifier, in nested order or not, limits the information that it can use and so
    how much it overfits wrong labels; nested order puts the signal into the first few features.

    With `mode` nested one k is drawn for each batch, only the first k features reach the classifier, and after each
    epoch the K with the best validation accuracy is chosen, which is then used wherever the network predicts. K stands
    in the checkpoint with the weights.

    Without validation data, and stacked on another method, nested order trains as it does otherwise, but nothing
    chooses K: it stays the 99 % quantile of P, as features beyond it have hardly ever trained. That is our choice.

    Args:
        mode: nested, or dropout: plain dropout of the features.
        spread: s of P(k) ∝ exp(−(k / s)²), above 0; nested only.
        rate: share of the features that plain dropout drops, in [0, 1); dropout only.
        width_penalty: what each feature beyond the first costs when K is chosen, as a fraction of accuracy.
        bias: whether the classifier keeps its bias; else it is zero and stays so.
        freeze_batchnorm: whether batch norm keeps its statistics, scale and shift, for pretrained networks.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        mode: str = "nested",
        spread: float = 10.0,
        rate: float = 0.3,
        width_penalty: float = 1e-5,
        bias: bool = False,
        freeze_batchnorm: bool = False,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if mode not in MODES:
            raise unknown("mode of nested_dropout", mode, MODES)
        check_compression(spread, rate, width_penalty)
        self.mode, self.spread, self.rate = mode, spread, rate
        self.width_penalty, self.bias = width_penalty, bias
        self.freeze_batchnorm = freeze_batchnorm
        self.masks = []
        self.reparameterise()

    def reparameterise(self) -> None:
        classifier = self.backbone.classifier
        if not self.bias and classifier.bias is not None:
            # Zero instead of None: then the weights have the names that the network's own package gives them.
            nn.init.zeros_(classifier.bias)
            classifier.bias.requires_grad_(False)
        if self.mode == "nested":
            self.width_probabilities = nested.width_probabilities(self.backbone.num_features, self.spread)
            self.masks = [nested.add_mask(classifier, self.draw_width)]
            self.masks[0].kept.fill_(nested.trained_width(self.width_probabilities))
        else:
            self._hook = nested.drop_features(classifier, self.rate)
        if self.freeze_batchnorm:
            fix_batchnorm(self.backbone)

    def draw_width(self) -> int:
        """k of this training step; alike on every process."""
        return nested.draw_width(self.width_probabilities, self.generator("nested"))

    def train(self, mode: bool = True) -> "NestedDropout":
        super().train(mode)
        if self.freeze_batchnorm:
            freeze_batchnorm(self.backbone)
        return self

    def plain_backbone(self) -> Backbone:
        plain = super().plain_backbone()
        if self.masks:
            nested.leave_columns(plain.classifier, self.backbone.classifier)
        else:
            plain.classifier._forward_pre_hooks.pop(self._hook.id)
        return plain
