"""The ensemble of several networks' outputs: what merging their weights is measured against."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone, as_backbone
from regbench.registry import register
from regbench.regularizers.merging.base import FromModels


def mean_log_probability(logits: Sequence[Tensor]) -> Tensor:
    """log( 1/M sum_i softmax(z_i) ), whose softmax is the mean of the predicted distributions.

    Args:
        logits: z_i of M networks, each (B, C).

    Returns:
        (B, C).

    >>> mean_log_probability([torch.tensor([[9.0, 9.0]]), torch.tensor([[3.0, 1.0]]).log()]).exp()
    tensor([[0.6250, 0.3750]])
    """
    return torch.stack([z.log_softmax(dim=1).exp() for z in logits]).mean(dim=0).log()


class Ensemble(nn.Module):
    """Images (B, C, H, W) → the logarithm of the networks' mean prediction (B, num_classes)."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        return mean_log_probability([network(image) for network in self.members])


@register("output_ensemble", task="classification", paper=None)
class OutputEnsemble(FromModels):
    """The mean prediction of several networks, which costs as many passes as there are networks: the reference that
    merged weights are measured against.

    Args:
        models: two or more networks of the run's classes; `artifacts.model_1`, `artifacts.model_2` … say which runs
            make them. They need be neither of one architecture nor of one start.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, models: Sequence[nn.Module], **base):
        models = [as_backbone(model) for model in models]
        whole = Backbone(Ensemble([model.network for model in models]), stages=())
        super().__init__(whole, num_classes, models=models, **base)
