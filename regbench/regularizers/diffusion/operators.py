"""What images were degraded by: forward operators A with a pseudo-inverse, on images with pixels in [−1, 1].

Masks are deepinv's `Inpainting`. Averaging pixels and blurring act on rows and on columns, so that the singular values
of A are products of those of two small matrices: `separable` makes deepinv's `DecomposablePhysics` of them. Needs the
extra restoration. All is float32, whatever the default type.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from regbench.errors import UserError, unknown
from regbench.extras import need

# Keys of regularizer.degradation, see configs/regularizer/red_diff.yaml.
DEGRADATION: dict[str, Any] = {
    "kind": "inpainting",
    "mask": "box",
    "missing": 0.5,
    "factor": 2,
    "kernel": "gaussian",
    "taps": 5,
    "width": 25.0,
    "reference_kernel": False,
    "sigma_y": 0.0,
}
KINDS = ("inpainting", "super_resolution", "deblurring", "hdr", "denoising")
MASKS = ("box", "random")
KERNELS = ("gaussian", "uniform")
SMALLEST = 0.03  # singular values of a blur below it count as 0, in A too, as in the reference


def check(degradation: Mapping[str, Any]) -> dict[str, Any]:
    """The degradation with its defaults filled in. Raises UserError for a mistake in it, or without deepinv."""
    for key in degradation:
        if key not in DEGRADATION:
            raise unknown("key of regularizer.degradation", str(key), DEGRADATION)
    full = DEGRADATION | dict(degradation)
    for key, known in (("kind", KINDS), ("mask", MASKS), ("kernel", KERNELS)):
        if full[key] not in known:
            raise unknown(f"regularizer.degradation.{key}", str(full[key]), known)
    if not 0 < full["missing"] < 1:
        raise UserError(
            f"regularizer.degradation.missing={full['missing']}: a share of each side, or of the pixels, in (0, 1)."
        )
    if full["factor"] < 1 or full["taps"] < 1 or full["taps"] % 2 == 0:
        raise UserError(
            f"regularizer.degradation.factor={full['factor']} must be at least 1, and taps={full['taps']} odd."
        )
    if full["width"] <= 0 or full["sigma_y"] < 0:
        raise UserError(
            f"regularizer.degradation.width={full['width']} must be positive, and sigma_y={full['sigma_y']} at least 0."
        )
    if full["kind"] != "hdr":
        need("deepinv", "restoration", "Degradations need deepinv")
    return full


def build(degradation: Mapping[str, Any], shape: tuple[int, int, int], uniform: Callable[[], Tensor]) -> Any:
    """The operator, with methods A(x) and A_dagger(y).

    Args:
        degradation: of `check`.
        shape: (C, H, W) of the images.
        uniform: gives uniform numbers (B, 1, H, W), from which random masks are made.
    """
    kind, (_, height, width) = degradation["kind"], shape
    if kind == "hdr":
        return Clipping()
    if kind == "inpainting":
        from deepinv.physics import Inpainting

        if degradation["mask"] == "box":
            mask = box_mask(height, width, degradation["missing"])
        else:
            mask = (uniform() >= degradation["missing"]).float()
        return Inpainting(img_size=shape, mask=mask)
    if kind == "super_resolution":
        matrices = [averaging_matrix(side, degradation["factor"]) for side in (height, width)]
    elif kind == "deblurring":
        taps = blur_kernel(degradation["kernel"], degradation["taps"], degradation["width"])
        matrices = [blur_matrix(taps, side, degradation["reference_kernel"]) for side in (height, width)]
    else:
        matrices = [torch.eye(side, dtype=torch.float32) for side in (height, width)]
    return separable(*matrices)


class Clipping:
    """High dynamic range: A(x) = clip(2 x, −1, 1); its inverse halves."""

    def A(self, x: Tensor) -> Tensor:
        return (2 * x).clamp(-1, 1)

    def A_dagger(self, y: Tensor) -> Tensor:
        return y / 2


def separable(rows: Tensor, columns: Tensor) -> Any:
    """A(x) = R x Cᵀ on each channel, as deepinv's `DecomposablePhysics`: A = U diag(s) Vᵀ.

    Singular values of R and C below 0.03 are set to 0. A spectrum has the images' shape, zeros where A has no singular
    value.

    Args:
        rows, columns: R (h, H) and C (w, W), h ≤ H and w ≤ W.
    """
    from deepinv.physics import DecomposablePhysics

    (u1, s1, v1), (u2, s2, v2) = (torch.linalg.svd(matrix.double()) for matrix in (rows, columns))
    u1, u2, v1, v2 = (matrix.float() for matrix in (u1, u2, v1, v2))  # v is already transposed
    s1, s2 = (torch.where(s < SMALLEST, 0.0, s) for s in (s1, s2))
    (h, height), (w, width) = rows.shape, columns.shape
    values = torch.zeros(1, 1, height, width, dtype=torch.float32)
    values[0, 0, :h, :w] = torch.outer(s1, s2).float()

    class Separable(DecomposablePhysics):
        """The matrices are buffers, so that `.to(device)` takes them along."""

        def __init__(self):
            super().__init__(mask=values)
            for name, matrix in (("u1", u1), ("u2", u2), ("v1", v1), ("v2", v2)):
                self.register_buffer(name, matrix)

        def U(self, x: Tensor) -> Tensor:
            return self.u1 @ x[..., :h, :w] @ self.u2.T

        def U_adjoint(self, x: Tensor, **_) -> Tensor:
            return torch.nn.functional.pad(self.u1.T @ x @ self.u2, (0, width - w, 0, height - h))

        def V(self, x: Tensor, **_) -> Tensor:
            return self.v1.T @ x @ self.v2

        def V_adjoint(self, x: Tensor) -> Tensor:
            return self.v1 @ x @ self.v2.T

    return Separable()


def box_mask(height: int, width: int, missing: float) -> Tensor:
    """(1, height, width): 0 in a centred box with a share `missing` of each side, else 1.

    >>> box_mask(4, 4, 0.5).sum().item()
    12.0
    """
    mask = torch.ones(1, height, width, dtype=torch.float32)
    tall, wide = round(missing * height), round(missing * width)
    top, left = (height - tall) // 2, (width - wide) // 2
    mask[:, top : top + tall, left : left + wide] = 0
    return mask


def averaging_matrix(side: int, factor: int) -> Tensor:
    """(side / factor, side): the mean of `factor` neighbours.

    >>> averaging_matrix(4, 2)
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    if side % factor:
        raise UserError(
            f"regularizer.degradation.factor={factor} does not divide the images' side of {side} pixels."
        )
    return torch.eye(side // factor, dtype=torch.float32).repeat_interleave(factor, dim=1) / factor


def blur_kernel(kind: str, taps: int, width: float) -> Tensor:
    """(taps,), with the sum 1: all alike, or proportional to exp(−j² / (2 width²)), j from the middle.

    >>> blur_kernel("uniform", 4, 1.0)
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    place = torch.arange(taps, dtype=torch.float32) - (taps - 1) / 2
    weight = torch.ones_like(place) if kind == "uniform" else torch.exp(-(place**2) / (2 * width**2))
    return weight / weight.sum()


def blur_matrix(kernel: Tensor, side: int, reference: bool = False) -> Tensor:
    """(side, side): convolution with the kernel; beyond the border there is 0, that is mid grey.

    Args:
        reference: the released code's matrix: its loop leaves the last tap out, so that images get darker and shift.

    >>> blur_matrix(torch.tensor([0.25, 0.5, 0.25]), 3)
    tensor([[0.5000, 0.2500, 0.0000],
            [0.2500, 0.5000, 0.2500],
            [0.0000, 0.2500, 0.5000]])
    """
    matrix, half = torch.zeros(side, side, dtype=torch.float32), len(kernel) // 2
    for i in range(side):
        for tap, weight in enumerate(kernel[:-1] if reference else kernel):
            j = i - half + tap
            if 0 <= j < side:
                matrix[i, j] = weight
    return matrix
