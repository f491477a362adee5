"""L_orth on numbers worked out by hand, against conv2d(K, K), and against the layer's matrix built entry by entry."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regbench.errors import UserError
from regbench.functional.orthogonality import (
    _pairs_of_offsets,
    conv_orthogonality,
    matrix_orthogonality,
    orthogonal_exists,
    singular_values,
    spectral_bound,
)

SHAPES = [(4, 8, 3, 1), (8, 4, 3, 1), (6, 2, 3, 2), (12, 2, 3, 2), (8, 2, 3, 2), (4, 4, 5, 1), (5, 3, 5, 2),
          (3, 3, 1, 1), (30, 4, 3, 2), (32, 24, 3, 1),
          (70, 6, 3, 2), (70, 68, 3, 1)]  # fmt: skip  # the last ones take the ways for larger kernels


def random_kernel(shape, seed: int = 0) -> Tensor:
    out_channels, in_channels, k, _ = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out_channels, in_channels, k, k, generator=generator, dtype=torch.float64)


def direct(kernel: Tensor, stride: int) -> Tensor:
    """The definition: zero padding, one conv2d(K, K)."""
    out_channels, in_channels, k, _ = kernel.shape
    reach = (k - 1) // stride
    correlation = F.conv2d(kernel, kernel, stride=stride, padding=reach * stride)
    target = torch.zeros_like(correlation)
    target[:, :, reach, reach] = torch.eye(out_channels, dtype=kernel.dtype)
    return (correlation - target).square().sum() - max(0, out_channels - in_channels * stride**2)


def matrix(kernel: Tensor, stride: int, size: int, circular: bool = True) -> Tensor:
    """A of a layer that correlates with stride S; an image of one pixel after another."""
    _out_channels, in_channels, k, _ = kernel.shape
    side = size * stride
    pixels = torch.eye(in_channels * side**2, dtype=kernel.dtype).view(-1, in_channels, side, side)
    half = k // 2
    padded = F.pad(pixels, [half] * 4, mode="circular" if circular else "constant")
    return F.conv2d(padded, kernel, stride=stride).flatten(1).T


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cheap_form_is_the_definition_with_its_gradient(shape):
    kernel = random_kernel(shape).requires_grad_()
    ours, theirs = conv_orthogonality(kernel, shape[3]), direct(kernel, shape[3])
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, kernel)[0] for value in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(3, 2, 3, 1), (2, 3, 3, 2), (30, 8, 3, 2)], ids=str)
def test_gradcheck(shape):
    kernel = 0.1 * random_kernel(shape)
    assert torch.autograd.gradcheck(lambda k: conv_orthogonality(k, shape[3]), kernel.requires_grad_())


def test_by_hand():
    central = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    central[:, :, 1, 1] = torch.eye(3)
    assert conv_orthogonality(central).item() == 0
    corner = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    corner[0, 0, 0, 0] = 1
    assert conv_orthogonality(corner).item() == 0
    gram = matrix(corner, 1, 8) @ matrix(corner, 1, 8).T
    assert (gram - torch.eye(64)).abs().max() == 0
    zeros = matrix(corner, 1, 8, circular=False)  # a shift that loses a row and a column: 15 of 64 pixels
    assert (zeros @ zeros.T - torch.eye(64)).square().sum() == 15
    assert torch.linalg.svdvals(zeros)[-1] == 0
    box = torch.full((1, 1, 3, 3), 1 / 3, dtype=torch.float64)
    assert [conv_orthogonality(box, s).item() for s in (1, 2, 3)] == pytest.approx(
        [3.456790, 0.493827, 0], abs=1e-6
    )
    half = 0.5 * torch.tensor([[1, 1, 1, 1]], dtype=torch.float64)
    columns = torch.zeros(4, 1, 3, 3, dtype=torch.float64)
    columns[:, 0, 1, 1] = half[0]
    assert conv_orthogonality(columns).item() == pytest.approx(0)  # M > C: the columns are orthogonal
    space_to_depth = torch.zeros(4, 1, 3, 3, dtype=torch.float64)
    for m, (x, y) in enumerate(itertools.product((1, 2), (1, 2))):
        space_to_depth[m, 0, x, y] = 1
    assert conv_orthogonality(space_to_depth, 2).item() == 0
    assert singular_values(space_to_depth, 2, 4).flatten().tolist() == pytest.approx([1.0] * 64)


def test_the_box_kernels_matrix_by_hand():
    box = torch.full((1, 1, 3, 3), 1 / 3, dtype=torch.float64)
    for stride, size, err_f, err_s, sigmas in (
        (1, 6, 124.4444, 8, (0, 3)),
        (2, 4, 7.901235, 1.777778, (1 / 3, 5 / 3)),
    ):
        a = matrix(box, stride, size)
        difference = a @ a.T - torch.eye(size**2)
        assert difference.square().sum().item() == pytest.approx(err_f, rel=1e-6)
        assert torch.linalg.matrix_norm(difference, 2).item() == pytest.approx(err_s, rel=1e-6)
        found = singular_values(box, stride, size)
        assert found.max().item() == pytest.approx(sigmas[1], abs=1e-6)
        if stride == 2:
            assert found.min().item() == pytest.approx(sigmas[0], abs=1e-6)
        assert err_s**2 <= spectral_bound(1, 1, 3, stride) * conv_orthogonality(box, stride).item()


@pytest.mark.parametrize("shape", SHAPES[:7], ids=str)
def test_theorem_the_frobenius_error_is_n_times_the_root_and_the_spectral_error_is_bounded(shape):
    out_channels, in_channels, k, stride = shape
    for seed, size in itertools.product(range(3), (-(-(2 * k - 1) // stride), -(-(2 * k - 1) // stride) + 2)):
        kernel = 0.3 * random_kernel(shape, seed)
        a = matrix(kernel, stride, size)
        rows = out_channels <= in_channels * stride**2
        gram = a @ a.T if rows else a.T @ a
        difference = gram - torch.eye(len(gram), dtype=gram.dtype)
        term = conv_orthogonality(kernel, stride).item()
        assert difference.square().sum().item() == pytest.approx(size**2 * term, rel=1e-11)
        err_s = torch.linalg.matrix_norm(difference, 2).item()
        assert err_s**2 <= spectral_bound(*shape) * term * (1 + 1e-12)


def test_on_smaller_images_than_2k_minus_1_the_windows_wrap_and_the_theorem_does_not_hold():
    kernel = random_kernel((2, 3, 3, 1))
    term = conv_orthogonality(kernel).item()
    ratios = []
    for size in (3, 4, 5, 6):
        a = matrix(kernel, 1, size)
        ratios.append((a @ a.T - torch.eye(len(a))).square().sum().item() / size**2 / term)
    assert ratios[2:] == pytest.approx([1, 1])
    assert abs(ratios[0] - 1) > 0.01
    assert abs(ratios[1] - 1) > 0.01


@pytest.mark.parametrize("shape", SHAPES[:7], ids=str)
def test_singular_values_are_those_of_the_matrix(shape):
    kernel, stride = random_kernel(shape), shape[3]
    size = 4 if stride > 1 else 6
    found = singular_values(kernel, stride, size).flatten().sort(descending=True).values
    expected = torch.linalg.svdvals(matrix(kernel, stride, size))
    assert torch.allclose(found, expected[: len(found)], atol=1e-10)


def test_invariances():
    kernel = random_kernel((5, 7, 3, 1))
    term = conv_orthogonality(kernel)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert torch.allclose(conv_orthogonality(torch.einsum("nm,mcxy->ncxy", rotation, kernel)), term)
    inputs = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0]
    assert torch.allclose(conv_orthogonality(torch.einsum("dc,mcxy->mdxy", inputs, kernel)), term)
    assert torch.allclose(conv_orthogonality(kernel.flip(2, 3)), term)


def test_existence_over_the_papers_grid():
    grid = itertools.product(range(1, 65), range(1, 65), (1, 3, 5, 7), (1, 2, 4))
    assert sum(orthogonal_exists(*shape) for shape in grid) == 44_924  # of 49,152
    assert not orthogonal_exists(289, 32, 3, 4)
    assert not orthogonal_exists(129, 8, 3, 4)


def test_kernel_orthogonality_is_another_thing():
    rows = torch.linalg.qr(random_kernel((4, 4, 3, 1)).flatten(1).T)[0].T
    kernel = rows.reshape(4, 4, 3, 3)
    assert matrix_orthogonality(kernel).item() == pytest.approx(0, abs=1e-12)
    assert conv_orthogonality(kernel).item() > 1


def test_the_landscape_where_the_widths_differ_adam_reaches_orthogonality():
    """M ≠ C S²: L_orth below 1e-3 and all singular values near 1 after a few hundred steps of Adam, for every start."""
    for shape, seed in itertools.product([(4, 8, 3, 1), (8, 4, 3, 1), (6, 2, 3, 2), (12, 2, 3, 2)], range(2)):
        torch.manual_seed(seed)
        kernel = torch.nn.init.xavier_uniform_(torch.empty(*shape[:2], shape[2], shape[2])).requires_grad_()
        optimizer = torch.optim.Adam([kernel], lr=0.01)
        for _ in range(500):
            optimizer.zero_grad()
            term = conv_orthogonality(kernel, shape[3])
            term.backward()
            optimizer.step()
        assert term.item() < 1e-3
        sigma = singular_values(kernel.detach().double(), shape[3], 8)
        assert 0.98 < sigma.min().item() <= sigma.max().item() < 1.02


def test_even_kernels_are_refused():
    with pytest.raises(UserError, match="odd size"):
        conv_orthogonality(torch.zeros(1, 1, 2, 2))
    with pytest.raises(UserError, match="smaller than the kernel"):
        singular_values(torch.zeros(1, 1, 5, 5), 1, 4)


def test_a_first_call_in_inference_mode_spoils_no_later_one():
    _pairs_of_offsets.cache_clear()
    kernel = random_kernel((3, 3, 3, 1))
    with torch.inference_mode():
        conv_orthogonality(kernel)
    conv_orthogonality(kernel.requires_grad_()).backward()
    assert kernel.grad.abs().sum() > 0
