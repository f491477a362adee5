"""Fine-tuning: training goes on from another run's weights."""

from torch import nn

from regbench.api import check_state
from regbench.backbones.backbone import as_backbone
from regbench.errors import UserError, unknown
from regbench.registry import register
from regbench.regularizers.classification.base import ClassificationMethod
from regbench.regularizers.merging.base import weights_of

HEADS = ("auto", "keep", "replace")


@register("fine_tune", task="classification", paper=None)
class FineTune(ClassificationMethod):
    """Cross entropy from the weights of a trained network on: it makes the models that merging takes, and is transfer
    by gradients where the start was itself fine-tuned on another task.

    Args:
        start: a trained network of the same architecture; `artifacts.start` says which run makes it.
        head: keep: the classifier's weights are the start's too; replace: it is new, as for another task; auto: kept
            where it has the run's number of classes.
    """

    artifacts = ("start",)
    takes_other_classes = True

    def __init__(
        self, backbone: nn.Module, num_classes: int, *, start: nn.Module, head: str = "auto", **base
    ):
        if head not in HEADS:
            raise unknown("regularizer.head", head, HEADS)
        network, start = as_backbone(backbone), as_backbone(start)
        own, given = network.state_dict(), start.state_dict()
        classifier = [
            f"network.{network._classifier_name}.{name}" for name in network.classifier.state_dict()
        ]
        fits = all(name in given and own[name].shape == given[name].shape for name in classifier)
        if head == "keep" and not fits:
            raise UserError(
                f"regularizer.head=keep: the start's classifier is not one of {num_classes} classes; use head=replace."
            )
        if head == "replace" or not fits:
            given |= {name: own[name] for name in classifier}
        check_state(own, given, "artifacts.start")
        network.load_state_dict(given)
        # Before what is stacked: a stacked method may reparameterise the weights.
        super().__init__(network, num_classes, **base)
        self.lineage = (*(start.origin.lineage if start.origin else ()), weights_of(start))

    def on_save_checkpoint(self, checkpoint) -> None:
        checkpoint["lineage"] = list(self.lineage)
