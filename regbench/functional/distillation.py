"""What methods share that learn from soft predictions."""

import torch.nn.functional as F
from torch import Tensor


def tempered_kl(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) || softmax(logits / T)) of each row (Hinton et al. 2015, arXiv:1503.02531).

    The factor T² keeps the gradient's size when T changes. The teacher is detached.

    Args:
        logits: (B, C).
        teacher: logits (B, C).
        temperature: T > 0.

    Returns:
        (B,).

    >>> import math, torch
    >>> student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])  # 1/2, 1/2 against 3/4, 1/4
    >>> round(tempered_kl(student, teacher, 1.0).item(), 4)  # 3/4 ln 3/2 + 1/4 ln 1/2
    0.1308
    """
    log_p = F.log_softmax(logits / temperature, dim=1)
    log_q = F.log_softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)
