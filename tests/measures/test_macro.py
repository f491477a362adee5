"""Macro measures against scikit-learn's on the same predictions."""

import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, roc_auc_score
from torch.utils.data import DataLoader, TensorDataset

from regbench.backbones.small import mlp
from regbench.measures.macro import Macro
from regbench.regularizers.classification.none import NoRegularizer


def test_macro_measures_are_scikit_learns():
    torch.manual_seed(0)
    # Classes of 60, 25 and 15 images, some of which a network of one layer can tell apart.
    label = torch.tensor([0] * 60 + [1] * 25 + [2] * 15)
    image = torch.randn(100, 1, 2, 2) + 0.5 * label.view(-1, 1, 1, 1)
    model = NoRegularizer(mlp(1, (2, 2), 3, hidden=()), 3)
    with torch.no_grad():
        scores = model.eval()(image).double().softmax(1)
    trainer = pl.Trainer(
        callbacks=[Macro()],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(image, label), batch_size=16)
    (metrics,) = trainer.test(model, loader, verbose=False)
    truth, guess = label.numpy(), scores.argmax(1).numpy()
    assert set(guess) == {0, 1, 2}
    expected = {
        "macro_f1": f1_score(truth, guess, average="macro"),
        "macro_precision": precision_score(truth, guess, average="macro"),
        "balanced_accuracy": balanced_accuracy_score(truth, guess),
        "auroc": roc_auc_score(truth, scores.numpy(), multi_class="ovr"),
    }
    for name, value in expected.items():
        assert metrics[f"test/{name}"] == pytest.approx(value, abs=1e-5), name
    assert trainer.test(model, loader, verbose=False)[0]["test/auroc"] == metrics["test/auroc"]  # starts anew
