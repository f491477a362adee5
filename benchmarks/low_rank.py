"""What factors cost: the latency of ResNet-18 cut to low rank beside the dense network's, and a step of Maestro's
training beside one of plain training.
"""

import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from regbench import backbones
from regbench.backbones.low_rank import factorise, layers_of, plain
from regbench.composing import compose_config
from regbench.functional.cost import cost_of
from regbench.functional.low_rank import rank_at
from regbench.regularizers.compression.maestro import Maestro

SHARES = (0.5, 0.25, 0.1)
BATCH, TRAINING_BATCH = 1, 8
REPEATS = 9
SHAPE = (3, 32, 32)


def milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def beside(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float, float]:
    """Medians of the ratio, and of both, in milliseconds; they alternate, since a machine is not always as fast."""
    one(), other()
    pairs = [(milliseconds(one), milliseconds(other)) for _ in range(REPEATS)]
    return (statistics.median(a / b for a, b in pairs), *map(statistics.median, zip(*pairs, strict=True)))


def rows() -> list[tuple]:
    node = dict(compose_config(["backbone=resnet18_cifar"]).backbone)
    dense = backbones.build(node, shape=SHAPE, num_classes=10).eval()
    macs = cost_of(dense, SHAPE).macs
    found = []
    image = torch.randn(BATCH, *SHAPE)
    for share in SHARES:
        network = copy.deepcopy(dense)
        factorise(network)
        for layer in layers_of(network).values():
            layer.cut = rank_at(layer.rank, share)
        cut = plain(network)
        with torch.no_grad():
            ratio, ours, theirs = beside(lambda: cut(image), lambda: dense(image))  # noqa: B023
        what = f"ResNet-18 at {share:.0%} of each layer's rank: latency beside the dense network's, batch {BATCH}"
        value = f"{ratio:.2f}: {ours:.1f} ms, {theirs:.1f} ms (MACs {cost_of(cut, SHAPE).macs / macs:.2f})"
        found.append((what, value, "", None))
    batch = torch.randn(TRAINING_BATCH, *SHAPE), torch.randint(10, (TRAINING_BATCH,))
    trained = copy.deepcopy(dense).train()
    for lasso in (0.0, 1e-6):
        method = Maestro(copy.deepcopy(dense), 10, lasso=lasso).train()
        ratio, ours, theirs = beside(
            lambda: method.training_loss(batch).backward(),  # noqa: B023
            lambda: F.cross_entropy(trained(batch[0]), batch[1]).backward(),
        )
        which = "with" if lasso else "without"
        what = f"Maestro {which} its lasso, ResNet-18 at full ranks: a step beside a plain one, batch {TRAINING_BATCH}"
        found.append((what, f"{ratio:.2f}: {ours:.0f} ms, {theirs:.0f} ms", "", None))
    return found
