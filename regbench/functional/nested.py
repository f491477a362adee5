"""Nested dropout: only the first k features reach the classifier, k drawn anew for each batch.

Chen et al. 2022, Compressing Features for Learning with Noisy Labels (arXiv:2206.13140), after Rippel et al. 2014. The
released code (yingyichen-cyy/Nested-Co-teaching), "code" below, and the project page were read, not the paper's text.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regbench.errors import UserError

CHUNK = 2**24  # numbers of the (rows, d, C) tensor that is held at once


def width_probabilities(features: int, spread: float) -> Tensor:
    """P(k) ∝ exp(−(k / s)²) for k = 1 … d: float64 (d,). Code.

    The exponent has no factor 1/2: s is √2 times the standard deviation of a normal distribution.

    Args:
        features: d.
        spread: s, above 0.

    >>> [round(p, 6) for p in width_probabilities(4, 2.0).tolist()]
    [0.613038, 0.289579, 0.082966, 0.014417]
    """
    k = torch.arange(1, features + 1, dtype=torch.float64)
    return (-((k / spread) ** 2)).softmax(0)


def trained_width(probabilities: Tensor, share: float = 0.99) -> int:
    """The smallest K with P(k ≤ K) ≥ `share`: features beyond it hardly ever train. 0.99 is our choice.

    >>> trained_width(width_probabilities(512, 10.0))
    18
    """
    return min(1 + int((probabilities.cumsum(0) < share).sum()), len(probabilities))


def draw_width(probabilities: Tensor, generator: torch.Generator) -> int:
    """k, from 1 to d."""
    return 1 + int(torch.multinomial(probabilities, 1, generator=generator))


def logits_at_each_width(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (B, d, C) with the first 1, 2, … d features: a cumulative sum over the features, one pass for all.

    Args:
        features: f, (B, d), what goes into the classifier.
        weight: W, (C, d), of the classifier.
        bias: (C,), or None.

    >>> f, w = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    >>> logits_at_each_width(f, w, None)
    tensor([[[ 1.,  0.],
             [ 0., -2.]]])
    """
    logits = (features[:, :, None] * weight.t()).cumsum(1)
    return logits if bias is None else logits + bias


