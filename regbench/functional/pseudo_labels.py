"""Labels that a network gives to unlabelled images, and the loss with them."""

import torch.nn.functional as F
from torch import Tensor


def pseudo_labels(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(label, confidence): ŷ = argmax_c p_c and max_c p_c with p = softmax(logits), both without gradient.

    Args:
        logits: (B, C), of the weak views.

    Returns:
        int64 (B,) and floats (B,) in [1 / C, 1].

    >>> import torch
    >>> label, confidence = pseudo_labels(torch.tensor([[0.0, 3.0], [0.0, 0.0]]))
    >>> label.tolist()[0], [round(c, 4) for c in confidence.tolist()]
    (1, [0.9526, 0.5])
    """
    confidence, label = logits.detach().softmax(dim=1).max(dim=1)
    return label, confidence


def masked_cross_entropy(logits: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """(1 / B) Σ_b 1(keep_b) (−log softmax(z_b)[ŷ_b]): rows that are not kept count as 0 (Sohn et al. 2020, eq. 4).

    Args:
        logits: z, (B, C), of the strong views.
        label: ŷ, int64 (B,).
        keep: bool (B,).

    Returns:
        scalar.

    >>> import torch
    >>> kept = torch.tensor([True, False])
    >>> round(masked_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 1]), kept).item(), 4)  # ln 4 / 2
    0.6931
    """
    target = label.masked_fill(~keep, -100)  # the index that cross_entropy leaves out
    return F.cross_entropy(logits, target, reduction="sum") / len(logits)
