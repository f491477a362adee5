"""PS-KD's targets, losses and table against numbers worked out by hand, in float64 (z, y and P as below)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.errors import UserError
from regbench.regularizers.classification.base import Batch
from regbench.regularizers.classification.ps_kd import PSKD, mixing_weight, refined_target
from support import QUICK, check_resume

Z = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([0, 2])
P = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)


def loss(z: torch.Tensor, alpha: float) -> torch.Tensor:
    return F.cross_entropy(z, refined_target(Y, P, alpha))


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0, 0.7531091), (0.4, 0.8531091), (0.8, 0.9531091), (1, 1.0031091)]
)
def test_loss_is_linear_in_alpha(alpha, expected):
    assert loss(Z, alpha).item() == pytest.approx(expected, abs=5e-8)


def test_targets_and_gradient_by_hand():
    expected = torch.tensor([[0.68, 0.24, 0.08], [0.16, 0.16, 0.68]], dtype=torch.float64)
    torch.testing.assert_close(refined_target(Y, P, 0.8), expected)
    z = Z.clone().requires_grad_()
    loss(z, 0.8).backward()
    expected = [[-0.0073795, 0.0023642, 0.0050153], [0.0866667, 0.0866667, -0.1733333]]
    torch.testing.assert_close(z.grad, torch.tensor(expected, dtype=torch.float64), atol=5e-8, rtol=0)
    z.grad = None
    loss(z, 1.0).backward()
    assert z.grad[0].tolist() == pytest.approx([0.0326205, -0.0276358, -0.0049847], abs=5e-8)


@pytest.mark.parametrize(("alpha", "ratio"), [(0.2, 0.7610221), (0.4, 0.5220443)])
def test_gradient_shrinks_less_for_images_that_got_worse(alpha, ratio):
    """|grad PS-KD|_1 / |grad CE|_1 = 1 - alpha (1 - P_y) / (1 - p_y), here 1 - alpha 0.4 / 0.33476."""
    norms = []
    for weight in (alpha, 0.0):
        z = Z[:1].clone().requires_grad_()
        F.cross_entropy(z, refined_target(Y[:1], P[:1], weight)).backward()
        norms.append(z.grad.abs().sum().item())
    assert norms[0] / norms[1] == pytest.approx(ratio, abs=5e-8)
    assert norms[0] / norms[1] == pytest.approx(1 - alpha * 0.4 / (1 - Z[0].softmax(0)[0].item()))


def test_weight_grows_with_each_epoch():
    weights = [mixing_weight(0.8, epoch, 300) for epoch in (0, 149, 299)]
    assert weights == pytest.approx([0.0026667, 0.4, 0.8], abs=5e-8)
    assert mixing_weight(0.8, 3, 300, "constant") == 0.8


def test_a_uniform_prediction_is_label_smoothing():
    uniform = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    found = F.cross_entropy(Z[:1], refined_target(Y[:1], uniform, 0.1))
    assert found.item() == pytest.approx(0.5076060, abs=5e-8)
    assert found.item() == pytest.approx(F.cross_entropy(Z[:1], Y[:1], label_smoothing=0.1).item())


# -- the method --------------------------------------------------------------------------------------------------


class Epoch:
    """Stands for Lightning's trainer."""

    def __init__(self, current_epoch: int, max_epochs: int):
        self.current_epoch, self.max_epochs = current_epoch, max_epochs


def method(size: int = 6, epoch: int = 0, epochs: int = 4, **options) -> PSKD:
    torch.manual_seed(0)
    made = PSKD(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3, **options)
    made.on_data(size)
    made._trainer = Epoch(epoch, epochs)
    return made


def batch(index=(4, 0, 2)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 1, 2, 2, generator=generator)
    return {"image": image, "label": torch.tensor([0, 1, 2]), "index": torch.tensor(index)}


def test_first_epoch_is_cross_entropy_and_fills_the_rows_that_it_met():
    made, data = method(), batch()
    logits = made(data["image"])
    assert made.training_loss(data).item() == pytest.approx(F.cross_entropy(logits, data["label"]).item())
    torch.testing.assert_close(made.predictions[data["index"]], logits.softmax(1).detach())
    assert not made.predictions.requires_grad
    assert (
        made.predictions[[1, 3, 5]].abs().sum() == 0
    )  # an image that was left out keeps its label as target


