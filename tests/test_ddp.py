"""Two processes give the loss and the weights of one process on the same global batch."""

import pytest
import torch

from support import history, read_result, weights

RUN = [
    *("dataset=digits", "dataset.train_size=512", "dataset.augment.translate=1", "trainer.max_epochs=2"),
    *("backbone=small_cnn", "backbone.width=8", "logger=none", "progress=none"),
]


@pytest.mark.parametrize(
    "regularizer",
    [
        ["none", "backbone.norm=batch"],  # its statistics must be those of the global batch
        ["decoupled_mixup", "regularizer.policy=cutmix", "backbone.norm=group"],  # pairs from both processes
        ["manifold_mixup", "regularizer.layers=[2]", "backbone.norm=group"],  # gradients across processes
        [
            "mixup",
            "stack=[weight_compander,{orthogonal_conv:{weight:0.1}},{max_norm:{c:0.5}}]",
            "backbone.norm=group",
        ],
        ["adamixup", "backbone.norm=group"],
        ["ps_kd", "backbone.norm=group"],  # all processes write all rows of the table
        ["elr", "stack=[mixup]", "backbone.norm=group"],  # so do these; the partner may be another process's
        ["elr_plus", "backbone.norm=group"],
    ],
    ids=lambda value: value[0],
)
def test_two_processes_are_one(command, tmp_path, regularizer):
    options = [f"regularizer={regularizer[0]}", *regularizer[1:], *RUN]
    for accelerator in ("cpu", "ddp_cpu"):
        done = command(*options, f"accelerator={accelerator}", f"hydra.run.dir={accelerator}")
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "cpu", tmp_path / "ddp_cpu"
    assert read_result(two)["device"].endswith("2 processes")
    for name, value in weights(one).items():
        # The order of a sum is another one; such errors grow with the steps, on some machines to 2e-5.
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-4, atol=1e-4, msg=name)
    for first, second in zip(history(one), history(two), strict=True):
        for key in (
            "train/loss",
            "val/accuracy",
            "val/nll",
            "val/ece",
            "test/accuracy",
            "test/nll",
            "test/ece",
        ):
            if first[key]:
                assert float(second[key]) == pytest.approx(float(first[key]), rel=1e-4, abs=2e-5), key


def test_a_batch_that_does_not_divide_is_refused_once_before_the_processes_start(command):
    done = command(*RUN, "accelerator=ddp_cpu", "dataset.batch_size=127")
    assert done.returncode == 2
    assert done.stderr.count("dataset.batch_size=127") == 1
