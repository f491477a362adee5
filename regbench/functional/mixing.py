"""Mixed-sample augmentation: which two images are mixed, with which share, and how.

First pure functions on explicit parameters, then the policies, which draw those parameters from a
generator: one share λ and one partner permutation for a whole batch, as in the papers' released codes.

torchvision's and timm's MixUp and CutMix return soft labels (the pair of classes is lost), draw from global
generators and pair by a roll or a flip; so they are the oracle of the tests and not the engine.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regbench.errors import UserError, unknown

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right are exclusive


class Draw(NamedTuple):
    """How one batch is mixed.

    Attributes:
        partner: int64 (B,) permutation on the images' device; image i is mixed with image partner[i].
        lam: share of the image itself in [0, 1], after clipping a box or rounding a mask.
        mix: mixes a batch (B, ...) with its partners; a new tensor, differentiable.
        layer: where to mix: 0 = the input image, k = the output of `backbone.stages[k - 1]`.
    """

    partner: Tensor
    lam: float
    mix: Callable[[Tensor], Tensor]
    layer: int = 0


# -- pure functions on explicit parameters -------------------------------------------------------------------


def interpolate(image: Tensor, partner: Tensor, lam: float) -> Tensor:
    """λ x + (1 − λ) x[partner] (mixup: Zhang et al. 2018), for a batch (B, ...) of floats.

    >>> interpolate(torch.tensor([[0.0], [8.0]]), torch.tensor([1, 0]), 0.75)
    tensor([[2.],
            [6.]])
    """
    # index_select: on a CPU four times as fast as image[partner]
    return torch.lerp(image, image.index_select(0, partner), 1 - lam)


def box_around(height: int, width: int, side: float, centre: tuple[int, int]) -> Box:
    """A box whose sides are `side` × the image's, rounded down to even pixels, clipped at the image's border.

    >>> box_around(32, 32, 0.5, (16, 16)), box_around(32, 32, 0.5, (0, 31))
    ((8, 24, 8, 24), (0, 8, 23, 32))
    """
    (y, x), half_height, half_width = centre, int(height * side) // 2, int(width * side) // 2
    top, left = max(y - half_height, 0), max(x - half_width, 0)
    return top, min(y + half_height, height), left, min(x + half_width, width)


def box_lam(height: int, width: int, box: Box) -> float:
    """The share of the image outside the box.

    >>> box_lam(32, 32, (0, 8, 0, 8))
    0.9375
    """
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (height * width)


def cutmix_box(height: int, width: int, lam: float, centre: tuple[int, int]) -> tuple[Box, float]:
    """The box that CutMix pastes (Yun et al. 2019, eq. 2), clipped at the border, and λ after the clipping.

    Args:
        height: pixels.
        width: pixels.
        lam: share of the image before clipping, in [0, 1]; the box has sides sqrt(1 − λ) × the image's.
        centre: (y, x) in pixels.

    >>> cutmix_box(32, 32, 0.75, (16, 16)), cutmix_box(32, 32, 0.75, (0, 0))
    (((8, 24, 8, 24), 0.75), ((0, 8, 0, 8), 0.9375))
    """
    box = box_around(height, width, math.sqrt(1 - lam), centre)
    return box, box_lam(height, width, box)


def paste(image: Tensor, partner: Tensor, box: Box) -> Tensor:
    """Images (B, C, H, W) with the partner's pixels inside the box (CutMix: Yun et al. 2019, eq. 1).

    >>> paste(torch.arange(8.0).view(2, 1, 2, 2), torch.tensor([1, 0]), (0, 1, 0, 2)).flatten(1)
    tensor([[4., 5., 2., 3.],
            [0., 1., 6., 7.]])
    """
    top, bottom, left, right = box
    mixed = image.clone()
    mixed[..., top:bottom, left:right] = image[..., top:bottom, left:right].index_select(0, partner)
    return mixed


def resize_paste(image: Tensor, partner: Tensor, box: Box, interpolation: str = "nearest") -> Tensor:
    """Images (B, C, H, W) with the whole partner resized into the box (ResizeMix: Qin et al. 2020).

    `interpolation` is nearest (row i of h comes from row floor(i H / h)) or bilinear. An empty box changes
    nothing.

    >>> resize_paste(torch.arange(8.0).view(2, 1, 2, 2), torch.tensor([1, 0]), (1, 2, 0, 1)).flatten(1)
    tensor([[0., 1., 4., 3.],
            [4., 5., 0., 7.]])
    """
    top, bottom, left, right = box
    size = bottom - top, right - left
    mixed = image.clone()
    if 0 in size:
        return mixed
    if interpolation == "nearest":  # by selection, on a CPU twice as fast as F.interpolate
        rows, columns = (
            torch.arange(n, device=image.device) * full // n
            for n, full in zip(size, image.shape[-2:], strict=True)
        )
        small = image.index_select(-2, rows).index_select(-1, columns)
    else:
        small = F.interpolate(image, size=size, mode=interpolation)
    mixed[..., top:bottom, left:right] = small.index_select(0, partner)
    return mixed


def fourier_mask(noise: Tensor, width: int, lam: float, decay: float = 3.0) -> Tensor:
    """FMix's mask: a random low-frequency picture, cut at the level that leaves a share λ of ones.

    Harris et al. 2020: the inverse Fourier transform of noise / f^decay, f the distance from the zero
    frequency in cycles per pixel (at least 1 / max(H, W)); then the λHW highest pixels are 1, the others 0.

    Args:
        noise: (H, W // 2 + 1, 2) standard normal; real and imaginary parts of the half spectrum.
        width: W in pixels.
        lam: share of ones; rounded to whole pixels.
        decay: exponent δ; larger gives rounder patches.

    Returns:
        bool (H, W) with exactly round(λHW) ones.

    >>> noise = torch.zeros(4, 3, 2)
    >>> noise[1, 0, 0] = 1.0  # one wave from top to bottom: cos(2πy / 4)
    >>> fourier_mask(noise, 4, 0.25).int().tolist()
    [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    height = noise.shape[0]
    fy, fx = torch.fft.fftfreq(height, dtype=noise.dtype), torch.fft.rfftfreq(width, dtype=noise.dtype)
    frequency = torch.hypot(fy[:, None], fx).clamp_(min=1 / max(height, width))
    picture = torch.fft.irfft2(torch.view_as_complex(noise) / frequency**decay, s=(height, width))
    highest = picture.flatten().topk(round(lam * height * width), sorted=False).indices
    return torch.zeros(height * width, dtype=torch.bool).index_fill_(0, highest, True).view(height, width)


def mask_mix(image: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
    """Images (B, C, H, W) where the mask (H, W) is 1, partners where it is 0.

    >>> image, mask = torch.arange(4.0).view(2, 1, 1, 2), torch.tensor([[True, False]])
    >>> mask_mix(image, torch.tensor([1, 0]), mask).flatten(1)
    tensor([[0., 3.],
            [2., 1.]])
    """
    # a weight of exactly 0 or 1 copies; on a CPU three times as fast as torch.where with a broadcast mask
    return torch.lerp(image, image.index_select(0, partner), (~mask).to(image.dtype))


def spectral_residual(image: Tensor) -> Tensor:
    """Saliency from the spectral residual of the log spectrum (Hou and Zhang 2007).

    R = log|F| − (its 3 × 3 mean); saliency = |inverse Fourier transform of exp(R + i·phase)|², smoothed.
    Images larger than 64 pixels are shrunk to 64 as in the paper. The smoothing is a Gaussian of 2.5 / 64 of
    the longer side with zeros outside the image (our choice; it keeps the border, where the Fourier transform
    sees a jump, from being salient).

    Args:
        image: (C, H, W) or (H, W); channels are averaged. Scale and offset of the values hardly matter.

    Returns:
        (H, W), not negative but for rounding.

    >>> dot = torch.zeros(16, 16)
    >>> dot[5, 9] = 1.0
    >>> divmod(int(spectral_residual(dot).argmax()), 16)
    (5, 9)
    """
    grey = image.float().reshape(-1, *image.shape[-2:]).mean(0)
    height, width = grey.shape
    scale = min(1.0, 64 / max(height, width))
    if scale < 1:
        size = (max(round(height * scale), 1), max(round(width * scale), 1))
        grey = F.interpolate(grey[None, None], size=size, mode="area")[0, 0]
    spectrum = torch.fft.fft2(grey)
    amplitude = spectrum.abs()
    log_amplitude = torch.maximum(amplitude, 1e-6 * amplitude.max() + 1e-30).log()
    around = F.pad(log_amplitude[None, None], (1, 1, 1, 1), mode="circular")  # a spectrum is periodic
    residual = log_amplitude - F.avg_pool2d(around, 3, stride=1)[0, 0]
    energy = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs().square()
    sigma = 2.5 / 64 * max(grey.shape)
    rows, columns = (torch.arange(n, device=grey.device) for n in grey.shape)
    gauss_y, gauss_x = (
        torch.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        for at in (rows, columns)
    )
    saliency = gauss_y @ energy @ gauss_x
    if scale < 1:
        saliency = F.interpolate(saliency[None, None], size=(height, width), mode="bilinear")[0, 0]
    return saliency


def fine_grained(image: Tensor) -> Tensor:
    """OpenCV's static fine-grained saliency (Montabone and Soto 2010), which openmixup's SaliencyMix uses.

    OpenCV's detector reads 8-bit pixels, so the values are first scaled to 0..255 over the image. (openmixup
    hands it normalised floats, and its map is then unrelated to the picture: see docs/baselines.md.)

    Args:
        image: (C, H, W), C = 3 in the order RGB, or any C, then averaged.

    Returns:
        (H, W) in [0, 1]. Raises UserError where OpenCV's contrib modules are missing.
    """
    try:
        import cv2

        detector = cv2.saliency.StaticSaliencyFineGrained_create()
    except (ImportError, AttributeError):
        raise UserError(
            "saliency 'fine_grained' needs OpenCV's contrib modules; install them with"
            " `pip install regbench[saliency]` or set saliency=spectral_residual."
        ) from None
    pixels = image.float().cpu()
    pixels = pixels.flip(0) if len(pixels) == 3 else pixels.mean(0, keepdim=True)  # OpenCV's order is BGR
    low, high = pixels.aminmax()
    pixels = ((pixels - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8)
    pixels = pixels.permute(1, 2, 0).squeeze(2).contiguous()
    return torch.from_numpy(detector.computeSaliency(pixels.numpy())[1])


SALIENCY: dict[str, Callable[[Tensor], Tensor]] = {
    "spectral_residual": spectral_residual,
    "fine_grained": fine_grained,
}


def beta(alpha: float, generator: torch.Generator) -> float:
    """One draw from Beta(alpha, alpha), see `betas`."""
    return betas(alpha, 1, generator).item()


def betas(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """`count` draws (count,) from Beta(alpha, alpha), in double precision, from a CPU generator.

    Raises UserError unless alpha > 0.

    >>> betas(1.0, 10_000, torch.Generator().manual_seed(0)).mean().round(decimals=1)
    tensor(0.5000, dtype=torch.float64)
    """
    if not alpha > 0:
        raise UserError(
            f"alpha={alpha}: the mixing share is drawn from Beta(alpha, alpha); give an alpha above 0."
        )
    # X / (X + Y) of two Gamma(alpha) variables, each Gamma(alpha + 1) · U^(1 / alpha), and
    # the logarithm of that does not underflow. torch.distributions takes no generator, its sampler does.
    shape = torch.full((2, count), alpha + 1.0, dtype=torch.float64)
    log_gamma = torch._standard_gamma(shape, generator=generator).log()
    log_gamma += torch.rand(2, count, generator=generator, dtype=torch.float64).log() / alpha
    return torch.sigmoid(log_gamma[0] - log_gamma[1])


# -- policies ------------------------------------------------------------------------------------------------


def mixup(image: Tensor, generator: torch.Generator, *, alpha: float = 1.0) -> Draw:
    """Mixup (Zhang et al. 2018): λ ~ Beta(alpha, alpha), pixel-wise interpolation."""
    lam, partner = beta(alpha, generator), _partner(image, generator)
    return Draw(partner, lam, partial(interpolate, partner=partner, lam=lam))


def cutmix(image: Tensor, generator: torch.Generator, *, alpha: float = 1.0) -> Draw:
    """CutMix (Yun et al. 2019): λ ~ Beta(alpha, alpha), a box of the partner around a uniform centre."""
    height, width = image.shape[-2:]
    box, lam = cutmix_box(height, width, beta(alpha, generator), _centre(height, width, generator))
    partner = _partner(image, generator)
    return Draw(partner, lam, partial(paste, partner=partner, box=box))


def manifold_mixup(
    image: Tensor, generator: torch.Generator, *, alpha: float = 2.0, layers: Sequence[int] = (0, 1, 2)
) -> Draw:
    """Manifold mixup (Verma et al. 2019): mixup at a layer drawn uniformly from `layers` (0 = the input)."""
    if len(layers) == 0 or min(layers) < 0:
        raise UserError(
            f"layers={list(layers)}: list at least one of 0 (the input), 1 (after stage 1), 2, ..."
        )
    layer = layers[_below(len(layers), generator)]
    return mixup(image, generator, alpha=alpha)._replace(layer=layer)


def resizemix(
    image: Tensor,
    generator: torch.Generator,
    *,
    alpha: float = 1.0,
    scope: tuple[float, float] = (0.1, 0.8),
    use_alpha: bool = False,
    interpolation: str = "nearest",
) -> Draw:
    """ResizeMix (Qin et al. 2020): the whole partner, shrunk by τ, in a box around a uniform centre.

    τ ~ U(scope). With `use_alpha` τ ~ Beta(alpha, alpha), replaced by a draw from U(scope) where it falls
    outside. A box cut by the border keeps the whole partner, squeezed.
    """
    low, high = scope
    if not 0 < low <= high <= 1:
        raise UserError(f"scope={list(scope)}: the scale needs 0 < low <= high <= 1.")
    if interpolation not in ("nearest", "bilinear"):
        raise unknown("interpolation", interpolation, ("nearest", "bilinear"))
    tau = beta(alpha, generator) if use_alpha else math.inf
    if not low <= tau <= high:
        tau = low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
    height, width = image.shape[-2:]
    box = box_around(height, width, tau, _centre(height, width, generator))
    partner = _partner(image, generator)
    mix = partial(resize_paste, partner=partner, box=box, interpolation=interpolation)
    return Draw(partner, box_lam(height, width, box), mix)


def fmix(image: Tensor, generator: torch.Generator, *, alpha: float = 1.0, decay: float = 3.0) -> Draw:
    """FMix (Harris et al. 2020): λ ~ Beta(alpha, alpha), a binary mask of low frequencies with mean λ."""
    if not decay >= 0:
        raise UserError(f"decay={decay}: the exponent of the frequency must not be negative.")
    height, width = image.shape[-2:]
    lam = beta(alpha, generator)
    mask = fourier_mask(torch.randn(height, width // 2 + 1, 2, generator=generator), width, lam, decay)
    lam = int(mask.sum()) / mask.numel()
    partner = _partner(image, generator)
    return Draw(
        partner, lam, partial(mask_mix, partner=partner, mask=mask.to(image.device, non_blocking=True))
    )


def saliencymix(
    image: Tensor, generator: torch.Generator, *, alpha: float = 1.0, saliency: str = "spectral_residual"
) -> Draw:
    """SaliencyMix (Uddin et al. 2021): CutMix with the box around the most salient pixel of a partner.

    The first image's partner sets the box for the whole batch, as in openmixup. Its position has to be read
    back from the device: the only policy that waits for the device.
    """
    if saliency not in SALIENCY:
        raise unknown("saliency", saliency, SALIENCY)
    height, width = image.shape[-2:]
    lam, order = beta(alpha, generator), torch.randperm(len(image), generator=generator)
    centre = divmod(int(SALIENCY[saliency](image[int(order[0])]).argmax()), width)
    box, lam = cutmix_box(height, width, lam, centre)
    partner = order.to(image.device, non_blocking=True)
    return Draw(partner, lam, partial(paste, partner=partner, box=box))


POLICIES: dict[str, Callable[..., Draw]] = {
    "mixup": mixup,
    "cutmix": cutmix,
    "manifold_mixup": manifold_mixup,
    "resizemix": resizemix,
    "fmix": fmix,
    "saliencymix": saliencymix,
}


def bind(
    name: str, hyperparameters: Mapping[str, object], *, stages: int = 0
) -> Callable[[Tensor, torch.Generator], Draw]:
    """The policy `name` with its hyperparameters, tried once on a small image so that mistakes show at once.

    Args:
        name: a key of POLICIES.
        hyperparameters: the policy's keyword arguments.
        stages: number of stages of the backbone after which maps can be mixed.

    Raises UserError for an unknown policy or hyperparameter, a value out of range, or a missing stage.

    >>> draw = bind("cutmix", {"alpha": 0.2})
    >>> draw(torch.zeros(4, 3, 8, 8), torch.Generator()).mix(torch.ones(4, 3, 8, 8)).shape
    torch.Size([4, 3, 8, 8])
    """
    if name not in POLICIES:
        raise unknown("mixing policy", name, POLICIES)
    known = [*inspect.signature(POLICIES[name]).parameters][2:]
    for key in hyperparameters:
        if key not in known:
            raise unknown(f"hyperparameter of {name}", key, known)
    policy = partial(POLICIES[name], **hyperparameters)
    policy(torch.rand(2, 1, 8, 8, generator=torch.Generator()), torch.Generator())
    deepest = max(inspect.signature(policy).parameters["layers"].default) if "layers" in known else 0
    if deepest > stages:
        raise UserError(
            f"layers up to {deepest}, but this backbone has {stages} stages to mix after; give fewer layers."
        )
    return policy


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _centre(height: int, width: int, generator: torch.Generator) -> tuple[int, int]:
    return _below(height, generator), _below(width, generator)


def _partner(image: Tensor, generator: torch.Generator) -> Tensor:
    # drawn on the CPU, so that every device mixes alike; a copy this small does not wait for the device
    return torch.randperm(len(image), generator=generator).to(image.device, non_blocking=True)
