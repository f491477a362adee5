"""How far convolutions are from orthogonal: the term L_orth of Achour et al. 2022 in a cheap exact form, and spectra.

A convolution has a kernel K (M, C, k, k), k odd, stride S and circular padding; A, (M N² × C S² N²), is the matrix of
the layer that maps C channels of S N × S N pixels to M channels of N × N. Where M <= C S² its rows can be orthogonal
(A Aᵀ = I), else its columns (Aᵀ A = I). Theorem numbers are not given: the paper's text was not at hand.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from regbench.errors import UserError


def orthogonal_exists(out_channels: int, in_channels: int, kernel: int, stride: int) -> bool:
    """Whether an orthogonal convolution of these sizes exists, with circular padding (Achour et al. 2022).

    >>> orthogonal_exists(64, 64, 3, 1), orthogonal_exists(128, 64, 1, 2), orthogonal_exists(289, 32, 3, 4)
    (True, False, False)
    """
    if out_channels <= in_channels * stride**2:
        return out_channels <= in_channels * kernel**2
    return stride <= kernel


def why_undefined(layer: nn.Conv2d) -> str | None:
    """Why L_orth is not defined for a convolution; None where it is. Padding is not looked at.

    >>> why_undefined(nn.Conv2d(8, 8, 3, groups=2))
    'its channels are grouped'
    """
    height, width = layer.kernel_size
    if layer.groups != 1:
        return "its channels are grouped"
    if layer.dilation != (1, 1):
        return "it is dilated"
    if height != width or height % 2 == 0:
        return f"its kernel is {height} × {width}, not square and odd"
    return "its strides differ" if layer.stride[0] != layer.stride[1] else None


def spectral_bound(out_channels: int, in_channels: int, kernel: int, stride: int) -> int:
    """alpha in err_s² <= alpha L_orth, err_s the spectral norm of A Aᵀ − I or Aᵀ A − I (Achour et al. 2022).

    >>> spectral_bound(64, 32, 5, 1), spectral_bound(70, 8, 5, 3), spectral_bound(1, 1, 3, 2)
    (2592, 630, 9)
    """
    rows = out_channels * (2 * ((kernel - 1) // stride) + 1) ** 2
    columns = in_channels * (2 * kernel - 1) ** 2
    inputs = in_channels * stride**2
    return min(rows, columns) if out_channels == inputs else rows if out_channels < inputs else columns


ONE_PRODUCT = 200  # rows M k² up to which `_few_products` is faster, on a CPU
ONE_CONVOLUTION = 600  # rows up to which one conv2d(K, K), with half of its backward, is faster, on a CPU


class _SquaredCorrelations(torch.autograd.Function):
    """‖R_0 − I‖² + 2 Σ_d ‖R_d‖² over half of the offsets d ≠ 0, R_d = Σ_x K_{x + d} K_xᵀ, with its gradient by hand."""

    @staticmethod
    def forward(ctx, kernel: Tensor, stride: int) -> Tensor:
        taps = kernel.permute(0, 2, 3, 1).contiguous()  # (M, k, k, C): a window of taps is M rows
        total = taps.new_zeros(())
        ctx.stride, ctx.correlations, ctx.taps = stride, [], taps
        for d, ahead, behind in _windows(taps, stride):
            correlation = ahead.flatten(1) @ behind.flatten(1).T
            if d == (0, 0):
                correlation.diagonal().sub_(1)
                total += correlation.square().sum()
            else:
                total += 2 * correlation.square().sum()
            ctx.correlations.append(correlation)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None]:
        taps = ctx.taps
        gradient = torch.zeros_like(taps)
        windows = zip(
            ctx.correlations, _windows(taps, ctx.stride), _windows(gradient, ctx.stride), strict=True
        )
        for correlation, (d, ahead, behind), (_, to_ahead, to_behind) in windows:
            to_ahead += (correlation @ behind.flatten(1)).view(ahead.shape)
            # At the centre both halves of the product are the same window, and R_0 is symmetric.
            if d != (0, 0):
                to_behind += (correlation.T @ ahead.flatten(1)).view(behind.shape)
        return (4 * grad_output * gradient).permute(0, 3, 1, 2), None


class _DirectCorrelation(torch.autograd.Function):
    """The same sum by conv2d(K, K): a few large operations for a GPU. The correlation is symmetric, so that the
    gradients with respect to its two factors are alike, and one convolution in place of two gives both.
    """

    @staticmethod
    def forward(ctx, kernel: Tensor, stride: int) -> Tensor:
        padding = (kernel.shape[-1] - 1) // stride * stride
        error = F.conv2d(kernel, kernel, stride=stride, padding=padding)
        centre = error.shape[-1] // 2
        error[:, :, centre, centre].diagonal().sub_(1)
        ctx.save_for_backward(kernel, error)
        ctx.stride, ctx.padding = stride, padding
        return error.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None]:
        kernel, error = ctx.saved_tensors
        gradient = torch.nn.grad.conv2d_weight(
            kernel, kernel.shape, error, stride=ctx.stride, padding=ctx.padding
        )
        return 4 * grad_output * gradient, None


def _few_products(kernel: Tensor, stride: int) -> Tensor:
    """The same sum for a small kernel, where it is the number of operations that costs: one product of all taps with
    all taps, whose 81 pairs (k = 3) are then added up to the 25 offsets.
    """
    channels, _, k, _ = kernel.shape
    taps = kernel.permute(2, 3, 0, 1).reshape(k * k * channels, -1)
    gram = (taps @ taps.T).view(k * k, channels, k * k, channels).transpose(1, 2).reshape(k**4, -1)
    correlation = (_pairs_of_offsets(k, stride).to(gram) @ gram).view(-1, channels, channels)
    centre = len(correlation) // 2
    identity = torch.zeros_like(correlation)
    identity[centre].fill_diagonal_(1)
    return (correlation - identity).square().sum()


# Not in inference mode: a first call at a test would leave a tensor that no later run can differentiate with.
@cache
@torch.inference_mode(False)
def _pairs_of_offsets(k: int, stride: int) -> Tensor:
    """(offsets, k⁴): 1 where the tap pair (x, y) has the offset x − y; offsets are multiples of the stride."""
    reach = (k - 1) // stride * stride
    place = torch.cartesian_prod(torch.arange(k), torch.arange(k))
    difference = (place[:, None] - place).view(-1, 2)
    steps = torch.arange(-reach, reach + 1, stride)
    offsets = torch.cartesian_prod(steps, steps)
    return (offsets[:, None] == difference).all(2).float()


def _windows(taps: Tensor, stride: int):
    """((dx, dy), taps x + d, taps x) for (0, 0) and half of the other offsets d, all multiples of the stride."""
    k = taps.shape[1]
    reach = (k - 1) // stride * stride
    for dx in range(0, reach + 1, stride):
        for dy in range(-reach if dx else 0, reach + 1, stride):
            down, right = max(dy, 0), max(-dy, 0)
            ahead = taps[:, dx:, down : k - right]
            behind = taps[:, : k - dx, right : k - down]
            yield (dx, dy), ahead, behind


def conv_orthogonality(kernel: Tensor, stride: int = 1) -> Tensor:
    """L_orth(K) = ‖conv(K, K, padding P, stride S) − I_r0‖² − max(0, M − C S²), P = ⌊(k − 1) / S⌋ S.

    With circular padding and images of at least 2k − 1 pixels a side, ‖A Aᵀ − I‖² (or ‖Aᵀ A − I‖²) = N² L_orth, so it
    is 0 exactly where the layer is orthogonal (Achour et al. 2022).

    On a CPU: conv(K, K) at the offset −d is the transpose of that at d, and at d only (k − |dx|)(k − |dy|) taps
    overlap: for k = 3 and S = 1 that takes a fifth of the multiplications of conv2d(K, K), which multiplies zeros. With
    S = 1 and M > C the same number comes from the C × C correlations of the transposed kernel, since ‖A Aᵀ‖ = ‖Aᵀ A‖.
    On other devices: conv2d(K, K).

    Args:
        kernel: K, (M, C, k, k), k odd.
        stride: S.

    Returns:
        A scalar, not negative but for rounding.

    >>> box = torch.full((1, 1, 3, 3), 1 / 3)
    >>> [round(conv_orthogonality(box, stride).item(), 4) for stride in (1, 2, 3)]
    [3.4568, 0.4938, 0.0]
    """
    out_channels, in_channels, height, width = kernel.shape
    if height != width or height % 2 == 0:
        raise UserError(f"L_orth is defined for square kernels of odd size, not for {height} × {width}.")
    excess = max(0, out_channels - in_channels * stride**2)
    if stride == 1 and excess:
        kernel, excess = kernel.transpose(0, 1), 0
    rows, on_cpu = len(kernel) * height**2, kernel.device.type == "cpu"
    if on_cpu and rows <= ONE_PRODUCT:
        squared = _few_products
    elif not on_cpu or rows <= ONE_CONVOLUTION:
        squared = _DirectCorrelation.apply
    else:
        squared = _SquaredCorrelations.apply
    return squared(kernel, stride) - excess


def orthogonality_norm(kernel: Tensor, stride: int = 1) -> Tensor:
    """‖conv(K, K, padding P, stride S) − I_r0‖, the norm, not squared, that Wang et al. 2020 (OCNN) penalise.

    Their scripts pad by 1, which leaves offsets out (stride 1) or puts the identity in the wrong place (stride 2);
    here P is that of `conv_orthogonality`. At 0 the gradient is 0.

    >>> round(orthogonality_norm(torch.full((1, 1, 3, 3), 1 / 3)).item(), 4)
    1.8592
    """
    out_channels, in_channels = kernel.shape[:2]
    squared = conv_orthogonality(kernel, stride) + max(0, out_channels - in_channels * stride**2)
    return squared.clamp_min(torch.finfo(kernel.dtype).tiny).sqrt()


def matrix_orthogonality(weight: Tensor) -> Tensor:
    """‖W Wᵀ − I‖² or ‖Wᵀ W − I‖², the smaller Gram matrix, of W reshaped to (M, all the rest). A scalar.

    For a convolution this is kernel orthogonality, which does not make the layer orthogonal; for a dense layer it does.

    >>> matrix_orthogonality(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).item()
    9.0
    """
    rows = weight.flatten(1)
    rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
    gram = rows @ rows.T
    return (gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)).square().sum()


def singular_values(kernel: Tensor, stride: int, size: int) -> Tensor:
    """All singular values of the layer's matrix A with circular padding, N = `size` output pixels a side.

    The Fourier transform splits A into N² matrices (M, C S²): at a frequency of the output, the input's S² aliases.

    Returns:
        (N², min(M, C S²)), unordered over frequencies.

    >>> singular_values(torch.ones(1, 1, 1, 1), 1, 4).unique().tolist()
    [1.0]
    """
    out_channels, in_channels, k, _ = kernel.shape
    side = stride * size
    if side < k:
        raise UserError(f"size={size}: an image of {side} pixels a side is smaller than the kernel of {k}.")
    spectrum = torch.fft.fft2(kernel, s=(side, side)).view(
        out_channels, in_channels, stride, size, stride, size
    )
    blocks = spectrum.permute(3, 5, 0, 1, 2, 4).reshape(size**2, out_channels, in_channels * stride**2)
    return torch.linalg.svdvals(blocks / stride)
