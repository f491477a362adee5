"""Moving averages of networks."""

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def step_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · network in place, parameters and buffers; counters are copied.

    Args:
        average: a copy of `network`.

    >>> import copy, torch
    >>> network = nn.Linear(1, 1, bias=False)
    >>> average = copy.deepcopy(network)
    >>> with torch.no_grad():
    ...     _ = network.weight.fill_(1.0), average.weight.fill_(2.0)
    ...     step_average(average, network, 0.75)
    >>> average.weight.item()
    1.75
    """
    update = get_ema_multi_avg_fn(decay)
    for own, other in (
        (average.parameters(), network.parameters()),
        (average.buffers(), network.buffers()),
    ):
        pairs = list(zip(own, other, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        if floats:
            update([a for a, _ in floats], [b.detach() for _, b in floats], None)
        for counter, newest in (pair for pair in pairs if not pair[0].is_floating_point()):
            counter.copy_(newest)
