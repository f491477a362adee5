"""RegBench from Python, and a network or data set of the user's own on the command line."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import regbench
from regbench.errors import UserError
from support import read_result, weights

OWN = '''
import torch
from torch import nn


class Data:
    """Images that are bright on the left (class 0) or on the right (class 1)."""

    classes = ["left", "right"]

    def __init__(self, train, size=6):
        self.size, self.length = size, 80 if train else 40

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        image = torch.zeros(1, self.size, self.size, dtype=torch.uint8)
        half = self.size // 2
        (image[:, :, :half] if index % 2 == 0 else image[:, :, half:])[:] = 200 + index % 50
        return image, index % 2


class Net(nn.Module):
    def __init__(self, num_classes, image_size, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(image_size[0] * image_size[1], width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, image):
        return self.head(self.body(image))
'''


def network(classes=3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes))


def images(count: int, classes=3) -> TensorDataset:
    """Noise around one pattern a class."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(count) % classes
    pattern = torch.randn(classes, 1, 4, 4, generator=generator)
    return TensorDataset(pattern[label] + 0.3 * torch.randn(count, 1, 4, 4, generator=generator), label)


def test_a_plain_trainer_fits_a_method_on_the_users_own_loaders(tmp_path):
    method = regbench.create_method("decoupled_mixup", backbone=network(), num_classes=3, eta=0.1)
    assert isinstance(method, pl.LightningModule)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(max_epochs=5, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    train = DataLoader(images(120), batch_size=20, shuffle=True)
    trainer.fit(method, train, DataLoader(images(60), batch_size=30))
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    (tested,) = trainer.test(method, DataLoader(images(60), batch_size=30), verbose=False)
    assert tested["test/accuracy"] > 0.9


@pytest.mark.parametrize("slug", ["none", "mixup", "cutmix", "decoupled_mixup"])
def test_a_plain_loop_lowers_the_loss(slug):
    method = regbench.create_method(slug, backbone=network(), num_classes=3)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    batch = images(120).tensors
    losses = []
    for _ in range(150):
        loss = method.training_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    with torch.no_grad():
        accuracy = (method(batch[0]).argmax(dim=1) == batch[1]).float().mean()
    assert accuracy > 0.9


def test_a_batch_may_be_a_mapping():
    method = regbench.create_method("none", backbone=network(), num_classes=3)
    image, label = images(6).tensors
    assert method.training_loss({"image": image, "label": label}) == method.training_loss((image, label))


def test_the_users_module_is_the_one_that_is_trained():
    own = network()
    before = own[1].weight.clone()
    method = regbench.create_method("none", backbone=own, num_classes=3)
    method.training_loss(images(6).tensors).backward()
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    assert not torch.equal(own[1].weight, before)


def test_the_exported_weights_load_into_the_users_own_module():
    method = regbench.create_method("mixup", backbone=network(), num_classes=3)
    with torch.no_grad():
        method.backbone.network[1].weight.normal_()
    exported = {k.removeprefix("backbone.network."): v for k, v in method.state_dict().items()}
    fresh = network()
    fresh.load_state_dict({k: v for k, v in exported.items() if k in fresh.state_dict()}, strict=True)
    image = images(6).tensors[0]
    torch.testing.assert_close(fresh(image), method(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("slug", "options", "expected"),
    [
        ("decoupled_mixup", {"etta": 0.1}, "no option of decoupled_mixup named 'etta'. Did you mean eta"),
        ("mixup", {"alhpa": 1.0}, "Did you mean alpha"),
        ("mixup", {"optimiser": None}, "Did you mean optimizer"),
        ("mixpu", {}, "no regularizer 'mixpu'. Did you mean mixup"),
        ("decoupled_mixup", {"policy": "mixpu"}, "Did you mean mixup"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(slug, options, expected):
    with pytest.raises(UserError) as raised:
        regbench.create_method(slug, backbone=network(), num_classes=3, **options)
    assert expected in str(raised.value)


def test_a_batch_without_labels_says_what_is_missing():
    method = regbench.create_method("none", backbone=network(), num_classes=3)
    with pytest.raises(UserError, match="label"):
        method.training_loss((torch.zeros(2, 1, 4, 4),))


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """my_own.py on the path, as PYTHONPATH puts it there."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "own")


def test_a_network_and_a_data_set_of_ones_own_on_the_command_line(own_module, train):
    code, folder = train("regularizer=mixup", "backbone=custom", "backbone.target=my_own.Net",
                         "+backbone.options.width=5", "dataset=custom", "dataset.target=my_own.Data",
                         "+dataset.kwargs.size=4", "dataset.batch_size=8", "trainer.max_epochs=3",
                         "logger=none", "progress=none")  # fmt: skip
    assert code == 0
    result = read_result(folder)
    assert (result["data"]["shape"], result["data"]["num_classes"]) == ([1, 4, 4], 2)
    assert result["metrics"]["test/accuracy"] == 1
    from my_own import Net

    state = {k.removeprefix("backbone.network."): v for k, v in weights(folder).items()}
    Net(num_classes=2, image_size=(4, 4), width=5).load_state_dict(state)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["backbone=custom", "backbone.target=my_own.Nett"], "Did you mean Net"),
        (["backbone=custom", "backbone.target=my_onw.Net"], "on PYTHONPATH"),
        (
            ["backbone=custom", "backbone.target=my_own.Net", "+backbone.options.widht=5"],
            "Did you mean width",
        ),
        (["dataset=custom", "dataset.target=my_own.Dta", "backbone=mlp"], "my_own.Dta can't be imported"),
        (["dataset=custom", "backbone=mlp"], "needs dataset.target="),
    ],
)
def test_a_mistake_in_its_name_is_explained(own_module, train, capsys, overrides, expected):
    code, _ = train("dataset=digits", *overrides, "logger=none", "progress=none")
    assert code == 2
    assert expected in capsys.readouterr().err
