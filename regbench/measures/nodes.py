"""What happens to a graph's nodes in training: memorised labels, semantic labels, and the geometry of the codes."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from regbench.errors import UserError
from regbench.functional.coding_rate import class_coding_rate, coding_rate
from regbench.measures.memorization import counts, shares
from regbench.regularizers.node_classification.base import Graph, NodeMethod


def mean_class_cosine(z: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Mean cosine between the class means of z (N, p), over the pairs of classes; 0 with fewer than two classes.

    >>> z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> round(mean_class_cosine(z, torch.tensor([0, 0, 1, 2]), 3).item(), 4)  # (0 + 2 · 0.7071) / 3
    0.4714
    """
    total = z.new_zeros(num_classes, z.shape[1]).index_add_(0, label, z)
    means = F.normalize(total[label.bincount(minlength=num_classes) > 0], dim=1)
    n = len(means)
    return ((means @ means.T).sum() - (means**2).sum()) / max(n * (n - 1), 1)


class NodeMeasures(pl.Callback):
    """Measures on all nodes of a graph, in evaluation mode, against the true labels; training never sees them.

    Logged after an epoch, as `train/…`:

    - `wrong_given`, `wrong_true`, `wrong_other`, `clean_accuracy`: predictions on the training nodes, as
      `regbench.measures.memorization` has them, where their labels are noisy;
    - for a method that makes labels of its own (`semantic`): `semantic_train` and `semantic_all`, shares of them that
      are right among the training nodes and among all, and `denoised_train`, that of the labels after denoising;
    - for a backbone that gives codes: `class_cosine`, mean cosine between the means of the true classes; `code_norm`,
      mean L2 norm of the codes; `rate_reduction`, R − Rc of the true classes.

    At the test: `test/accuracy_last`, the test accuracy after the last epoch, whichever epoch is tested (only where the
    run trained), and `test/memorized`, the first of the shares above.

    Args:
        every: epochs between two measurements; the last epoch is always measured. One costs a pass forward.
        eps: distortion of the coding rates R and Rc.
    """

    def __init__(self, *, every: int = 10, eps: float = 0.05):
        if every < 1 or eps <= 0:
            raise UserError(
                f"callbacks.nodes.every={every} is a number of epochs, 1 or more; callbacks.nodes.eps={eps} is above 0."
            )
        self.every = every
        self.eps = eps
        self.last: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not isinstance(module, NodeMethod):
            raise UserError("callbacks=nodes measures node classification; leave it out for images.")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every and epoch < trainer.max_epochs:
            return
        _, measured = self._measure(trainer, module)
        module.log_dict({f"train/{name}": value for name, value in measured.items()})

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        test = trainer.datamodule.sets.test
        logits, _ = self._measure(trainer, module)
        self.last = float((logits[test.index].argmax(1) == test.labels).double().mean())

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        _, measured = self._measure(trainer, module)
        logged = {} if self.last is None else {"accuracy_last": self.last}
        if "wrong_given" in measured:
            logged["memorized"] = measured["wrong_given"]
        module.log_dict({f"test/{name}": value for name, value in logged.items()})

    @torch.no_grad()
    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule) -> tuple[Tensor, dict[str, float]]:
        """Logits (N, C) of all nodes on the CPU, and the measures."""
        data = trainer.datamodule
        graph = Graph(**data.train_loader(module.device).batch)
        true, train = data.sets.graph.labels, data.sets.train
        training = module.training
        module.eval()
        logits = module.predict(graph).float().cpu()
        values: dict[str, float] = {}
        if module.takes_codes:
            z, label = module(graph.features, graph.edges).float(), true.to(module.device)
            values["class_cosine"] = float(mean_class_cosine(z, label, module.num_classes))
            values["code_norm"] = float(z.norm(dim=1).mean())
            reduction = coding_rate(z, self.eps) - class_coding_rate(z, label, self.eps)
            values["rate_reduction"] = float(reduction)
        module.train(training)
        if train.clean is not None:
            values |= shares(counts(logits[train.index].argmax(1), train.labels, train.clean))
        semantic = getattr(module, "semantic", None)
        if semantic is not None:
            right = semantic.cpu() == true
            denoised = module.prepare(graph)[1].cpu()[train.index].argmax(1)
            values["semantic_all"] = float(right.double().mean())
            values["semantic_train"] = float(right[train.index].double().mean())
            values["denoised_train"] = float((denoised == true[train.index]).double().mean())
        return logits, values
