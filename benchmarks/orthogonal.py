"""What the penalty of orthogonal convolutions costs: each kernel's beside one conv2d(K, K), and in ResNet-18's step."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench import backbones
from regbench.composing import compose_config
from regbench.functional.orthogonality import conv_orthogonality
from regbench.regularizers.classification.orthogonal_conv import OrthogonalConv

LAYERS = [(64, 3, 3, 1), (64, 64, 3, 1), (128, 64, 3, 2), (128, 128, 3, 1), (256, 128, 3, 2), (256, 256, 3, 1),
          (512, 256, 3, 2), (512, 512, 3, 1)]  # fmt: skip  # ResNet-18's 3 × 3 kernels: M, C, k, stride
REPEATS = 5
BATCH = 128


def direct(kernel: Tensor, stride: int) -> Tensor:
    """One conv2d(K, K) with the padding of the term, and a sum, so that there is something to differentiate."""
    reach = (kernel.shape[-1] - 1) // stride * stride
    return F.conv2d(kernel, kernel, stride=stride, padding=reach).sum()


def milliseconds(function: Callable[[], Tensor], kernels: list[Tensor], repeats: int) -> float:
    """Median of forward and backward."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.autograd.grad(function(), kernels)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[1:])


def rows() -> list[tuple]:
    found = []
    for out_channels, in_channels, k, stride in LAYERS:
        kernel = (0.05 * torch.randn(out_channels, in_channels, k, k)).requires_grad_()
        repeats = 20 if out_channels < 256 else 3
        pairs = [
            (milliseconds(lambda: conv_orthogonality(kernel, stride), [kernel], repeats),  # noqa: B023
             milliseconds(lambda: direct(kernel, stride), [kernel], repeats))  # noqa: B023
            for _ in range(REPEATS)
        ]  # fmt: skip
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
        kernel_name = f"{out_channels}×{in_channels}×{k}×{k}"
        what = f"L_orth of a {kernel_name} kernel, stride {stride}: times one conv2d(K, K), with backward"
        found.append((what, f"{ratio:.2f}: {ours:.2f} ms, {theirs:.2f} ms", "<= 1.05", ratio <= 1.05))
    node = dict(compose_config(["backbone=resnet18_cifar"]).backbone)
    network = backbones.build(node, shape=(3, 32, 32), num_classes=10)
    method = OrthogonalConv(network, 10, weight=0.01)
    kernels = [layer.weight for layer, _ in method._convolutions]
    strides = [stride for _, stride in method._convolutions]
    image, label = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    weights = [p for p in network.parameters() if p.requires_grad]
    step = milliseconds(lambda: nn.functional.cross_entropy(network(image), label), weights, REPEATS)
    penalty = milliseconds(lambda: method.penalty(), kernels, REPEATS)
    conv = milliseconds(lambda: sum(map(direct, kernels, strides)), kernels, REPEATS)
    share, direct_share = penalty / (step + penalty), conv / (step + conv)
    what = f"L_orth of all of ResNet-18's convolutions: share of a step at batch {BATCH}"
    found.append((what, f"{share:.1%}: {penalty:.0f} ms beside {step:.0f} ms", "", None))
    found.append((f"{what}, as conv2d(K, K)", f"{direct_share:.1%}: {conv:.0f} ms", "", None))
    return found
