"""Regularisation of a batch in which each example has a strength of its own: dropout, scaling, colours, cutout.

What is random is drawn from torch's global generator of the tensor's device, as torch's own dropout does.
"""

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # shares of red, green and blue in a grey value, torchvision's


def dropout(x: Tensor, rate: Tensor, channels: bool = False) -> Tensor:
    """Drops entries of row i with probability rate_i and divides the others by 1 − rate_i, which keeps the mean.

    Args:
        x: (B, ...).
        rate: (B,), in [0, 1).
        channels: whole channels of (B, C, ...) are dropped.

    Returns:
        (B, ...).

    >>> dropout(torch.ones(1, 4), torch.zeros(1))
    tensor([[1., 1., 1., 1.]])
    """
    # Not in half precision: 1 / (1 − rate) of a rate near 1 would be rounded.
    keep = (1 - rate.detach().float()).view(-1, *[1] * (x.ndim - 1))
    shape = (*x.shape[:2], *[1] * (x.ndim - 2)) if channels else x.shape
    kept = torch.rand(shape, device=x.device) < keep
    return x * (kept / keep.clamp_min(1e-6)).to(x.dtype)


def scale(image: Tensor, strength: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Row i times a factor from U[1 / (1 + s_i), 1 + s_i].

    Args:
        image: (B, C, H, W).
        strength: s (B,), at least 0.
        uniform: (B,) in [0, 1]: where the factor lies between both ends; None draws it.

    >>> scale(torch.ones(2, 1, 1, 1), torch.tensor([0.05, 0.05]), torch.tensor([0.0, 1.0])).flatten()
    tensor([0.9524, 1.0500])
    """
    if uniform is None:
        uniform = torch.rand(len(image), device=image.device)
    low = 1 / (1 + strength)
    return image * (low + (1 + strength - low) * uniform).view(-1, 1, 1, 1)


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Pixels (B, C, H, W) in [0, 1] times the factor (B,) of their row, clipped to [0, 1]."""
    return (pixels * factor.view(-1, 1, 1, 1)).clamp(0, 1)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """factor · pixels + (1 − factor) · (mean grey value of the image), clipped; arguments as for `brightness`."""
    return _blend(pixels, _grey(pixels).mean((1, 2, 3), keepdim=True), factor)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """factor · pixels + (1 − factor) · (grey value of the pixel), clipped; arguments as for `brightness`."""
    return _blend(pixels, _grey(pixels), factor)


def hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of RGB pixels (B, 3, H, W) in [0, 1] by shift (B,), a share of the colour circle."""
    largest, smallest = pixels.amax(1), pixels.amin(1)
    chroma = largest - smallest
    red, green, blue = pixels.unbind(1)
    span = chroma.clamp_min(1e-12)
    sixth = torch.where(
        largest == red,
        (green - blue) / span,
        torch.where(largest == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    sixth = sixth + 6 * shift.view(-1, 1, 1)
    offsets = torch.tensor([5.0, 3.0, 1.0], device=pixels.device).view(1, 3, 1, 1)
    place = (offsets + sixth[:, None]) % 6
    return largest[:, None] - chroma[:, None] * torch.minimum(place, 4 - place).clamp(0, 1)


def cutout(image: Tensor, length: Tensor, holes: Tensor, most: int) -> Tensor:
    """Sets squares of each image to zero; centres are uniform, and what lies outside the image is cut off.

    Args:
        image: (B, C, H, W).
        length: side of the row's squares in pixels, whole numbers (B,).
        holes: number of the row's squares, whole numbers (B,) up to `most`.
        most: squares that are drawn.

    >>> cutout(torch.ones(1, 1, 2, 2), torch.tensor([4.0]), torch.tensor([1.0]), 1).sum()
    tensor(0.)
    """
    counts = torch.arange(most, device=image.device) < holes[:, None]  # (B, most)
    inside = []
    for side in image.shape[-2:]:
        centre = torch.randint(side, (len(image), most), device=image.device)
        first, last = (
            (centre + sign * length[:, None] / 2).clamp(0, side).trunc()[..., None] for sign in (-1, 1)
        )
        position = torch.arange(side, device=image.device)
        inside.append((position >= first) & (position < last))
    squares = inside[0][..., :, None] & inside[1][..., None, :] & counts[..., None, None]
    return image.masked_fill(squares.any(1)[:, None], 0)


def _grey(pixels: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    return (pixels * torch.tensor(LUMA, device=pixels.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor.view(-1, 1, 1, 1)
    return (factor * pixels + (1 - factor) * other).clamp(0, 1)
