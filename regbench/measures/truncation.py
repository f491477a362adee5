"""Accuracy, and latency, of a trained network whose layers are cut to low rank, without further training (callback
`truncation`).
"""

import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.benchmark import Timer
from torchmetrics.classification import MulticlassAccuracy

from regbench.backbones.low_rank import cut_to, factorise, layers_of, macs_by_rank, plain
from regbench.errors import UserError
from regbench.functional.low_rank import greedy_ranks, rank_at
from regbench.measures.pictures import log_picture
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod

SLICES = 10  # of a layer's rank, cut one by one in the search
# In a round each network makes its passes after the other: a machine is not always as fast.
ROUNDS, PASSES = 15, 10


class Truncation(pl.Callback):
    """Cuts copies of the tested network and logs their accuracy.

    - `test/accuracy_rank_<p>` and `test/macs_rank_<p>`: every layer at p % of its rank, and the multiply-accumulates of
      this over those of the network with whole layers;
    - `test/accuracy_macs_<p>` and `test/macs_macs_<p>`: each layer at a rank of its own, found by a greedy search for
      p % of these multiply-accumulates (`regbench.functional.low_rank.greedy_ranks`, with the loss on held-out images),
      and their share as it was found: larger than p % where rank 1 everywhere takes more;
    - with `latency`, `test/ms_rank_<p>`, and `test/ms_uncut` of the network as it was trained: milliseconds that a
      forward pass of the exported network takes, the median of 15 rounds in which the networks take turns with 10
      passes each (torch.utils.benchmark); and figures/latency.png, the accuracy over them.

    A network with layers in factors is cut to their first components; any other is put into factors by SVD first, so
    that every method can be measured. Batch norms get the statistics of the cut network, from an epoch of training
    images; the search itself leaves them as they are.

    Args:
        shares: of the rank, in (0, 1].
        budgets: shares of the multiply-accumulates, in (0, 1).
        samples: validation images (without a validation split: training images) that the search looks at.
        latency: test images in a pass whose time is measured, in one batch; 0: no time is measured.

    Raises:
        UserError: an option is out of range, or the method classifies no images.
    """

    def __init__(
        self,
        shares: Sequence[float] = (0.5, 0.25, 0.1, 0.05),
        budgets: Sequence[float] = (0.5, 0.25),
        samples: int = 512,
        latency: int = 0,
    ):
        shares, budgets = [float(x) for x in shares], [float(x) for x in budgets]
        if not all(0 < x <= 1 for x in shares) or not all(0 < x < 1 for x in budgets) or samples < 1:
            raise UserError(
                "callbacks.truncation needs shares in (0, 1], budgets in (0, 1) and samples of 1 or more; it got "
                f"shares={shares}, budgets={budgets}, samples={samples}."
            )
        if latency < 0:
            raise UserError(
                f"callbacks.truncation.latency={latency} must be a number of images, or 0 for none."
            )
        self.shares, self.budgets, self.samples, self.latency = shares, budgets, samples, latency

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if not isinstance(module, ClassificationMethod):
            raise UserError(
                f"callbacks=truncation measures classifiers of images; leave it out with {type(module).__name__}."
            )
        tested = len(trainer.datamodule.sets.test)
        if self.latency > tested:
            raise UserError(f"callbacks.truncation.latency={self.latency}: there are {tested} test images.")

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        with torch.inference_mode(False), torch.no_grad(), trainer.precision_plugin.forward_context():
            network = copy.deepcopy(module.backbone)
            if not layers_of(network):
                network = module.plain_backbone()
                factorise(network)
            network.eval()
            self._measure(trainer, module, network)

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule, network: nn.Module) -> None:
        layers = list(layers_of(network).values())
        shape = tuple(next(_images(trainer, module, "test"))[0].shape[1:])
        macs = macs_by_rank(network, shape, deployed=True)
        whole = macs([layer.full_rank for layer in layers])
        statistics = {name: value.clone() for name, value in network.state_dict().items()}

        def accuracy(ranks: Sequence[int]) -> Tensor:
            with cut_to(layers, ranks):
                images = (image for image, _ in _images(trainer, module, "train"))
                update_bn(images, network)
                score = MulticlassAccuracy(module.num_classes, average="micro", sync_on_compute=False)
                score.to(module.device)
                for image, label in _images(trainer, module, "test"):
                    score.update(network(image), label)
            network.load_state_dict(statistics)
            return score.compute()

        uncut = [layer.rank for layer in layers]
        cuts = {f"rank_{100 * share:g}": [rank_at(rank, share) for rank in uncut] for share in self.shares}
        accuracies = {name: accuracy(ranks) for name, ranks in cuts.items()}
        for name, ranks in cuts.items():
            module.log(f"test/accuracy_{name}", accuracies[name])
            module.log(f"test/macs_{name}", macs(ranks) / whole)
        if self.latency:
            image = self._first_images(trainer, module)
            exported = {}
            for name, ranks in {"uncut": uncut, **cuts}.items():
                with cut_to(layers, ranks):
                    exported[name] = plain(network)
                # New layers are not, and a network that is mixed is slower.
                if _channels_last(module.backbone):
                    exported[name].to(memory_format=torch.channels_last)
            times = milliseconds(exported, image)
            module.log_dict({f"test/ms_{name}": time for name, time in times.items()})
            points = {name: (times[name], float(found)) for name, found in accuracies.items()}
            points["uncut"] = times["uncut"], float(accuracy(uncut))
            log_picture(
                trainer, "latency", "test/latency", lambda path: draw_latency(path, points, len(image))
            )
        if not self.budgets:
            return
        held_out = self._held_out(trainer, module)

        def loss(ranks: Sequence[int]) -> float:
            with cut_to(layers, ranks):
                total = sum(F.cross_entropy(network(x), y, reduction="sum") for x, y in held_out)
            return float(total)

        ranks = uncut  # the search for a smaller budget goes on from the larger one
        for budget in sorted(self.budgets, reverse=True):
            ranks = greedy_ranks(ranks, loss, macs, budget * whole, SLICES)
            module.log(f"test/accuracy_macs_{100 * budget:g}", accuracy(ranks))
            module.log(f"test/macs_macs_{100 * budget:g}", macs(ranks) / whole)

    def _first_images(self, trainer: pl.Trainer, module: pl.LightningModule) -> Tensor:
        """The first `latency` test images as one batch, whatever the loader's batches are."""
        images, count = [], 0
        for image, _ in _images(trainer, module, "test"):
            images.append(image)
            count += len(image)
            if count >= self.latency:
                break
        return torch.cat(images)[: self.latency]

    def _held_out(self, trainer: pl.Trainer, module: pl.LightningModule) -> list[tuple[Tensor, Tensor]]:
        """Every n-th validation image, so that all classes come; without any, training images, which are shuffled."""
        validation = trainer.datamodule.sets.val
        if validation is None:
            batches = []
            for image, label in _images(trainer, module, "train"):
                batches.append((image, label))
                if sum(len(label) for _, label in batches) >= self.samples:
                    break
            return batches
        every, seen, batches = -(-len(validation) // self.samples), 0, []
        for image, label in _images(trainer, module, "val"):
            first = -seen % every
            seen += len(label)
            if len(label[first::every]):
                batches.append((image[first::every], label[first::every]))
        return batches


def _channels_last(network: nn.Module) -> bool:
    last = torch.channels_last
    weights = (weight for weight in network.parameters() if weight.dim() == 4)
    return any(weight.is_contiguous(memory_format=last) and not weight.is_contiguous() for weight in weights)


def milliseconds(networks: Mapping[str, nn.Module], image: Tensor) -> dict[str, float]:
    """Milliseconds of a forward pass of each network on images (B, C, H, W), the median of rounds in turn."""
    threads = torch.get_num_threads()  # a Timer's own default is one
    timers = {
        name: Timer("network(image)", globals={"network": network, "image": image}, num_threads=threads)
        for name, network in networks.items()
    }
    rounds = [{name: timer.timeit(PASSES).mean for name, timer in timers.items()} for _ in range(ROUNDS)]
    return {name: 1000 * statistics.median(found[name] for found in rounds) for name in networks}


def draw_latency(path: Path, points: Mapping[str, tuple[float, float]], images: int) -> None:
    """Writes accuracy over milliseconds, a labelled point for each network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    ax = figure.subplots()
    ax.plot(*zip(*sorted(points.values()), strict=True), color="#b0b0b1", lw=1)
    for name, (time, accuracy) in points.items():
        ax.plot(time, accuracy, "o", color="#0072b2")
        label = name.replace("rank_", "") + (" %" if name.startswith("rank_") else "")
        ax.annotate(label, (time, accuracy), xytext=(5, -11), textcoords="offset points", fontsize=8)
    ax.set(
        xlabel=f"ms for {images} image{'s' if images > 1 else ''}",
        ylabel="test accuracy",
        xlim=(0, 1.2 * max(time for time, _ in points.values())),
    )
    ax.set_title("Cut to a share of each layer's rank", fontsize=10)
    ax.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _images(trainer: pl.Trainer, module: pl.LightningModule, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (image, label) of a split, all of it on every process, as many as the trainer's limit says.

    Training images come augmented and in the order of the first epoch, whatever the epoch.
    """
    loader = getattr(trainer.datamodule, f"{split}_loader")(module.device)
    limit = getattr(trainer, f"limit_{split}_batches")
    for batch in islice(loader, limit if isinstance(limit, int) else int(limit * len(loader))):
        yield tuple(batch_fields(batch, ("image", "label")))
