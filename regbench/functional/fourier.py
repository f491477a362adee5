"""How periodic a vector is."""

import torch
from torch import Tensor


def inverse_participation_ratio(x: Tensor, r: float = 2.0) -> Tensor:
    """IPR_r = Σ_m (a_m / ‖a‖)^(2r) of the amplitudes a = |rfft(x)| (Doshi et al. 2023, arXiv:2310.13061).

    1 where x is one cosine (or constant), 1/M where all M = ⌊p/2⌋ + 1 amplitudes are alike. NaN where x is 0.

    Args:
        x: (…, p), e.g. the weights of one unit for each residue.
        r: order; 2 is the paper's.

    Returns:
        (…,), in [M^(1 − r), 1].

    >>> i = torch.arange(97) / 97 * 2 * torch.pi
    >>> both = torch.stack([torch.cos(5 * i), torch.cos(5 * i) + torch.cos(9 * i)])
    >>> inverse_participation_ratio(both)
    tensor([1.0000, 0.5000])
    """
    power = torch.fft.rfft(x).abs().square()
    return (power / power.sum(-1, keepdim=True)).pow(r).sum(-1)
