"""Max-norm constraint: after each step the incoming weights of a unit are brought back into a ball."""

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from regbench.errors import UserError
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod


@register(
    "max_norm",
    task="classification",
    paper=Paper(
        title="Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
        authors="Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov",
        year=2014,
        venue="JMLR",
    ),
)
class MaxNorm(ClassificationMethod):
    """Keeping the norm of each hidden unit's incoming weights below a constant lets the network train at a large
    learning rate without its weights growing, and lowers the test error.

    After each step of the optimiser w ← w min(1, c / ‖w‖₂), for each row of a linear layer and each filter of a
    convolution (transposed ones are left alone). Weights that another method reparameterises are projected as the layer
    uses them, and go back through that method's right_inverse.

    Args:
        c: largest Euclidean norm, positive.
        head: whether the classifier's units are constrained too; the paper speaks of hidden units.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, c: float = 3.0, head: bool = False, **base):
        super().__init__(backbone, num_classes, **base)
        if not c > 0:
            raise UserError(f"max_norm needs c > 0; it got c={c}.")
        self.c = c
        output = None if head else self.backbone.classifier
        self._layers = [
            layer
            for layer in self.backbone.modules()
            if isinstance(layer, nn.Linear | _ConvNd)
            and not isinstance(layer, _ConvTransposeNd)
            and layer is not output
        ]

    def after_step(self) -> None:
        for layer in self._layers:
            if parametrize.is_parametrized(layer, "weight"):
                # Not `layer.weight = …`: that exchanges the parameter's storage, layout and all, and DDP loses it.
                value = torch.renorm(layer.weight, 2, 0, self.c)
                for parametrisation in reversed(layer.parametrizations.weight):
                    value = parametrisation.right_inverse(value)
                layer.parametrizations.weight.original.copy_(value)
            else:
                layer.weight.renorm_(2, 0, self.c)
