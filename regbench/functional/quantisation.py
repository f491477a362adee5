"""Numbers that each take one of few learned values: latent quantisation (Hsu et al. 2023).

Source: the released code, https://github.com/kylehkhsu/latent_quantization (latents/quantized.py,
latents/global_quantized.py).
"""

import torch
from torch import Tensor


def first_codebook(rows: int, values: int) -> Tensor:
    """Evenly spaced values from −1/2 to 1/2, the same in each row: (rows, values).

    >>> first_codebook(1, 5)
    tensor([[-0.5000, -0.2500,  0.0000,  0.2500,  0.5000]])
    """
    return torch.linspace(-0.5, 0.5, values).repeat(rows, 1)


def quantise(c: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """(q, k): q_j = V_{j,k_j} with k_j = argmin_k |c_j − V_jk|, the first of several.

    Args:
        c: (B, n), what the encoder gives.
        codebook: V, (n, values), or (1, values) for all latents.

    Returns:
        The values (B, n), with a gradient for the codebook, and their places int64 (B, n).

    >>> quantise(torch.tensor([[0.03, -0.47]]), first_codebook(2, 3))
    (tensor([[ 0.0000, -0.5000]]), tensor([[1, 0]]))
    """
    rows = codebook.expand(c.shape[1], -1)
    index = (c.detach()[:, :, None] - rows.detach()).abs().argmin(2)
    return rows.T.gather(0, index), index


def straight_through(c: Tensor, q: Tensor) -> Tensor:
    """z = c + stopgrad(q − c): the value of q (up to rounding) with the gradient of c."""
    return c + (q - c).detach()
