"""Weight compander: each weight is a bounded increasing function, steep at zero, of the parameter that is trained.

Of the paper only the abstract was seen, no code was released, and the function's form (arctan) is recalled: this is our
specification of a method that does what the abstract says. Every default is our choice; docs/papers says which and why.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from regbench.errors import UserError, unknown
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import ClassificationMethod

INITS = ("inverse", "raw")
CLAMP = 0.99  # a start weight beyond this share of the bound is brought to it: the inverse is infinite at the bound
ERF_SLOPE = math.sqrt(math.pi) / 2  # erf(ERF_SLOPE x) has slope 1 at zero, as the others have


class Curve(NamedTuple):
    """An odd increasing function with slope 1 at zero, its inverse, and the supremum of its values."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    bound: float


CURVES = {
    "arctan": Curve(torch.atan, torch.tan, math.pi / 2),
    "tanh": Curve(torch.tanh, torch.atanh, 1.0),
    "softsign": Curve(F.softsign, lambda y: y / (1 - y.abs()), 1.0),
    "erf": Curve(lambda x: torch.erf(ERF_SLOPE * x), lambda y: torch.erfinv(y) / ERF_SLOPE, 1.0),
    "linear": Curve(lambda x: x, lambda y: y, math.inf),
}
FUNCTIONS = (*CURVES, "identity")


def compand(v: Tensor, a: Tensor | float, b: Tensor | float, fn: str = "arctan") -> Tensor:
    """The weights w = Psi(v) = a f(v / b), elementwise; the arctan is recalled from the paper, the others are ours.

    Odd and increasing, with slope a / b at zero. |w| < a π/2 for f = arctan, |w| < a for tanh, softsign and erf (scaled
    to slope 1 at zero). Controls without a bound: `linear`, w = (a / b) v, and `identity`, w = v.

    Args:
        v: the trained parameters, of any shape.
        a: scale of the weights, positive.
        b: scale of the parameters, positive.
        fn: arctan, tanh, softsign, erf, linear or identity.

    >>> [round(w, 4) for w in compand(torch.tensor([0.0, 0.05, 0.2, 1.0]), a=0.1, b=0.05).tolist()]
    [0.0, 0.0785, 0.1326, 0.1521]
    """
    return v if fn == "identity" else a * CURVES[fn].forward(v / b)


def expand(w: Tensor, a: Tensor | float, b: Tensor | float, fn: str = "arctan") -> Tensor:
    """The parameters v = b f⁻¹(w / a) that give the weights w, which are brought within 0.99 of the bound first.

    Args: as for `compand`.

    >>> round(expand(torch.tensor(0.05), a=0.1, b=0.05).item(), 4)
    0.0273
    """
    if fn == "identity":
        return w
    limit = CLAMP * CURVES[fn].bound
    return b * CURVES[fn].inverse((w / a).clamp(-limit, limit))


class Compander(nn.Module):
    """`compand` as a parametrisation of a layer's weight.

    Args:
        fn: as for `compand`.
        a: scalar, scale of the weights.
        b: scalar, scale of the parameters.
        learn: whether a and b are trained; they are then kept as logarithms, so that they stay positive.
    """

    def __init__(self, fn: str, a: Tensor, b: Tensor, learn: bool):
        super().__init__()
        self.fn = fn
        shape = torch.stack([a, b])
        self.log_shape = nn.Parameter(shape.log()) if learn else None
        self.register_buffer("fixed_shape", None if learn else shape)

    @property
    def shape(self) -> Tensor:
        """(2,): a and b."""
        return self.fixed_shape if self.log_shape is None else self.log_shape.exp()

    def forward(self, v: Tensor) -> Tensor:
        # In float32 also where the parameters are 16-bit: the curves are flat at the bound, their inverses steep.
        return compand(v.to(_at_least_single(v)), *self.shape.to(_at_least_single(v)), self.fn).to(v.dtype)

    def right_inverse(self, w: Tensor) -> Tensor:
        return expand(w.to(_at_least_single(w)), *self.shape.to(_at_least_single(w)), self.fn).to(w.dtype)


