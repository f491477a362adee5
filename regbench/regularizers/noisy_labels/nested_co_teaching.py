"""The second stage of nested dropout: two trained networks go on with Co-teaching, their features still compressed.

Of the paper the released code, the project page and the README were read, not the text beyond the abstract.
"""

from torch import Tensor, nn

from regbench.backbones.backbone import as_backbone
from regbench.errors import unknown
from regbench.functional import nested
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch
from regbench.regularizers.noisy_labels.base import (
    ChoosesWidth,
    CoTeachingPair,
    check_compression,
    fix_batchnorm,
    freeze_batchnorm,
)

COMPRESSIONS = ("nested", "dropout", "none")


@register(
    "nested_co_teaching",
    task="noisy_labels",
    paper=Paper(
        title="Boosting Co-teaching with Compression Regularization for Label Noise",
        authors="Yingyi Chen, Xi Shen, Shell Xu Hu, Johan A. K. Suykens",
        year=2021,
        venue="CVPR workshop L2ID",
        arxiv="2104.13766",
        code="https://github.com/yingyichen-cyy/Nested-Co-teaching",
    ),
)
class NestedCoTeaching(ChoosesWidth, CoTeachingPair):
    """Two networks trained with nested dropout (or dropout) and then fine-tuned with Co-teaching, compression still on,
    beat each of them alone, and Co-teaching without compression.

    One k is drawn for both networks at each step. Selection uses the first K features, and K is chosen after each epoch
    for the mean of both networks' logits, which is also what is tested.

    Args:
        first, second: trained networks of the same kind; `artifacts.first` and `artifacts.second` say which runs make
            them. The run's own backbone only says which kind.
        compression: nested, dropout, or none.
        spread: s of P(k) ∝ exp(−(k / s)²), above 0; nested only.
        rate: share of the features that plain dropout drops, in [0, 1); dropout only.
        width_penalty: what each feature beyond the first costs when K is chosen, as a fraction of accuracy.
        forget_rate: R, share of a batch that is left out, in [0, 1).
        ramp_epochs: epochs over which that share rises from 0.
        split_batch: whether each network selects from its half of the batch for the other, as in the released code;
            false: both see the whole batch, as in Co-teaching.
        freeze_batchnorm: whether batch norm keeps its statistics, scale and shift.
    """

    artifacts = ("first", "second")

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        first: nn.Module,
        second: nn.Module,
        compression: str = "nested",
        spread: float = 10.0,
        rate: float = 0.3,
        width_penalty: float = 1e-5,
        forget_rate: float = 0.2,
        ramp_epochs: int = 0,
        split_batch: bool = True,
        freeze_batchnorm: bool = True,
        **base,
    ):
        first, second = as_backbone(first), as_backbone(second)
        super().__init__(
            first,
            num_classes,
            second=second,
            forget_rate=forget_rate,
            ramp_epochs=ramp_epochs,
            exponent=1.0,
            split_batch=split_batch,
            **base,
        )
        if compression not in COMPRESSIONS:
            raise unknown("compression of nested_co_teaching", compression, COMPRESSIONS)
        check_compression(spread, rate, width_penalty)
        self.compression, self.spread, self.rate = compression, spread, rate
        self.width_penalty, self.freeze_batchnorm = width_penalty, freeze_batchnorm
        self.backbone.requires_grad_(True)  # artifacts come without gradients
        if freeze_batchnorm:
            fix_batchnorm(self.backbone)
        self.masks = []
        for network in self.networks:
            classifier = network.classifier
            kept = nested.bring_back_columns(classifier)
            if classifier.bias is not None and not classifier.bias.any():
                classifier.bias.requires_grad_(False)  # the first stage had none
            if compression == "nested":
                self.masks.append(nested.add_mask(classifier, self.draw_width))
                self.masks[-1].kept.fill_(kept)
            elif compression == "dropout":
                nested.drop_features(classifier, rate)
        if compression == "nested":
            self.width_probabilities = nested.width_probabilities(first.num_features, spread)
        self._width = first.num_features
        self.train()

    def draw_width(self) -> int:
        """k of this training step, the same for both networks and on every process."""
        return self._width

    def pair_loss(self, batch: Batch) -> Tensor:
        if self.masks:
            self._width = nested.draw_width(self.width_probabilities, self.generator("nested"))
        return super().pair_loss(batch)

    def train(self, mode: bool = True) -> "NestedCoTeaching":
        super().train(mode)
        if self.freeze_batchnorm:
            freeze_batchnorm(self.backbone)
        return self
