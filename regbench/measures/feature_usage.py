"""How many features the classifier needs: accuracy against their number, and how they spread (`feature_usage`)."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from regbench.functional import nested
from regbench.functional.distributed import world_size
from regbench.measures.pictures import log_picture


def effective_rank(features: Tensor) -> tuple[Tensor, float]:
    """Singular values (d,) of the features' covariance, and their participation ratio (Σ s)² / Σ s², from 1 to d.

    Args:
        features: (N, d).

    >>> effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))[1]
    2.0
    """
    values = torch.linalg.svdvals(torch.cov(features.T.double(), correction=0).reshape(features.shape[1], -1))
    total = values.square().sum()
    return values, float(values.sum().square() / total) if total > 0 else 0.0


class FeatureUsage(pl.Callback):
    """Predicts the test images with the first 1, 2, … d features of the classifier's input, all in one pass.

    Logs at the test:

    - `test/best_k`: the number of features with the highest test accuracy, and `test/best_k_share` of d. Only to be
      looked at: it is chosen on the test images, other than the K that a method has chosen;
    - `test/accuracy_all_features`: accuracy with all d;
    - `test/effective_rank`: participation ratio of the singular values of the features' covariance;
    - `test/mask_variance`, for methods that draw a nested mask: mean over the images of the variance term of theorem 1
      of Chen et al. 2022, in nats.

    Draws both curves to figures/feature_usage.png in the run's folder, and to W&B where that is on. Of a method with
    two networks the logits are the mean of both, and the rank is that of the first network's features.

    Args:
        figures: whether the picture is drawn.
    """

    def __init__(self, *, figures: bool = True):
        self.figures = figures

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        networks = getattr(module, "pair", (module.backbone,))
        classifiers = [nested.unmasked(network.classifier) for network in networks]
        probabilities = next(
            (m.width_probabilities for m in module.members if hasattr(m, "width_probabilities")), None
        )
        width = classifiers[0][0].shape[1]
        right = torch.zeros(width, dtype=torch.int64, device=module.device)
        images = torch.zeros((), dtype=torch.int64, device=module.device)
        variance = torch.zeros((), device=module.device)
        features = []
        with trainer.strategy.precision_plugin.forward_context():
            # The test has filled the loader's data already; each process measures its own share.
            for batch in trainer.datamodule.test_loader(
                module.device, trainer.global_rank, trainer.world_size
            ):
                seen = [network.outputs(batch["image"]).features.float() for network in networks]
                right += nested.right_at_each_width(seen, classifiers, batch["label"])
                images += len(batch["label"])
                features.append(seen[0])
                if probabilities is not None:
                    for logits in nested.chunked_logits(seen, classifiers):
                        variance += nested.mask_variance(logits, probabilities).sum()
        if world_size() > 1:
            right, images, variance = (
                trainer.strategy.reduce(value, reduce_op="sum") for value in (right, images, variance)
            )
        accuracy = right / images
        best, _ = nested.choose_width(accuracy, 0.0)
        values, rank = effective_rank(torch.cat(features))
        measures = {
            "best_k": float(best),
            "best_k_share": best / width,
            "accuracy_all_features": float(accuracy[-1]),
            "effective_rank": rank,
        }
        if probabilities is not None:
            measures["mask_variance"] = float(variance / images)
        module.log_dict({f"test/{name}": value for name, value in measures.items()})
        if self.figures:
            mask = nested.mask_of(networks[0].classifier)
            chosen = None if mask is None else int(mask.kept)
            log_picture(
                trainer,
                "feature_usage",
                "test/feature_usage",
                lambda path: draw(path, accuracy.cpu(), values.cpu(), chosen),
            )


def draw(path: Path, accuracy: Tensor, values: Tensor, kept: int | None) -> None:
    """A picture: accuracy against the number of features, with the K that was chosen, and the singular values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(range(1, len(accuracy) + 1), accuracy)
    if kept is not None:
        left.axvline(kept, color="black", linestyle="--", label=f"K = {kept}, chosen on validation data")
        left.legend(fontsize="small")
    left.set(xlabel="features used", ylabel="test accuracy", xscale="log", ylim=(0, 1))
    right.semilogy(range(1, len(values) + 1), values.clamp(min=values.max() * 1e-12))
    right.set(xlabel="number", ylabel="singular value of the features' covariance")
    figure.savefig(path, dpi=80)
