"""What every method's base does: manual optimisation, streams, and the schedule of the learning rate."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import regbench
from regbench.errors import UserError
from regbench.registry import load

INPUTS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
BATCHES = DataLoader(TensorDataset(INPUTS, torch.arange(40) % 3), batch_size=8)


class ByHand(load("none")):
    """Cross entropy with a training loop of its own."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimize(self.training_loss(batch), batch_idx)


def fitted(cls, *, clip=None, accumulate=1, epochs=2, **trainer):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    method = cls(network, 3, scheduler={"name": "cosine"}, clip=clip, accumulate=accumulate)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, **trainer)  # fmt: skip
    trainer.fit(method, BATCHES)
    return method


@pytest.mark.parametrize(("clip", "accumulate"), [(None, 1), (0.1, 1), (None, 2), (0.1, 2)])
def test_manual_optimisation_does_what_lightning_does(clip, accumulate):
    automatic = fitted(load("none"), gradient_clip_val=clip, accumulate_grad_batches=accumulate)
    manual = fitted(ByHand, clip=clip, accumulate=accumulate)
    for name, value in automatic.state_dict().items():
        torch.testing.assert_close(manual.state_dict()[name], value, msg=name)


def test_step_counts_batches_under_manual_optimisation(tmp_path):
    from regbench.loggers import History

    class TwoOptimizers(ByHand):
        def configure_optimizers(self):
            first, *rest = self.parameters()
            return torch.optim.SGD([first], lr=0.1), torch.optim.SGD(rest, lr=0.1)

        def training_step(self, batch, batch_idx):
            self.optimize(self.training_loss(batch), batch_idx, 0)
            self.optimize(self.training_loss(batch), batch_idx, 1)
            self.log("loss", torch.zeros(()), on_step=True, on_epoch=False)

    method = TwoOptimizers(nn.Linear(4, 3), 3)
    history = History(tmp_path / "metrics.csv")
    pl.Trainer(max_epochs=2, accelerator="cpu", logger=history, enable_checkpointing=False, log_every_n_steps=1,
               enable_progress_bar=False, enable_model_summary=False).fit(method, BATCHES)  # fmt: skip
    steps = [int(row["step"]) for row in history._rows() if row["loss"]]
    assert steps == list(range(10))


def test_a_generator_starts_anew_with_each_epoch_and_stream():
    method = regbench.create_method("none", backbone=nn.Linear(4, 3), num_classes=3, seed=1)
    first = torch.rand(3, generator=method.generator("mix"))
    second = torch.rand(3, generator=method.generator("mix"))
    other = torch.rand(3, generator=method.generator("noise"))
    method.on_train_epoch_start()
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(first, torch.rand(3, generator=method.generator("mix")))


def test_missing_fields_are_named():
    method = regbench.create_method("none", backbone=nn.Linear(4, 3), num_classes=3)
    with pytest.raises(UserError, match="needs label"):
        method.training_loss({"image": torch.zeros(2, 4)})
