"""The family's regression: its loss and what it measures, on numbers worked out by hand."""

import pytest
import torch
from torch import nn

from regbench.errors import UserError
from regbench.regularizers.theory.base import SampleRegression


class LeastSquares(SampleRegression):
    task = "regression"


def least_squares() -> LeastSquares:
    """f(x) = 2 x1 − x2."""
    network = nn.Linear(2, 1, bias=False)
    network.weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))
    return LeastSquares(network, 1)


def test_the_loss_is_the_mean_squared_error_of_the_network_and_reaches_its_weights():
    method = least_squares()
    batch = {"features": torch.tensor([[1.0, 0.0], [0.0, 3.0]]), "target": torch.tensor([[1.0], [1.0]])}
    loss = method.training_loss(batch)  # (2 − 1)² and (−3 − 1)²
    assert loss.item() == 8.5
    loss.backward()  # 2 / 2 · (1 · (1, 0) − 4 · (0, 3))
    assert next(method.parameters()).grad.tolist() == [[1.0, -12.0]]


def test_the_error_of_several_batches_is_that_of_all_rows():
    method = least_squares()
    for features, target in (([[1.0, 0.0]], [[1.0]]), ([[0.0, 3.0], [0.0, 0.0]], [[1.0], [2.0]])):
        method.validation_step({"features": torch.tensor(features), "target": torch.tensor(target)}, 0)
    assert method.val_metrics.compute()["val/mse"].item() == pytest.approx((1 + 16 + 4) / 3)


def test_a_batch_without_a_target_is_refused():
    with pytest.raises(UserError, match="target"):
        least_squares().training_loss({"features": torch.zeros(1, 2)})