def chunked_logits(
    features: Sequence[Tensor], classifiers: Sequence[tuple[Tensor, Tensor | None]]
) -> Iterator[Tensor]:
    """`logits_at_each_width` a few rows at a time, as float32; of several networks their mean.

    Args:
        features: of each network, (B, d).
        classifiers: of each network, weight (C, d) and bias.
    """
    classes, width = classifiers[0][0].shape
    parts = [part.float().split(max(1, CHUNK // (classes * width))) for part in features]
    for rows in zip(*parts, strict=True):
        each = [
            logits_at_each_width(part, *classifier)
            for part, classifier in zip(rows, classifiers, strict=True)
        ]
        yield sum(each) / len(each)


def right_at_each_width(
    features: Sequence[Tensor], classifiers: Sequence[tuple[Tensor, Tensor | None]], label: Tensor
) -> Tensor:
    """How many of the images are predicted right with the first 1, 2, … d features: int64 (d,).

    Args:
        features, classifiers: as in `chunked_logits`.
        label: (B,).
    """
    chunks = chunked_logits(features, classifiers)
    found = torch.cat([logits.argmax(2) for logits in chunks])
    return (found == label[:, None]).sum(0)


def choose_width(accuracy: Tensor, penalty: float) -> tuple[int, float]:
    """K with the largest accuracy(K) − penalty (K − 1), the smallest of several, and that score. Code: penalty 1e-5.

    Args:
        accuracy: (d,), fractions, of the first 1, 2, … d features.

    >>> choose_width(torch.tensor([0.9, 0.9], dtype=torch.float64), 1e-5)
    (1, 0.9)
    """
    score = accuracy.double() - penalty * torch.arange(len(accuracy), device=accuracy.device)
    best = int(score.argmax())
    return best + 1, float(score[best])


def mask_variance(logits: Tensor, probabilities: Tensor) -> Tensor:
    """−log Σ_y exp(E_k log q_k(y)), (B,): the variance term of the expected loss (theorem 1 of the paper).

    E_k CE(p, q_k) = H(p) + KL(p ‖ q~) + variance, q~ ∝ exp(E_k log q_k). It is 0 where all k predict alike, and it
    doesn't depend on the labels. The closed form is ours.

    Args:
        logits: (B, d, C), of each k.
        probabilities: P(k), (d,).

    >>> q = torch.tensor([[[0.9, 0.1], [0.6, 0.4]]])
    >>> round(mask_variance(q.log(), torch.tensor([0.5, 0.5])).item(), 5)
    0.06737
    """
    mean = (F.log_softmax(logits, dim=2) * probabilities.to(logits)[:, None]).sum(1)
    return -mean.logsumexp(1)


class NestedMask(nn.Module):
    """A parametrisation that zeroes the classifier's columns from k on, which is the same as dropping the features.

    (f · m) Wᵀ = f (W · m)ᵀ: what is dropped gets no gradient, on either side. In training with gradients k comes from
    the method, else it is `kept`.

    Args:
        features: d.
        draw: the method's own, gives the k of the training step.

    Attributes:
        kept: K, how many features are used outside training steps; d until one is chosen.
    """

    def __init__(self, features: int, draw: Callable[[], int]):
        super().__init__()
        self.register_buffer("kept", torch.tensor(features))
        # Not the method itself: a copy of the network would copy it.
        self._owner, self._draw = weakref.ref(draw.__self__), draw.__name__
        self._open = False

    def forward(self, weight: Tensor) -> Tensor:
        if self._open:
            return weight
        drawing = self.training and torch.is_grad_enabled()
        k = self._width() if drawing else self.kept
        mask = torch.arange(weight.shape[1], device=weight.device) < k
        return weight * mask.view(1, -1, *[1] * (weight.ndim - 2))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight itself: what is assigned is kept whole, and masked when it is read."""
        return weight

    @torch.compiler.disable
    def _width(self) -> int:
        return getattr(self._owner(), self._draw)()


def add_mask(classifier: nn.Module, draw: Callable[[], int]) -> NestedMask:
    """Puts a `NestedMask` on the classifier's weight. Raises UserError where there is one already."""
    if mask_of(classifier) is not None:
        raise UserError("The network has a nested mask already; a second one has no meaning.")
    mask = NestedMask(classifier.weight.shape[1], draw)
    with torch.no_grad():  # it is tried out, which shall not draw
        parametrize.register_parametrization(classifier, "weight", mask)
    return mask


def mask_of(classifier: nn.Module) -> NestedMask | None:
    """The mask on the classifier's weight; None where there is none."""
    if not parametrize.is_parametrized(classifier, "weight"):
        return None
    return next((m for m in classifier.parametrizations.weight if isinstance(m, NestedMask)), None)


@contextmanager
def _without(mask: NestedMask | None):
    if mask is None:
        yield
        return
    mask._open = True
    try:
        yield
    finally:
        mask._open = False


@torch.no_grad()
def unmasked(classifier: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight (C, d) and bias of a classifier, in float32, with all its columns."""
    with _without(mask_of(classifier)):
        weight = classifier.weight.detach().flatten(1).float()
    return weight, None if classifier.bias is None else classifier.bias.detach().float()


# A network that leaves its method (`Method.plain_backbone`) has the columns from K on zeroed, so that it predicts what
# was tested. Who trains it on wants them back, and K. Both travel beside the weights, in no state_dict.


def leave_columns(plain: nn.Module, classifier: nn.Module) -> None:
    """Notes all columns and K of a masked classifier on its plain copy, for `bring_back_columns`."""
    mask = mask_of(classifier)
    with torch.no_grad(), _without(mask):
        plain.register_buffer("all_columns", classifier.weight.detach().clone(), persistent=False)
    plain.register_buffer("columns_kept", mask.kept.clone(), persistent=False)


@torch.no_grad()
def bring_back_columns(classifier: nn.Module) -> int:
    """Undoes what K zeroed in a classifier that `leave_columns` has noted; returns its K, else d."""
    if not hasattr(classifier, "all_columns"):
        return classifier.weight.shape[1]
    classifier.weight.copy_(classifier.all_columns)
    kept = int(classifier.columns_kept)
    del classifier.all_columns, classifier.columns_kept
    return kept


def drop_features(classifier: nn.Module, rate: float) -> torch.utils.hooks.RemovableHandle:
    """Dropout of the features that go into the classifier, in training mode; the rest is scaled by 1/(1 − rate)."""

    def drop(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (F.dropout(args[0], rate, module.training), *args[1:])

    return classifier.register_forward_pre_hook(drop)
