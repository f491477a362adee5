"""Batch norm over the batches of all CPU processes; torch's SyncBatchNorm runs on GPUs only."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class CpuSyncBatchNorm(_BatchNorm):
    """Normalises (B, C, ...) by the mean and variance of each channel over the batches of all processes.

    In training, with one process or more, what `nn.BatchNorm*d` computes on all their batches together: biased
    variance to normalise, unbiased variance in the running average. In evaluation it is plain batch norm.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch norm needs (B, C, ...), got {x.dim()} dimensions")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = torch.tensor(float(x.numel() / x.shape[1]))
        dist.all_reduce(count)
        mean = dist_nn.all_reduce(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = dist_nn.all_reduce(centred.square().sum(dims)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        out = centred * (variance + self.eps).rsqrt().view(shape)
        return out * self.weight.view(shape) + self.bias.view(shape) if self.affine else out


def synchronise_batchnorm(module: nn.Module) -> nn.Module:
    """Replaces every batch norm in the module by one over all processes; parameters and buffers are kept."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            new = CpuSyncBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            new.load_state_dict(child.state_dict())
            new.train(child.training)
            setattr(module, name, new)
        else:
            synchronise_batchnorm(child)
    return module
