"""FixMatch and its family's base: the loss by hand, the moving average, what is tested, resuming, two processes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.errors import UserError
from regbench.export import export
from regbench.registry import load
from regbench.regularizers.semi_supervised.base import decay_at
from support import StopAfter, history, read_result, weights

TINY = [
    *(
        "dataset=digits",
        "dataset.labelled=30",
        "dataset.batch_size=8",
        "backbone=small_cnn",
        "backbone.width=4",
    ),
    *("trainer.max_epochs=3", "logger=none", "progress=none", "checkpoint.select=last"),
]
FixMatch = load("fixmatch")


class Scores(nn.Module):
    """Images of 1 × 1 × C pixels are their own logits, times a weight that is 1."""

    def __init__(self, classes: int = 2):
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.scale.weight)

    def forward(self, image):
        return self.scale(image.flatten(1)[..., None])[..., 0]


def images(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)[:, None, None, :]


LN = math.log
BATCH = {
    "image": images((LN(3), 0.0)),
    "label": torch.tensor([1]),
    "unlabelled_weak": images((LN(99), 0.0), (LN(9), 0.0)),  # confidences 0.99 and 0.9, both of class 0
    "unlabelled_strong": images((0.0, 0.0), (0.0, LN(3))),
}


def by_hand(threshold: float, weight: float = 1.0, **options) -> float:
    method = FixMatch(Scores(), 2, threshold=threshold, weight=weight, **options).double()
    return method.training_loss(BATCH).item()


@pytest.mark.parametrize("teacher", ["network", "average"])
def test_loss_by_hand(teacher):
    supervised = LN(4)  # −log(1/4)
    assert by_hand(0.95, teacher=teacher) == pytest.approx(supervised + LN(2) / 2, abs=1e-12)
    assert by_hand(0.9 - 1e-9, 0.5, teacher=teacher) == pytest.approx(
        supervised + 0.5 * (LN(2) + LN(4)) / 2, abs=1e-12
    )
    assert by_hand(0.995, teacher=teacher) == pytest.approx(supervised, abs=1e-12)
    assert by_hand(0.95, 0.0, teacher=teacher) == pytest.approx(supervised, abs=1e-12)


@pytest.mark.parametrize("teacher", ["network", "average"])
def test_no_gradient_flows_through_the_pseudo_label_or_into_the_average(teacher):
    method = FixMatch(Scores(), 2, teacher=teacher).double()
    method.training_loss(BATCH).backward()
    weight = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    logits = {name: value.flatten(1) * weight for name, value in BATCH.items() if name != "label"}
    expected = F.cross_entropy(logits["image"], BATCH["label"])
    expected = expected + F.cross_entropy(logits["unlabelled_strong"][:1], torch.tensor([0])) / 2
    expected.backward()
    torch.testing.assert_close(method.student.network.scale.weight.grad, weight.grad)
    assert all(p.grad is None for p in method.backbone.parameters())


def test_the_average_by_hand():
    """0.9 a + 0.1 b, of parameters and of batch norm's statistics; the counter is copied."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    method = FixMatch(network, 2, decay=0.9)
    before = copy.deepcopy(method.backbone.state_dict())
    with torch.no_grad():
        for value in (*method.student.parameters(), *method.student.buffers()):
            value.add_(1)
    method.after_step()
    for name, value in method.backbone.state_dict().items():
        counter = name.endswith("num_batches_tracked")
        torch.testing.assert_close(value, before[name] + 1 if counter else before[name] + 0.1, msg=name)
    method.train()
    assert method.student.training
    assert not method.backbone.training


def test_decay():
    assert decay_at(0.05, 0.999, 0.99999) == 0.999
    assert decay_at(1.0, 0.999, 0.99999) == pytest.approx(0.99999)
    assert decay_at(0.5, 0.999, 0.99999) == pytest.approx((0.999 + 0.99999) / 2)
    assert decay_at(0.9, 0.999, None) == 0.999
    assert [decay_at(0.5, 0.999, None, step) for step in (0, 90)] == [0.1, 0.91]
    assert decay_at(0.5, 0.999, None, 10**5) == 0.999


def test_norms_and_biases_get_no_weight_decay_and_the_average_is_not_trained():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    method = FixMatch(network, 2, optimizer=lambda params: torch.optim.SGD(params, lr=0.1, weight_decay=0.01))
    rest, plain = method.configure_optimizers().param_groups
    assert [tuple(p.shape) for p in rest["params"]] == [(2, 1, 3, 3), (2, 8)]
    assert rest["weight_decay"] == 0.01
    assert [tuple(p.shape) for p in plain["params"]] == [(2,)] * 4
    assert plain["weight_decay"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"teacher": "netwrok"}, "Did you mean network"),
        ({"decay": 1.1}, "decay=1.1"),
        ({"decay": 0.9, "decay_end": 0.8}, "decay_end=0.8"),
        ({"stack": ["mixup"]}, "loop of its own"),
    ],
)
def test_mistakes_stop_at_construction(options, message):
    with pytest.raises(UserError, match=message):
        FixMatch(Scores(), 2, **options)


def test_a_batch_without_unlabelled_images_is_named():
    with pytest.raises(UserError, match="unlabelled_weak"):
        FixMatch(Scores(), 2).training_loss((BATCH["image"], BATCH["label"]))


def test_what_is_tested_and_exported_is_the_average(train, tmp_path):
    code, folder = train("regularizer=fixmatch", *TINY)
    assert code == 0
    state = weights(folder)
    name = "network.layer1.0.weight"
    assert not torch.equal(state[f"backbone.{name}"], state[f"student.{name}"])
    exported = torch.load(export(folder, tmp_path / "model.pt"), weights_only=True)
    assert all(torch.equal(value, state[f"backbone.network.{key}"]) for key, value in exported.items())
    shares = [float(row["train/confident"]) for row in history(folder) if row["train/confident"]]
    assert len(shares) == 3
    assert all(0 <= share <= 1 for share in shares)


def test_a_resumed_run_goes_on_bit_for_bit(train, monkeypatch):
    import regbench.training as training

    options = ["regularizer=decoupled_mixup_ssl", *TINY]
    _, whole = train(*options, run_dir="whole")
    plain = training.build_trainer

    def stopping(cfg, method, run_dir, loggers, callbacks):
        return plain(cfg, method, run_dir, loggers, [*callbacks, StopAfter(1)])

    with monkeypatch.context() as patch:
        patch.setattr(training, "build_trainer", stopping)
        train(*options, run_dir="part")
    assert not (whole.parent / "part" / "result.json").exists()
    code, part = train(f"resume={whole.parent / 'part'}", "progress=none", run_dir="part")
    assert code == 0
    first, second = weights(whole), weights(part)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_result(whole)["metrics"] == read_result(part)["metrics"]


def test_two_processes_are_one(command, tmp_path):
    """Decoupled mixup has FixMatch's losses and mixes across processes. An untrained network passes the thresholds."""
    options = [
        "regularizer=decoupled_mixup_ssl",
        "regularizer.threshold=0.12",
        "regularizer.mix_threshold=0.1",
    ]
    options += [*TINY, "backbone.norm=group"]
    for accelerator in ("cpu", "ddp_cpu"):
        done = command(*options, f"accelerator={accelerator}", f"hydra.run.dir={accelerator}")
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "cpu"), weights(tmp_path / "ddp_cpu")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=name)
