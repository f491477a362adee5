"""The geometry of last-layer features of training images and of their mixtures (callback `neural_collapse`)."""

import logging
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from regbench import seeding
from regbench.backbones.backbone import Backbone
from regbench.data.augment import normalization
from regbench.data.loaders import EvalLoader
from regbench.data.module import ImageDataModule
from regbench.data.sets import Split
from regbench.data.streaming import EvalStream
from regbench.errors import UserError
from regbench.functional import neural_collapse as nc
from regbench.functional import unconstrained_features as model
from regbench.measures.pictures import log_picture

log = logging.getLogger("regbench")

PROBED = 3  # classes whose images are mixed: three span a plane
PAIRS = ((0, 1), (0, 2), (1, 2))


class Probe(NamedTuple):
    """Features of mixed images of three classes, of L shares.

    Attributes:
        classes: the three classes.
        lam: (L,) from 0 to 1.
        same: (L, 3n, d), h(λ x + (1 − λ) x'), x and x' different images of one class.
        same_class: (3n,), 0 … 2, its place in `classes`.
        different: (L, 3n, d), x of the first and x' of the second class of a pair.
        different_pair: (3n,), 0 … 2, its place in PAIRS.
        logits: (L, 3n, k), of the different-class mixtures.
    """

    classes: list[int]
    lam: Tensor
    same: Tensor
    same_class: Tensor
    different: Tensor
    different_pair: Tensor
    logits: Tensor


class Unmixed(NamedTuple):
    """Features (N, d), logits (N, k) and labels (N,) of images of every class as they are."""

    features: Tensor
    logits: Tensor
    label: Tensor


def geometry(probe: Probe, unmixed: Unmixed, weight: Tensor) -> dict[str, float]:
    """The measures, by name; see docs/papers/mixup_neural_collapse.md.

    Args:
        weight: (k, d) of the last linear layer.
    """
    k = len(weight)
    rows = weight - weight.mean(0)
    means = nc.class_means(unmixed.features, unmixed.label, k)
    centre = means.mean(0)
    shares = len(probe.lam)
    same = probe.same.flatten(0, 1)
    same_class = probe.same_class.repeat(shares)
    own_row = rows[torch.tensor(probe.classes, device=weight.device)][same_class]
    norms = norm_curves(probe, centre)
    half = int((probe.lam - 0.5).abs().argmin())
    lam = probe.lam[half]
    chord = torch.lerp(probe.different[0], probe.different[-1], lam) - centre
    distance, c = _model_distance(probe, k)
    values = {
        "align_same": nc.alignment(same, centre, own_row),
        "same_spread": nc.relative_spread(same, same_class, PROBED),
        "chord_residual": nc.chord_residual(probe.different, probe.lam),
        "norm_over_chord": norms["different"][half] / chord.norm(dim=1).mean(),
        "norm_over_same": norms["different"][half] / norms["same"].mean(),
        "nc1": nc.within_class_variability(unmixed.features, unmixed.label, k),
        "nc2": nc.etf_error(means),
        "nc2_weight": nc.etf_error(weight),
        "nc3": nc.self_duality(weight, means),
        "nc4": nc.nearest_mean_disagreement(unmixed.features, unmixed.logits, means),
        "ufm_distance": distance,
        "ufm_c": c,
    }
    return {name: float(value) for name, value in values.items()}


def norm_curves(probe: Probe, centre: Tensor) -> dict[str, Tensor]:
    """Mean ‖h − centre‖ at each share, (L,), of same-class and of different-class mixtures."""
    return {
        "same": (probe.same - centre).norm(dim=2).mean(1),
        "different": (probe.different - centre).norm(dim=2).mean(1),
    }


def _model_distance(probe: Probe, num_classes: int) -> tuple[float, float]:
    """Distance of the different-class logits to the unconstrained features model, and its fitted c."""
    lam = probe.lam.tolist()
    pairs = [(probe.classes[a], probe.classes[b]) for a, b in PAIRS]
    targets = np.stack([model.mixed_target(num_classes, x, *pair) for x in lam for pair in pairs])
    rows = torch.arange(len(lam))[:, None] * len(PAIRS) + probe.different_pair.cpu()
    return model.fit_scale(probe.logits.flatten(0, 1).cpu().numpy(), targets, rows.flatten().numpy())


@contextmanager
def _as_it_was(backbone: Backbone, train_mode: bool):
    """Training or evaluation mode for a while; modes, buffers (batch norm's statistics) and random state come back."""
    modes = {module: module.training for module in backbone.modules()}
    buffers = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)  # dropout draws alike at every probe
            backbone.train(train_mode)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in backbone.named_buffers():
                buffer.copy_(buffers[name])


