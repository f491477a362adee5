"""The training loop that RegBench is measured against: plain PyTorch, nothing that training does not need."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def train(
    network: nn.Module, images: Tensor, labels: Tensor, *, batch: int, epochs: int, steps: int | None = None,
    lr: float = 0.05, mean: float = 0.5, std: float = 0.25, first_step: Callable[[], None] = lambda: None,
) -> list[float]:  # fmt: skip
    """Trains by SGD with a cosine schedule.

    Args:
        images: uint8 (N, C, H, W), on the network's device.
        labels: int64 (N,).
        steps: of each epoch; None: as many as whole batches fit.
        first_step: called after the first step.

    Returns:
        The time (seconds) at the start and after each step.
    """
    steps = steps or len(labels) // batch
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    network.train()
    times = [time.perf_counter()]
    for _ in range(epochs):
        order = torch.randperm(len(labels), device=images.device)
        for step in range(steps):
            index = order[step * batch : (step + 1) * batch]
            image = images[index].float().mul_(1 / (255 * std)).sub_(mean / std)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(image), labels[index])
            loss.backward()
            optimizer.step()
            schedule.step()
            times.append(time.perf_counter())
            if len(times) == 2:
                first_step()
    return times
