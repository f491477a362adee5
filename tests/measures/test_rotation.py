"""Accuracy on turned images: a network that looks for a bar above the centre."""

import pytest
import torch
from torch import nn

from regbench.errors import UserError
from regbench.measures.rotation import Rotation


class Logs(nn.Module):
    """Predicts 1 where the pixel above the centre is bright, else 0, and keeps what is logged."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.logged = {}

    def forward(self, image):
        return torch.stack([torch.full((len(image),), 0.5), image[:, 0, 1, 2] * 0.2 + 0.4], dim=1)

    def log(self, name, value, **options):
        self.logged[name] = float(value)


class Trainer:
    class datamodule:
        mean_std = ([0.4], [0.2])  # black is −2, white 3


def test_bars_are_seen_where_they_are_turned_to():
    """One bar right of the centre, one above: label 1 for both. By 90 degrees the first is seen, the other not."""
    image = torch.full((4, 1, 5, 5), -2.0)
    image[0, 0, 2, 3:] = 3.0
    image[1, 0, :2, 2] = 3.0
    image[2, 0, :2, 2] = 3.0
    label = torch.tensor([1, 1, 1, 0])  # the last image is black, which turning leaves it everywhere
    measure, module = Rotation(degrees=[0, 90]), Logs()
    measure.on_test_epoch_start(Trainer, module)
    measure.on_test_batch_end(Trainer, module, None, (image[:2], label[:2]), 0)
    measure.on_test_batch_end(Trainer, module, None, (image[2:], label[2:]), 1)
    measure.on_test_epoch_end(Trainer, module)
    assert module.logged == pytest.approx({
        "test/accuracy_rotated_0": 0.75, "test/accuracy_rotated_90": 0.5, "test/accuracy_rotated": 0.625
    })  # fmt: skip


def test_no_angle_is_refused():
    with pytest.raises(UserError, match="degrees"):
        Rotation(degrees=[])
