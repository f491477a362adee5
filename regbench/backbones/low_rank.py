"""Linear layers and convolutions as products of two factors whose components are ordered: the first few of them are a
smaller layer. Nothing stands between the two factors: a pair is one linear map.
"""

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from regbench.errors import UserError, unknown
from regbench.functional.cost import macs_of_modules
from regbench.functional.low_rank import smaller_as_pair, svd_factors

log = logging.getLogger("regbench")

INITS = ("svd", "random", "whole")


class LowRank(nn.Module):
    """A layer with weight W = U Vᵀ, U (m, r) and V (n, r), of which the components that are kept are used.

    Args:
        inner: the layer with Vᵀ as its weight, (r, n) or (r, C, k, k).
        outer: the layer with U as its weight, (m, r) or (m, r, 1, 1), and with the bias.

    Attributes:
        kept: bool (r,), the components that are left; the others hold their weights, but take no part.
        rank: how many are left.
        cut: how many of those the forward pass uses, the first ones; None: all.
    """

    def __init__(self, inner: nn.Module, outer: nn.Module):
        super().__init__()
        self.inner, self.outer = inner, outer
        self.register_buffer("kept", torch.ones(self.full_rank, dtype=torch.bool, device=inner.weight.device))
        self.cut: int | None = None
        self._look()

    @property
    def full_rank(self) -> int:
        return len(self.inner.weight)

    @property
    def sizes(self) -> tuple[int, int]:
        """(m, n) of the matrix W; of a convolution n is C k²."""
        return len(self.outer.weight), self.inner.weight[0].numel()

    @property
    def weight(self) -> Tensor:
        """W of the components that are left, (m, n) or (m, C, k, k)."""
        return self._product(*self._factors(None))

    @property
    def bias(self) -> Tensor | None:
        return self.outer.bias

    def components(self) -> tuple[Tensor, Tensor]:
        """U (r, m) and V (r, n), one component a row; all that are stored, also those that take no part."""
        return self.outer.weight.flatten(1).T, self.inner.weight.flatten(1)

    def keep(self, kept: Tensor) -> None:
        """Chooses the components that are left: bool (r,)."""
        self.kept.copy_(kept)
        self._look()

    @torch.no_grad()
    def decompose(self, rank: int) -> None:
        """Makes the factors those of the singular value decomposition of W, and keeps its first components."""
        u, v = svd_factors(self.weight.flatten(1).float())
        self.outer.weight.copy_(u.T.view_as(self.outer.weight))
        self.inner.weight.copy_(v.view_as(self.inner.weight))
        self.keep(torch.arange(self.full_rank, device=self.kept.device) < rank)

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """The layer as it is used, physically: a pair of plain layers, or one where that has no more weights.

        At rank 0 it is a pair with one component, which is zero.
        """
        inner, outer = self._factors(self.cut)
        if not len(inner):
            inner, outer = 0 * self.inner.weight[:1], 0 * self.outer.weight[:, :1]
        if not smaller_as_pair(len(inner), *self.sizes):
            return _filled(self.inner, self._product(inner, outer), self.bias)
        layers = OrderedDict(
            inner=_filled(self.inner, inner, None), outer=_filled(self.outer, outer, self.bias)
        )
        return nn.Sequential(layers)

    def _look(self) -> None:
        """Notes what `kept` says, so that a forward pass need not ask a GPU for it."""
        self.rank = int(self.kept.sum())
        self._index = None if bool(self.kept[: self.rank].all()) else self.kept.nonzero().flatten()

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._look()

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        if self._index is not None:
            self._index = self._index.to(self.kept.device)
        return self

    def _factors(self, cut: int | None) -> tuple[Tensor, Tensor]:
        """The weights of inner (b, …) and outer (m, b, …) at the first b = min(cut, rank) components that are left."""
        rank = self.rank if cut is None else min(cut, self.rank)
        if self._index is None:
            return self.inner.weight[:rank], self.outer.weight[:, :rank]  # views: what is cut costs nothing
        index = self._index[:rank]
        return self.inner.weight[index], self.outer.weight[:, index]

    def _product(self, inner: Tensor, outer: Tensor) -> Tensor:
        return (outer.flatten(1) @ inner.flatten(1)).view(len(outer), *inner.shape[1:])


class LowRankLinear(LowRank):
    """y = U (Vᵀ x) + b; at rank 0 it is b."""

    def forward(self, x: Tensor) -> Tensor:
        inner, outer = self._factors(self.cut)
        return F.linear(F.linear(x, inner), outer, self.outer.bias)


class LowRankConv2d(LowRank):
    """A convolution with r filters, then one of 1 × 1 pixels from r to m channels with the bias; at rank 0 the bias."""

    def forward(self, x: Tensor) -> Tensor:
        inner, outer = self._factors(self.cut)
        if not len(inner):  # PyTorch has no convolution without filters
            inner, outer = self.inner.weight[:1], 0 * self.outer.weight[:, :1]
        # What nn.Conv2d's own forward calls: it knows the padding's mode.
        return F.conv2d(self.inner._conv_forward(x, inner, None), outer, self.outer.bias)


