"""Batches that are spread over processes. With one process nothing here does anything."""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """The global batch (B, ...) of which every process holds the rows rank, rank + world, … as (B / world, ...).

    Gradients flow back to the process that holds the row. Collective: every process calls it.
    """
    world = world_size()
    if world == 1:
        return rows
    rows = rows.contiguous()
    if rows.requires_grad:
        parts = dist_nn.all_gather(rows)
    else:
        parts = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(parts, rows)
    return torch.stack(tuple(parts), dim=1).flatten(0, 1)


def own_rows(batch: Tensor) -> Tensor:
    """This process's rows (B / world, ...) of a global batch (B, ...): what `gather_rows` gathered."""
    world = world_size()
    return batch if world == 1 else batch[dist.get_rank() :: world]


def own_draw(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """This process's rows (B / world, ...) of what is drawn for the global batch: draw(B) → (B, ...).

    A method's generators are alike on every process, so that all draw the same; without this, different samples would
    get the same noise.

    Args:
        rows: B / world.
    """
    return own_rows(draw(rows * world_size()))


def gather_split(rows: Tensor) -> Tensor:
    """The split (N, ...) of which every process holds the rows rank, rank + world, …; their numbers may differ by one.

    Without gradients. Collective: every process calls it.
    """
    if world_size() == 1:
        return rows
    sizes = gather_rows(torch.tensor([len(rows)], device=rows.device))
    padded = rows.new_zeros((int(sizes.max()), *rows.shape[1:]))  # by a row at the split's end, if at all
    padded[: len(rows)] = rows
    return gather_rows(padded)[: int(sizes.sum())]
