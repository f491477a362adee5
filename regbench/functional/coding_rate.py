"""The coding rate of vectors (Yu et al. 2020, arXiv:2006.08558), and its reduction by a partition into classes.

Rows of Z (N, p) are the vectors. As in the released code of ERASE, `eps` stands where the original has its square.
"""

import torch
from torch import Tensor


def coding_rate(z: Tensor, eps: float, size: float | None = None) -> Tensor:
    """R = 1/2 logdet(I_p + p / (n eps) Zᵀ Z), a scalar in nats, in float64 where the device has it.

    The smaller of Zᵀ Z and Z Zᵀ is taken: both give the same determinant.

    Args:
        z: (N, p).
        eps: distortion, above 0.
        size: n; the number of rows unless given.

    >>> z = torch.eye(2).repeat(2, 1)  # e1, e2, e1, e2
    >>> round(coding_rate(z, 0.5).item(), 6)  # ln 3
    1.098612
    """
    rows, p = z.shape
    z = z.float() if z.device.type == "mps" else z.double()
    gram = z.T @ z if p <= rows else z @ z.T
    eye = torch.eye(len(gram), dtype=z.dtype, device=z.device)
    factor = torch.linalg.cholesky(eye + p / ((rows if size is None else size) * eps) * gram)
    return factor.diagonal().log().sum()


def class_coding_rate(z: Tensor, label: Tensor, eps: float) -> Tensor:
    """Rc = sum over classes c of (n_c / N) 1/2 logdet(I_p + p / (n_c eps) Z_cᵀ Z_c), a scalar; empty classes add 0.

    Args:
        z: (N, p).
        label: int64 (N,).
        eps: distortion, above 0.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(class_coding_rate(z, torch.tensor([0, 1, 0, 1]), 0.5).item(), 6)  # 1/2 ln 5
    0.804719
    """
    parts = z[label.argsort()].split(label.bincount().tolist())
    # As in the released code; it keeps its own empty classes finite.
    return sum(len(part) / len(z) * coding_rate(part, eps, len(part) + 1e-8) for part in parts if len(part))