class NeuralCollapse(pl.Callback):
    """Mixes training images of three classes over a grid of shares and measures where their features lie.

    Logs `test/<measure>` at the test and `train/<measure>` at the probed epochs. Draws the features in the plane of
    the three classes' classifier rows into `figures/` of the run's folder, and to W&B where that is on.

    Args:
        classes: three classes; null: drawn from `seed`.
        images: of each class, as they are (not augmented); fewer where a class has fewer.
        shares: number of shares λ from 0 to 1, odd and at least 3.
        train_mode: whether the network is probed in training mode (batch norm by the batch's statistics).
        epochs: at whose end the curves are measured, counted from 0; [] measures at the test only.
        layers: whether the outputs of the network's stages are measured and drawn too.
        figures: whether pictures are drawn.
        batch_size: images a pass of those that are not mixed. A mixed pass has six times `images`.
        seed: draws classes and images; the same for every run, so that rows of a table see the same images.
    """

    def __init__(
        self,
        *,
        classes: Sequence[int] | None = None,
        images: int = 32,
        shares: int = 11,
        train_mode: bool = True,
        epochs: Sequence[int] = (),
        layers: bool = False,
        figures: bool = True,
        batch_size: int = 128,
        seed: int = 0,
    ):
        if classes is not None and len(set(classes)) != PROBED:
            raise UserError(
                f"callbacks.neural_collapse.classes={list(classes)}: give three different classes, or null."
            )
        if shares < 3 or shares % 2 == 0:
            raise UserError(
                f"callbacks.neural_collapse.shares={shares}: an odd number, 3 or more (0, …, 0.5, …, 1)."
            )
        if images < 2 or batch_size < 2:
            raise UserError(
                f"callbacks.neural_collapse: images={images} and batch_size={batch_size} must be at least 2."
            )
        self.classes = classes
        self.images = images
        self.shares = shares
        self.train_mode = train_mode
        self.epochs = set(epochs)
        self.layers = layers
        self.figures = figures
        self.batch_size = batch_size
        self.seed = seed

    # -- Lightning -----------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch in self.epochs:
            self._probe(trainer, module, "train", f"epoch-{trainer.current_epoch:04d}")

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        with torch.inference_mode(False):  # the test's own mode would mark what batch norm keeps
            self._probe(trainer, module, "test", "test")

    def _probe(self, trainer: pl.Trainer, module: pl.LightningModule, prefix: str, name: str) -> None:
        data = trainer.datamodule
        positions = self.positions(data)
        if positions is None:
            return
        probes, unmixed = self.collect(module.backbone, data, *positions, module.device)
        weight = module.backbone.classifier.weight.detach().flatten(1)
        for measure, value in geometry(probes[""], unmixed, weight).items():
            module.log(f"{prefix}/{measure}", value)
        for layer, probe in probes.items():
            if layer:
                residual = float(nc.chord_residual(probe.different, probe.lam))
                module.log(f"{prefix}/chord_residual_{layer.replace('.', '_')}", residual)
        if self.figures:
            title = f"{name}, classes {', '.join(map(str, probes[''].classes))}"
            log_picture(
                trainer,
                f"neural_collapse-{name}",
                f"{prefix}/neural_collapse",
                lambda path: draw(path, probes, unmixed, weight, title),
            )

    # -- images --------------------------------------------------------------------------------------------------

    def positions(self, data: ImageDataModule) -> tuple[list[int], Tensor, Tensor] | None:
        """The three classes, the positions (3, n) of their images and those (N,) of images of every class, shuffled.

        None, with a warning, where a class has fewer than two training images.
        """
        label, k = data.sets.train.labels, data.num_classes
        if k < PROBED or (self.classes is not None and not all(0 <= c < k for c in self.classes)):
            raise UserError(
                f"callbacks=neural_collapse mixes three classes, {self.classes or 'any'}; "
                f"this set has {k} (0 … {k - 1})."
            )
        each = min(self.images, int(label.bincount(minlength=k).min()))
        if each < 2:
            log.warning("neural_collapse measures nothing: a class has fewer than two training images.")
            return None
        generator = seeding.generator(self.seed, "neural_collapse")
        order = torch.randperm(len(label), generator=generator)
        drawn = torch.stack([order[label[order] == c][:each] for c in range(k)])
        classes = sorted(torch.randperm(k, generator=generator)[:PROBED].tolist())
        classes = list(self.classes) if self.classes is not None else classes
        every = drawn.flatten()[torch.randperm(drawn.numel(), generator=generator)]
        return classes, drawn[classes], every

    def _loader(
        self, data: ImageDataModule, positions: Tensor, device: torch.device
    ) -> EvalLoader | EvalStream:
        split = data.sets.train.select(positions)
        pixels = normalization(*data.mean_std, device)
        # A last batch of one image would have no statistics for batch norm; batches are as even as they can be.
        size = min(self.batch_size, len(split))
        if split.streams:
            return EvalStream(split, size, pixels, data.node["image_size"], data.node["workers"], device)
        split = Split(split.images.to(device), split.labels.to(device))
        return EvalLoader(split, size, pixels, size=data.shape[1:])

    def collect(
        self,
        backbone: Backbone,
        data: ImageDataModule,
        classes: list[int],
        probed: Tensor,
        every: Tensor,
        device,
    ) -> tuple[dict[str, Probe], Unmixed]:
        """Features of the mixtures, in the last layer ("") and in the stages if asked for, and of plain images."""
        n = probed.shape[1]
        image = torch.cat([batch["image"] for batch in self._loader(data, probed.flatten(), device)])
        place = torch.arange(PROBED * n, device=device).view(PROBED, n)
        first, second = zip(*((place[a], place[b]) for a, b in PAIRS), strict=True)
        # Same class: an image with the next one of its class. Different classes: the i-th images of both.
        left = torch.cat([place.flatten(), *first])
        right = torch.cat([place.roll(1, dims=1).flatten(), *second])
        third = torch.arange(PROBED, device=device).repeat_interleave(
            n
        )  # same: its class; different: its pair
        lam = torch.linspace(0, 1, self.shares, dtype=torch.float64)
        stages = backbone.stages if self.layers else ()
        seen: dict[str, list[Tensor]] = {name: [] for name in ("", *stages)}
        logits = []
        with _as_it_was(backbone, self.train_mode):
            parts = [
                (*backbone.outputs(batch["image"])[:2], batch["label"])
                for batch in self._loader(data, every, device)
            ]
            for share in lam.tolist():
                out = backbone.outputs(torch.lerp(image[right], image[left], share), collect=stages)
                logits.append(out.logits[PROBED * n :].float())
                seen[""].append(out.features.float())
                for name in stages:
                    seen[name].append(pooled(out.activations[name]).float())
        unmixed = Unmixed(*(torch.cat(part) for part in zip(*((h, z, y) for z, h, y in parts), strict=True)))
        lam = lam.to(device, torch.float32)
        probes = {
            name: Probe(
                classes, lam, h[:, : PROBED * n], third, h[:, PROBED * n :], third, torch.stack(logits)
            )
            for name, h in ((name, torch.stack(rows)) for name, rows in seen.items())
        }
        return probes, unmixed


