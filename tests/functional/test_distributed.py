"""Without several processes gathering changes nothing; with them it is tested in test_ddp.py."""

import torch

from regbench.functional import distributed
from regbench.functional.distributed import gather_rows, gather_split, own_rows, world_size


def test_one_process_keeps_its_batch():
    batch = torch.arange(6.0).view(3, 2)
    assert world_size() == 1
    assert gather_rows(batch) is batch
    assert own_rows(batch) is batch
    assert gather_split(batch) is batch


def test_a_split_of_an_odd_number_of_rows_is_put_together_in_its_order(monkeypatch):
    """Two processes hold rows 0, 2, 4 and 1, 3; what the other one would send is given."""
    split = torch.arange(10.0).view(5, 2)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    padded = torch.cat([split[1::2], torch.zeros(1, 2)])
    for rank in (0, 1):

        def gather(rows, rank=rank):
            other = torch.tensor([[3], [2]])[1 - rank] if rows.dim() == 1 else [padded, split[::2]][rank]
            parts = [rows, other] if rank == 0 else [other, rows]
            return torch.stack(parts, dim=1).flatten(0, 1)

        monkeypatch.setattr(distributed, "gather_rows", gather)
        assert torch.equal(gather_split(split[rank::2]), split)
