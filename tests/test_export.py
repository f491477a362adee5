"""`regbench export`: a run's network as a plain state_dict that loads, and gives the same outputs, without RegBench."""

import json
import subprocess
import sys

import pytest
import torch

from regbench import cli
from regbench.training import load_network
from support import QUICK, read_result

SMALL = ["dataset=digits", "backbone=small_cnn", "backbone.width=4", "trainer.max_epochs=1",
         "trainer.limit_train_batches=3", "logger=none", "progress=none"]  # fmt: skip
# small_cnn written with torch alone; it reads the weights and an image, and prints the logits.
PLAIN = """
import sys, json, torch
from torch import nn
from collections import OrderedDict
assert not any(name.startswith("regbench") for name in sys.modules)
def block(i, o):
    convolution = nn.Conv2d(i, o, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))
network = nn.Sequential(OrderedDict(layer1=block(1, 4), layer2=block(4, 8), layer3=block(8, 16),
                        pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(16, 10)))
network.load_state_dict(torch.load(sys.argv[1], weights_only=True))
torch.set_num_threads(1)
image = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
print(json.dumps(network.eval()(image).tolist()))
"""


@pytest.mark.parametrize("regularizer", ["none", "weight_compander"])
def test_the_exported_network_gives_the_same_outputs_without_regbench(train, tmp_path, capsys, regularizer):
    stack = ["stack=[weight_compander]"] if regularizer == "none" else []
    _, folder = train(f"regularizer={regularizer}", *stack, *SMALL)
    assert cli.main(["export", str(folder)]) == 0
    shown = capsys.readouterr().out
    mean = read_result(folder)["data"]["mean"][0]
    assert f"{mean:.4f}" in shown
    assert "state_dict of small_cnn for images of 1×8×8 and 10 classes" in shown
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder / "model.pt")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    network = load_network(folder / "checkpoints" / "best.ckpt", (1, 8, 8), 10)
    image = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    assert torch.equal(torch.tensor(json.loads(done.stdout)), network(image))


def test_a_network_of_samples_is_exported_too(train, capsys):
    _, folder = train(
        "regularizer=grokking", "dataset.p=7", "trainer.max_epochs=1", "logger=none", "progress=none"
    )
    assert cli.main(["export", str(folder)]) == 0
    assert "state_dict of modular_mlp for samples of 2 and 7 outputs" in capsys.readouterr().out
    assert torch.load(folder / "model.pt", weights_only=True)["first.weight"].shape == (14, 500)


@pytest.mark.parametrize("regularizer", ["sparse_ot", "forest_smoothers"])
def test_a_run_without_a_network_is_refused(train, capsys, regularizer):
    _, folder = train(f"regularizer={regularizer}", "trainer.max_epochs=1", "logger=none", "progress=none")
    assert cli.main(["export", str(folder)]) == 2
    assert f"has no network: {regularizer} trains none" in capsys.readouterr().err


def test_folding_changes_no_output(train):
    """The parametrised network of the checkpoint and the folded one."""
    from regbench.api import create_method
    from regbench.backbones.small import small_cnn

    method = create_method("weight_compander", backbone=small_cnn(1, (8, 8), 10, width=4), num_classes=10)
    image = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8)
    loss = method.training_loss((image, torch.arange(3)))
    loss.backward()
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    method.eval()
    before = method(image)
    plain = method.plain_backbone()
    assert torch.equal(plain(image), before)
    assert plain.network.state_dict().keys() == small_cnn(1, (8, 8), 10, width=4).network.state_dict().keys()
    assert torch.equal(method(image), before)  # the method itself stays as it is


@pytest.mark.parametrize(
    ("arguments", "words"), [([], "no result.json"), (["nowhere/model.pt"], "no folder nowhere")]
)
def test_mistakes(train, tmp_path, capsys, arguments, words):
    folder = tmp_path
    if arguments:
        _, folder = train("regularizer=none", *QUICK)
    assert cli.main(["export", str(folder), *arguments]) == 2
    assert words in capsys.readouterr().err