def pooled(activation: Tensor) -> Tensor:
    """A stage's output as (B, D): the mean over positions of maps (B, D, H, W) or of tokens (B, T, D)."""
    if activation.ndim == 4:
        return activation.mean((2, 3))
    return activation.mean(1) if activation.ndim == 3 else activation


def draw(path: Path, probes: dict[str, Probe], unmixed: Unmixed, weight: Tensor, title: str) -> None:
    """A picture with the features of each layer in the plane of three classes, and the norm of h against λ.

    Same-class mixtures are red, different-class ones blue, darker the nearer λ is to 1/2; the classifier's rows are
    black. Of earlier layers the plane is that of the three class means.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * (len(probes) + 1), 4), layout="constrained")
    panels = figure.subplots(1, len(probes) + 1)
    figure.suptitle(title)
    for panel, (name, probe) in zip(panels, probes.items(), strict=False):
        rows = nc.class_means(probe.same[-1], probe.same_class, PROBED) if name else weight[probe.classes]
        bright = (2 * (probe.lam - 0.5).abs()).cpu().numpy()[:, None].repeat(probe.same.shape[1], 1).ravel()
        for points, channel in ((probe.different, 2), (probe.same, 0)):
            plane = nc.plane_of_three(rows, points.flatten(0, 1)).cpu().numpy()
            colour = np.zeros((len(plane), 3))
            colour[:, channel] = bright
            panel.scatter(*plane.T, s=4, c=colour, linewidths=0)
        corners = nc.plane_of_three(rows, rows).cpu().numpy()
        panel.scatter(*corners.T, s=60, c="black", marker="^")
        panel.set_title(name or "last layer")
        panel.set_aspect("equal", adjustable="datalim")
    means = nc.class_means(unmixed.features, unmixed.label, len(weight))
    curves = norm_curves(probes[""], means.mean(0))
    for kind, colour in (("same", "red"), ("different", "blue")):
        panels[-1].plot(probes[""].lam.cpu(), curves[kind].cpu(), color=colour, label=f"{kind} class")
    panels[-1].set(title="‖h − global mean‖", xlabel="λ", ylim=(0, None))
    panels[-1].legend()
    figure.savefig(path, dpi=80)