def _at_least_single(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@register(
    "weight_compander",
    task="classification",
    paper=Paper(
        title="Weight Compander: A Simple Weight Reparameterization for Regularization",
        authors="Rinor Cakaj, Jens Mehnert, Bin Yang",
        year=2023,
        venue="",
        arxiv="2306.16993",
    ),
)
class WeightCompander(ClassificationMethod):
    """Replacing each weight by a bounded increasing function, steep at zero, of a trained parameter leaves fewer
    extreme weights and fewer near zero, and lowers the test error on top of the usual regularizers.

    The function's form is recalled and all defaults are our choice: only the abstract was seen.

    Args:
        fn: arctan, tanh, softsign or erf; the controls are linear (w = (a / b) v) and identity (w = v).
        rel_bound: a of a layer, in standard deviations of its start weights.
        slope: a / b, the function's slope at zero; above 1 small weights grow.
        a: scale of the weights of every layer, in place of rel_bound; needs b.
        b: scale of the parameters of every layer, in place of slope; needs a.
        learn_shape: whether a and b of each layer are trained (without weight decay).
        shape_lr_mult: learning rate of a and b over that of the network.
        exclude_head: whether the classifier keeps plain weights.
        init: inverse (the network starts as without the method) or raw (the usual start goes into the parameters).
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        fn: str = "arctan",
        rel_bound: float = 3.0,
        slope: float = 1.25,
        a: float | None = None,
        b: float | None = None,
        learn_shape: bool = False,
        shape_lr_mult: float = 0.1,
        exclude_head: bool = False,
        init: str = "inverse",
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if fn not in FUNCTIONS:
            raise unknown("fn of weight_compander", fn, FUNCTIONS)
        if init not in INITS:
            raise unknown("init of weight_compander", init, INITS)
        if not (rel_bound > 0 and slope > 0 and shape_lr_mult >= 0):
            raise UserError(
                "weight_compander needs rel_bound > 0, slope > 0 and shape_lr_mult >= 0; it got "
                f"rel_bound={rel_bound}, slope={slope}, shape_lr_mult={shape_lr_mult}."
            )
        if (a is None) != (b is None) or (a is not None and not (a > 0 and b > 0)):
            raise UserError(
                f"weight_compander got a={a}, b={b}: give both, positive, or neither (then rel_bound and slope count)."
            )
        if learn_shape and fn == "identity":
            raise UserError("fn=identity has no shape to learn; set learn_shape=false, or take another fn.")
        self.fn, self.rel_bound, self.slope, self.a, self.b = fn, rel_bound, slope, a, b
        self.learn_shape, self.shape_lr_mult = learn_shape, shape_lr_mult
        self.exclude_head, self.init = exclude_head, init
        self.reparameterise()

    def reparameterise(self) -> None:
        head = self.backbone.classifier if self.exclude_head else None
        owners: dict[int, str] = {}
        for name, layer in list(self.backbone.named_modules()):
            if not isinstance(layer, nn.Linear | _ConvNd) or layer is head:
                continue
            composed = parametrize.is_parametrized(layer, "weight")
            if not composed and owners.setdefault(id(layer.weight), name) != name:
                raise UserError(
                    f"Layers '{owners[id(layer.weight)]}' and '{name}' share one weight, which weight_compander would "
                    "part. Give each layer a weight of its own."
                )
            start = layer.weight.detach().clone()
            parametrize.register_parametrization(layer, "weight", self._compander(name, start))
            # What has parametrised the weight before lies inside: w = Psi(w of before), so that the bound holds.
            if self.init == "raw" and not composed:
                with torch.no_grad():
                    layer.parametrizations.weight.original.copy_(start)
            elif self.init == "inverse" and composed:
                if not all(hasattr(p, "right_inverse") for p in layer.parametrizations.weight):
                    raise UserError(
                        f"The weight of layer '{name}' is parametrised already, by something without a right_inverse: "
                        "weight_compander can't start from it. Use regularizer.init=raw, or leave one of the two out."
                    )
                layer.weight = start

    def _compander(self, name: str, start: Tensor) -> Compander:
        if self.a is not None:
            a, b = start.new_tensor(self.a), start.new_tensor(self.b)
        else:
            a = self.rel_bound * start.std(correction=0)
            b = a / self.slope
            if not a > 0:
                raise UserError(
                    f"The weights of layer '{name}' start all alike, so weight_compander has no scale for it. Give "
                    "absolute a and b, start it at random, or, if it is the classifier, set exclude_head=true."
                )
        return Compander(self.fn, a, b, self.learn_shape)

    def parameter_options(self) -> list[dict[str, Any]]:
        shapes = [
            m.log_shape for m in self.backbone.modules() if isinstance(m, Compander) and self.learn_shape
        ]
        # Decay would draw log a and log b to zero, i.e. a and b to 1, whatever the layer's scale.
        return [{"params": shapes, "weight_decay": 0.0, "lr_factor": self.shape_lr_mult}] if shapes else []