def low_rank(layer: nn.Linear | nn.Conv2d, init: str = "svd") -> LowRank:
    """The layer in factors of full rank, min(m, n), with its own bias.

    Args:
        init: svd (the layer computes what it did), random (PyTorch's initialisation of both factors) or whole (the
            factor that is as large as the weight is the weight, and the other one, a square, is the identity).
    """
    weight = layer.weight.detach()
    if init == "whole":
        m, n = weight.flatten(1).shape
        eye = torch.eye(min(m, n), device=weight.device, dtype=weight.dtype)
        u, v = (eye, weight.flatten(1)) if m <= n else (weight.flatten(1), eye)
    else:
        u, v = svd_factors(weight.flatten(1).float())
        u, v = u.T.to(weight.dtype), v.to(weight.dtype)
    if isinstance(layer, nn.Linear):
        outer, cls = skip_init(nn.Linear, u.shape[1], u.shape[0], device=weight.device), LowRankLinear
    else:
        outer, cls = skip_init(nn.Conv2d, u.shape[1], u.shape[0], 1, device=weight.device), LowRankConv2d
        u = u[..., None, None]
    inner = _filled(layer, v.view(-1, *weight.shape[1:]), None)
    outer = _filled(outer, u, None)
    if init == "random":
        inner.reset_parameters()
        outer.reset_parameters()
    outer.bias = layer.bias
    return cls(inner, outer)


def _filled(like: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Linear | nn.Conv2d:
    """A new layer of the same kind with this weight and this bias; draws no random numbers."""
    options = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    if isinstance(like, nn.Linear):
        layer = skip_init(nn.Linear, weight.shape[1], weight.shape[0], **options)
    else:
        options |= {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
        options |= {"padding_mode": like.padding_mode}
        layer = skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], like.kernel_size, **options)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def factorise(
    network: nn.Module,
    *,
    init: str = "svd",
    skip_first: int = 0,
    skip_last: bool = False,
    pointwise: bool = True,
) -> None:
    """Puts linear layers and convolutions of a network into factors of full rank, in place.

    Grouped convolutions stay as they are, and what is no plain nn.Linear or nn.Conv2d: attention's projections in
    torch's own class, reparameterised layers.

    Args:
        init: svd, random or whole, see `low_rank`.
        skip_first: how many of those layers stay as they are, counted from the first that the network registers.
        skip_last: whether the last of them stays as it is.
        pointwise: whether 1 × 1 convolutions are put into factors too.

    Raises:
        UserError: no layer is left to put into factors.
    """
    if init not in INITS:
        raise unknown("init", init, INITS)
    if skip_first < 0:
        raise UserError(f"skip_first={skip_first}: a number of layers, 0 or more.")
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    chosen = layers[skip_first : len(layers) - 1 if skip_last else None]
    chosen = [m for m in chosen if type(m) is nn.Linear or (type(m) is nn.Conv2d and m.groups == 1)]
    if not pointwise:
        chosen = [m for m in chosen if isinstance(m, nn.Linear) or m.kernel_size != (1, 1)]
    if not chosen:
        raise UserError(
            f"None of the network's {len(layers)} linear layers and convolutions can be put into factors "
            f"(skip_first={skip_first}, skip_last={skip_last}; grouped convolutions can't, nor reparameterised ones). "
            "Take another backbone, or skip fewer."
        )
    replace_modules(network, {layer: low_rank(layer, init) for layer in chosen})
    if len(chosen) < len(layers):
        log.info("%d of %d linear layers and convolutions are put into factors.", len(chosen), len(layers))


def replace_modules(network: nn.Module, by: dict[nn.Module, nn.Module]) -> None:
    """Puts other modules in the place of some of a network's, wherever they stand."""
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child in by:
                parent._modules[name] = by[child]


def layers_of(network: nn.Module) -> dict[str, LowRank]:
    """name → the layers of a network that are in factors, in the order in which they are registered."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LowRank)}


def plain(network: nn.Module) -> nn.Module:
    """A copy of a network in which every layer in factors is made of plain layers, physically cut to its rank."""
    network = copy.deepcopy(network)
    replace_modules(network, {layer: layer.plain() for layer in layers_of(network).values()})
    return network


@contextmanager
def cut_to(layers: Iterable[LowRank], ranks: Iterable[int | None]) -> Iterator[None]:
    """Within it the layers use the first ranks[i] of their components; None: all that are left."""
    layers = list(layers)
    try:
        for layer, rank in zip(layers, ranks, strict=True):
            layer.cut = rank
        yield
    finally:
        for layer in layers:
            layer.cut = None


def macs_by_rank(
    network: nn.Module, shape: Sequence[int], deployed: bool = False
) -> Callable[[Sequence[int]], int]:
    """ranks of the layers in factors → multiply-accumulates of one sample's forward pass at these ranks.

    The library counts once, at full ranks; a pair's count is proportional to its rank.

    Args:
        shape: of a sample, e.g. (C, H, W).
        deployed: count each layer as `LowRank.plain` makes it, i.e. as one layer where a pair is not smaller.
    """
    network = copy.deepcopy(network)
    layers = layers_of(network)
    for layer in layers.values():
        layer.keep(torch.ones_like(layer.kept))
    counts = macs_of_modules(network, shape)
    rest = counts[""] - sum(counts[name] for name in layers)
    # (m, n, how often the layer's matrix is applied)
    parts = [
        (*layer.sizes, counts[name] // (layer.full_rank * sum(layer.sizes))) for name, layer in layers.items()
    ]

    def macs(ranks: Sequence[int]) -> int:
        total = rest
        for (m, n, times), rank in zip(parts, ranks, strict=True):
            total += times * (min(max(rank, 1) * (m + n), m * n) if deployed else rank * (m + n))
        return total

    return macs
