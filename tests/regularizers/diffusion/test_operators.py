"""The forward operators, against numbers by hand and torch's own convolution and pooling."""

import pytest
import torch
import torch.nn.functional as F

from regbench.errors import UserError
from regbench.regularizers.diffusion.operators import (
    averaging_matrix,
    blur_kernel,
    blur_matrix,
    box_mask,
    build,
    check,
)


def operator(kind: str, shape=(1, 8, 8), **options):
    return build(check({"kind": kind, **options}), shape, lambda: torch.rand(3, 1, *shape[1:]))


def test_averages_by_hand():
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    y = operator("super_resolution", (1, 4, 4)).A(ramp)
    torch.testing.assert_close(y, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    spread = operator("super_resolution", (1, 4, 4)).A_dagger(y)
    torch.testing.assert_close(spread, y.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_averages_of_a_colour_picture_that_is_not_square():
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(operator("super_resolution", (3, 8, 12), factor=4).A(x), F.avg_pool2d(x, 4))


@pytest.mark.parametrize(("kernel", "taps"), [("gaussian", 5), ("uniform", 3)])
def test_blur_is_torchs_convolution(kernel, taps):
    x = torch.randn(2, 1, 12, 10)
    blur = operator("deblurring", (1, 12, 10), kernel=kernel, taps=taps, width=1.0)
    # A singular value below .03 is left out, so the comparison is with the matrix, and the matrix's with conv2d.
    weight = blur_kernel(kernel, taps, 1.0)
    rows, columns = blur_matrix(weight, 12), blur_matrix(weight, 10)
    expected = F.conv2d(x, torch.outer(weight, weight)[None, None], padding=taps // 2)
    torch.testing.assert_close(rows @ x @ columns.T, expected, rtol=1e-4, atol=1e-5)
    kept = blur.U(torch.where(blur.mask > 0, blur.U_adjoint(expected), 0.0))
    torch.testing.assert_close(blur.A(x), kept, rtol=1e-4, atol=0.1)


def test_kernels_by_hand():
    gauss = blur_kernel("gaussian", 5, 25.0)
    torch.testing.assert_close(
        gauss, torch.tensor([0.19968, 0.20016, 0.20032, 0.20016, 0.19968]), rtol=0, atol=1e-5
    )
    # The released code's loop leaves the last tap out: rows sum to .8003 and .8889.
    assert blur_matrix(gauss, 32, reference=True)[16].sum().item() == pytest.approx(0.8003, abs=1e-4)
    assert blur_matrix(gauss, 32)[16].sum().item() == pytest.approx(1.0)
    nine = blur_kernel("uniform", 9, 1.0)
    assert blur_matrix(nine, 32, reference=True)[16].sum().item() == pytest.approx(8 / 9)
    assert blur_matrix(nine, 32, reference=True)[16, 20] == 0
    assert blur_matrix(nine, 32)[16, 20].item() == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("inpainting", {}),
        ("inpainting", {"mask": "random"}),
        ("super_resolution", {"factor": 4}),
        ("deblurring", {}),
        ("deblurring", {"reference_kernel": True}),
        ("denoising", {}),
    ],
)
def test_pseudo_inverses_and_adjoints(kind, options):
    """A A⁺ y = y for y = A x; <A x, v> = <x, Aᵀ v>; the singular values' A is U s Vᵀ."""
    a, x = operator(kind, (1, 16, 16), **options), torch.randn(3, 1, 16, 16)
    y = a.A(x)
    torch.testing.assert_close(a.A(a.A_dagger(y)), y, rtol=1e-3, atol=1e-3)
    v = torch.randn_like(y)
    torch.testing.assert_close((y * v).sum(), (x * a.A_adjoint(v)).sum(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(a.V(a.V_adjoint(x)), x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(a.U(a.U_adjoint(y)), y, rtol=1e-3, atol=1e-4)


def test_clipping_by_hand():
    a, x = operator("hdr"), torch.tensor([-0.9, -0.4, 0.3, 0.6])
    torch.testing.assert_close(a.A(x), torch.tensor([-1.0, -0.8, 0.6, 1.0]))
    torch.testing.assert_close(a.A_dagger(a.A(x)), torch.tensor([-0.5, -0.4, 0.3, 0.5]))


def test_masks():
    assert box_mask(16, 16, 0.5)[0, 4:12, 4:12].sum() == 0
    assert box_mask(16, 16, 0.5).sum() == 256 - 64
    random = operator("inpainting", mask="random", missing=0.25).mask
    assert random.shape == (3, 1, 8, 8)  # another mask for each image
    assert 0.55 < random.mean() < 0.95
    assert set(random.unique().tolist()) == {0.0, 1.0}


def test_a_factor_that_does_not_divide_the_side():
    with pytest.raises(UserError, match="factor=3"):
        averaging_matrix(16, 3)
