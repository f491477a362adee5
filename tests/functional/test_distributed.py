"""Without several processes gathering changes nothing; with them it is tested in test_ddp.py."""

import torch

from regbench.functional.distributed import gather_rows, own_rows, world_size


def test_one_process_keeps_its_batch():
    batch = torch.arange(6.0).view(3, 2)
    assert world_size() == 1
    assert gather_rows(batch) is batch
    assert own_rows(batch) is batch