def test_later_epochs_take_the_prediction_of_the_epoch_before():
    made, data = method(), batch()
    before = made(data["image"]).softmax(1).detach()
    made.training_loss(data)
    with torch.no_grad():
        made.backbone.classifier.weight.add_(0.3)
    made._trainer = Epoch(1, 4)  # alpha_1 = 0.8 * 2 / 4
    logits = made(data["image"])
    expected = F.cross_entropy(logits, 0.6 * F.one_hot(data["label"], 3) + 0.4 * before)
    assert made.training_loss(data).item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(made.predictions[data["index"]], logits.softmax(1).detach())


def test_rows_follow_the_index_whatever_the_order():
    made, data = method(), batch()
    made.training_loss(data)
    table = made.predictions.clone()
    order = torch.tensor([2, 0, 1])
    again = method()
    again.training_loss({name: values[order] for name, values in data.items()})
    torch.testing.assert_close(again.predictions, table)


@pytest.mark.parametrize("teacher", ["table", "previous_epoch_weights"])
def test_alpha_zero_is_cross_entropy(teacher):
    made, data = method(alpha=0.0, teacher=teacher, epoch=2), batch()
    for _ in range(2):
        assert made.training_loss(data).equal(F.cross_entropy(made(data["image"]), data["label"]))


def test_a_resumed_run_has_the_same_targets():
    made, data = method(), batch()
    made.training_loss(data)
    resumed = method()
    resumed.load_state_dict(made.state_dict())
    for run in (made, resumed):
        run._trainer = Epoch(1, 4)
    assert made.training_loss(data).equal(resumed.training_loss(data))
    assert made.predictions.equal(resumed.predictions)


@pytest.mark.parametrize("teacher", ["table", "previous_epoch_weights"])
def test_an_interrupted_run_ends_where_a_whole_one_ends(train, teacher):
    run = ["regularizer=ps_kd", f"regularizer.teacher={teacher}", *QUICK, "trainer.max_epochs=3"]
    check_resume(train, *run, after=1)


def test_the_table_trains_no_parameter_and_ddp_leaves_it_alone():
    made = method()
    assert "predictions" in made.state_dict()
    assert "predictions" not in dict(made.named_parameters())
    assert "predictions" in made._ddp_params_and_buffers_to_ignore


def test_previous_weights_are_those_of_the_last_epoch_in_evaluation_mode():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    made = PSKD(backbone, 3, teacher="previous_epoch_weights")
    made.on_data(6)
    image, label = batch()["image"], batch()["label"]  # no index: it needs none
    logits, hard = torch.randn(3, 3), F.one_hot(label, 3)

    made._trainer = Epoch(0, 4)
    assert made.objective(logits, Batch(image, label)).item() == pytest.approx(
        F.cross_entropy(logits, label).item(), abs=1e-6
    )
    for epoch, alpha in ((1, 0.4), (2, 0.6)):
        made._trainer = Epoch(epoch, 4)
        past = made.eval()(image).softmax(1).detach()  # the weights at the end of the epoch before
        made.train()
        for _ in range(2):  # also after a step within the epoch
            expected = F.cross_entropy(logits, (1 - alpha) * hard + alpha * past)
            found = made.objective(logits, Batch(image, label))
            assert found.item() == pytest.approx(expected.item(), abs=1e-6)
            with torch.no_grad():
                made.backbone.classifier.weight.add_(torch.randn(3, 8))
    assert made.backbone.training
    assert len(list(made.parameters())) == 4  # the frozen network is neither trained nor in checkpoints


def test_mixing_methods_are_refused():
    with pytest.raises(
        UserError, match="ps_kd can't be combined with mixup, which mixes the batch: its targets are"
    ):
        PSKD(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3, stack=["mixup"])


def test_a_batch_without_positions_and_a_forgotten_size_are_refused():
    data = batch()
    with pytest.raises(UserError, match="position of each image"):
        method().training_loss((data["image"], data["label"]))
    made = PSKD(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3)
    with pytest.raises(UserError, match="on_data"):
        made.training_loss(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.1}, "alpha=1.1"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"teacher": "tabel"}, "Did you mean table"),
        ({"schedule": "linaer"}, "Did you mean linear"),
    ],
)
def test_mistakes_stop_at_construction(options, message):
    with pytest.raises(UserError, match=message):
        method(**options)
