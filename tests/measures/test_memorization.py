"""Memorisation against counts by hand, on a network whose predictions are known."""

import pytest
import pytorch_lightning as pl
import torch

from regbench.errors import UserError
from regbench.measures.memorization import Memorization, counts, shares
from support import QUICK, history, read_result

NOISY = ["dataset.noise.kind=symmetric", "dataset.noise.rate=0.4"]
MEASURED = ["callbacks=[default,memorization]", "trainer.limit_train_batches=3"]


def test_shares_by_hand():
    true = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    given = torch.tensor([0, 0, 1, 0, 0, 1, 1])
    guess = torch.tensor([0, 1, 1, 1, 0, 1, 0])  # right, wrong, right; true; given, given, other
    found = shares(counts(guess, given, true))
    expected = {"clean_accuracy": 2 / 3, "wrong_true": 1 / 4, "wrong_given": 2 / 4, "wrong_other": 1 / 4}
    assert found == pytest.approx(expected)


def test_without_wrong_labels_nothing_is_memorised():
    label = torch.tensor([0, 1])
    expected = {"clean_accuracy": 1, "wrong_true": 0, "wrong_given": 0, "wrong_other": 0}
    assert shares(counts(label, label, label)) == expected


def test_a_run_logs_curves_and_draws_them(train):
    code, folder = train("regularizer=elr", *QUICK, *NOISY, *MEASURED, "trainer.max_epochs=3",
                         "callbacks.memorization.every=2")  # fmt: skip
    assert code == 0
    rows = [row for row in history(folder) if row.get("train/wrong_given")]
    assert [row["epoch"] for row in rows] == ["1", "2"]  # every second, and the last
    for row in rows:
        parts = [float(row[f"train/wrong_{kind}"]) for kind in ("true", "given", "other")]
        assert sum(parts) == pytest.approx(1)
        assert 0 < float(row["val/true_accuracy"]) <= 1
        assert 0 <= float(row["train/target_true"]) <= 1
    metrics = read_result(folder)["metrics"]
    assert metrics["test/label_noise"] == pytest.approx(0.4, abs=0.08)  # 1,295 draws, six standard deviations
    assert (folder / "figures" / "memorization.png").stat().st_size > 1000


class Oracle(pl.Callback):
    """Makes the network say the class that is written into each image's first pixel."""

    def __init__(self, labels: torch.Tensor):
        self.labels = labels

    def on_test_start(self, trainer, module):
        data = trainer.datamodule
        data.sets.train.images[:, 0, 0, 0] = self.labels.to(torch.uint8)
        (mean,), (std,) = data.mean_std
        module.forward = lambda image: (
            -((image[:, 0, 0, :1] * std + mean) * 255 - torch.arange(10).float()).square()
        )


@pytest.mark.parametrize("told", ["true", "given"])
def test_a_network_that_knows_the_labels(told):
    from hydra import compose, initialize_config_dir

    from regbench.backbones.small import mlp
    from regbench.data.module import ImageDataModule
    from regbench.paths import configs_dir
    from regbench.regularizers.classification.none import NoRegularizer
    from regbench.seeding import streams

    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        config = compose(overrides=["+dataset=digits", *NOISY, "dataset.mean=[0.3]", "dataset.std=[0.4]"])
    data = ImageDataModule(config.dataset, streams(0))
    labels = data.clean_labels if told == "true" else data.sets.train.labels
    module = NoRegularizer(mlp(1, (8, 8), 10, hidden=()), 10)
    trainer = pl.Trainer(
        callbacks=[Oracle(labels), Memorization()],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (metrics,) = trainer.test(module, datamodule=data, verbose=False)
    assert metrics["test/clean_accuracy"] == 1
    assert metrics["test/wrong_true"] == (told == "true")
    assert metrics["test/memorized"] == (told == "given")
    assert metrics["test/wrong_other"] == 0


def test_it_goes_on_after_a_resume():
    before, after = Memorization(), Memorization()
    before.curves.append({"epoch": 0, "train/wrong_given": 0.1})
    after.load_state_dict(before.state_dict())
    assert after.curves == [{"epoch": 0, "train/wrong_given": 0.1}]


def test_it_needs_wrong_labels(train, caplog):
    code, _ = train("regularizer=none", *QUICK, *MEASURED)
    assert code == 2
    code, _ = train(
        "regularizer=node_ce", "trainer.max_epochs=1", "logger=none", "callbacks=[default,memorization]"
    )
    assert code == 2
    with pytest.raises(UserError, match="1 or more"):
        Memorization(every=0)
