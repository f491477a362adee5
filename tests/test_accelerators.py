"""Precision, memory format and compilation, as far as a CPU can show them."""

import pytest
import torch

from regbench import backbones
from regbench.composing import compose_config
from regbench.training import build_method
from support import QUICK, read_result, weights


def test_bf16_trains_and_keeps_float32_weights(train):
    code, folder = train(*QUICK, "accelerator.precision=bf16-mixed", "trainer.max_epochs=3")
    assert code == 0
    assert read_result(folder)["precision"] == "bf16-mixed"
    assert read_result(folder)["metrics"]["test/accuracy"] > 0.8
    assert all(value.dtype != torch.bfloat16 for value in weights(folder).values())


def test_double_precision_is_close_to_single(train):
    _, single = train(*QUICK, run_dir="single")
    _, double = train(*QUICK, "accelerator.precision=64-true", run_dir="double")
    assert weights(double)["backbone.network.fc.weight"].dtype == torch.float64
    for name, value in weights(double).items():
        if value.is_floating_point():
            torch.testing.assert_close(weights(single)[name].double(), value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("backbone", "setting", "expected"),
    [
        ("small_cnn", "auto", True),
        ("small_cnn", "false", False),
        ("small_vit", "auto", False),
        ("small_vit", "true", True),
    ],
)
def test_channels_last_is_for_convolutional_networks(backbone, setting, expected):
    cfg = compose_config([f"backbone={backbone}", f"accelerator.channels_last={setting}"])
    network = backbones.build(dict(cfg.backbone), shape=(3, 32, 32), num_classes=10)
    method = build_method(cfg, network, 10, {"order": 0}, {})
    weight = next(m.weight for m in method.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last) == expected


def test_compiled_gives_what_eager_gives(train):
    _, eager = train(*QUICK, run_dir="eager")
    _, compiled = train(*QUICK, "accelerator.compile=true", run_dir="compiled")
    assert weights(eager).keys() == weights(compiled).keys()
    for name, value in weights(eager).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-3, atol=1e-5, msg=name)
