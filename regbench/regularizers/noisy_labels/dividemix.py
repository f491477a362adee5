"""DivideMix: noisy labels as semi-supervised learning (Li, Socher & Hoi 2020).

"code" is the released code, https://github.com/LiJunnan1992/DivideMix (Train_cifar.py), which the equations follow.
"""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from regbench import seeding
from regbench.data.module import ImageDataModule
from regbench.errors import UserError
from regbench.functional import mixing
from regbench.functional.distributed import world_size
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch
from regbench.regularizers.noisy_labels.base import TwoNetworks

SMALLEST_PART = 2  # samples: batch norm can't train on one


def unit_range(losses: Tensor) -> Tensor:
    """(l − min l) / (max l − min l), (N,); zeros where all are alike.

    >>> unit_range(torch.tensor([1.0, 2.0, 5.0]))
    tensor([0.0000, 0.2500, 1.0000])
    """
    low, high = losses.aminmax()
    return (losses - low) / (high - low) if high > low else torch.zeros_like(losses)


def clean_probability(losses: Tensor, seed: int) -> Tensor:
    """w (N,) in float64: the posterior of the component with the smaller mean, of two Gaussians fitted to the losses.

    scikit-learn's fit with the code's options: k-means starts it, at most 10 steps of EM, 5e-4 added to the variances.

    Args:
        losses: (N,), in [0, 1].
        seed: of k-means.

    >>> clean_probability(torch.tensor([0.1, 0.0, 0.9, 1.0]), seed=0).round(decimals=3).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    if (losses == losses[0]).all():
        return torch.ones_like(losses, dtype=torch.float64)  # nothing tells the samples apart
    values = losses.double().cpu().numpy()[:, None]
    mixture = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten steps are meant to be enough
        mixture.fit(values)
    return torch.from_numpy(mixture.predict_proba(values)[:, mixture.means_.argmin()])


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """p_c^(1/T) / Σ_j p_j^(1/T), (B, C).

    >>> sharpen(torch.tensor([[0.75, 0.25]]), 0.5)  # 9 : 1
    tensor([[0.9000, 0.1000]])
    """
    powers = p ** (1 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def refined(label: Tensor, p: Tensor, w: Tensor, temperature: float) -> Tensor:
    """Co-refinement: the sharpened w y + (1 − w) p, (B, C).

    Args:
        label: y, int64 (B,).
        p: (B, C), the network's mean prediction over the views.
        w: (B,), probability that the label is right.

    >>> refined(torch.tensor([0]), torch.tensor([[0.5, 0.5]]), torch.tensor([0.5]), 0.5)
    tensor([[0.9000, 0.1000]])
    """
    one_hot = F.one_hot(label, p.shape[1]).to(p)
    return sharpen(torch.lerp(p, one_hot, w[:, None].to(p)), temperature)


def prior_penalty(logits: Tensor) -> Tensor:
    """KL(uniform || mean prediction of the batch) = Σ_c (1/C) log((1/C) / p̄_c), a scalar.

    >>> logits = torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log()
    >>> prior_penalty(logits)  # (log(0.5 / 0.75) + log(0.5 / 0.25)) / 2
    tensor(0.1438)
    """
    mean = logits.softmax(dim=1).mean(dim=0)
    return -(mean * logits.shape[1]).log().mean()


def negative_entropy(logits: Tensor) -> Tensor:
    """Mean over the batch of Σ_c p_c log p_c, in nats.

    >>> round(negative_entropy(torch.zeros(3, 4)).item(), 4)  # −log 4
    -1.3863
    """
    log_p = logits.log_softmax(dim=1)
    return (log_p.exp() * log_p).sum(dim=1).mean()


def ramped(weight: float, epochs: float, ramp_epochs: int) -> float:
    """The weight of the unlabelled loss: linear from 0 to `weight` over ramp_epochs, after `epochs` (a fraction too).

    >>> [ramped(25.0, e, 16) for e in (0, 4, 16, 100)], ramped(25.0, 0, 0)
    ([0.0, 6.25, 25.0, 25.0], 25.0)
    """
    return weight * min(epochs / ramp_epochs, 1.0) if ramp_epochs else weight


class Step(NamedTuple):
    """One step of the network `network` (0 or 1).

    Attributes:
        labelled, unlabelled: int64 (B,), (U,), positions in the training split.
        label: int64 (B,), labels of the labelled ones.
        w: (B,), probability that the label is right.
        epochs: since the warm-up, a fraction too.
    """

    network: int
    labelled: Tensor
    label: Tensor
    w: Tensor
    unlabelled: Tensor
    epochs: float


@register(
    "dividemix",
    task="noisy_labels",
    paper=Paper(
        title="DivideMix: Learning with Noisy Labels as Semi-supervised Learning",
        authors="Junnan Li, Richard Socher, Steven C. H. Hoi",
        year=2020,
        venue="ICLR",
        arxiv="2002.07394",
        code="https://github.com/LiJunnan1992/DivideMix",
    ),
)
class DivideMix(TwoNetworks):
    """Samples whose labels are probably wrong serve as unlabelled ones: each epoch a mixture of two Gaussians divides
    the training set by the losses of one network, and the other learns from both parts with MixMatch.

    After the warm-up the loader's batches only count the time. A network passes once over its labelled part in batches
    of half of `dataset.batch_size`, beside as many unlabelled images: first the first network, then the second (code).
    These steps are spread evenly over the epoch's batches. Both divisions are made at the start of the epoch.

    Where the losses divide nothing (fewer than two samples are above the threshold, or all are alike) every sample is
    labelled, with w = 1; without two unlabelled ones there is no unlabelled loss. The code fails on empty parts.

    Tested is the mean of both networks' logits (code: their sum, which predicts the same classes more confidently).

    Args:
        warmup_epochs: epochs of cross entropy before the first division.
        warmup_penalty: weight of the predictions' negative entropy in the warm-up.
        threshold: p, above which the probability w makes a sample a labelled one, in [0, 1).
        temperature: T, of the targets' sharpening.
        alpha: of the mixing share's Beta(alpha, alpha).
        weight: λ_u, of the unlabelled loss.
        ramp_epochs: epochs over which that weight rises from 0, after the warm-up.
        history: epochs whose losses are averaged before they divide.
        pretrained: whether the network's weights are pretrained; then both start from them but for the classifier.
    """

    automatic_optimization = False  # each network takes steps of its own

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        warmup_epochs: int = 2,
        warmup_penalty: float = 0.0,
        threshold: float = 0.5,
        temperature: float = 0.5,
        alpha: float = 4.0,
        weight: float = 25.0,
        ramp_epochs: int = 16,
        history: int = 1,
        pretrained: bool = False,
        **base,
    ):
        super().__init__(backbone, num_classes, pretrained=pretrained, **base)
        if warmup_epochs < 0 or ramp_epochs < 0 or history < 1:
            raise UserError(
                f"regularizer.warmup_epochs={warmup_epochs} and ramp_epochs={ramp_epochs} are 0 or more epochs, "
                f"history={history} 1 or more."
            )
        if not 0 <= threshold < 1:
            raise UserError(f"regularizer.threshold={threshold} is a probability, 0 or more and below 1.")
        if not (temperature > 0 and alpha > 0):
            raise UserError(f"regularizer.temperature={temperature} and alpha={alpha} must be above 0.")
        if not (weight >= 0 and warmup_penalty >= 0):
            raise UserError(
                f"regularizer.weight={weight} and warmup_penalty={warmup_penalty} must be at least 0."
            )
        if self.accumulate > 1:
            raise UserError(
                "dividemix can't accumulate gradients: each network takes steps of its own. Set "
                "trainer.accumulate_grad_batches=1."
            )
        self.warmup_epochs, self.warmup_penalty, self.threshold = warmup_epochs, warmup_penalty, threshold
        self.temperature, self.alpha, self.weight = temperature, alpha, weight
        self.ramp_epochs, self.history = ramp_epochs, history
        self._plan: list[Step] = []  # the steps of this epoch

    def on_data(self, train_size: int) -> None:
        # Both networks' losses of the last epochs; in checkpoints, so that a resumed run averages what it would have.
        self.register_buffer("losses", torch.zeros(2, self.history, train_size, device=self.device))

    # -- the losses ----------------------------------------------------------------------------------------------

    def pair_loss(self, batch: Batch) -> Tensor:
        """The warm-up's loss: the sum of both networks' cross entropy (and penalty)."""
        loss = 0.0
        for network in self.pair:
            logits = network(batch.image).float()
            loss = loss + F.cross_entropy(logits, batch.label)
            if self.warmup_penalty:
                loss = loss + self.warmup_penalty * negative_entropy(logits)
        return loss

    def mixmatch_loss(
        self,
        k: int,
        labelled: tuple[Tensor, Tensor],
        label: Tensor,
        w: Tensor,
        unlabelled: tuple[Tensor, Tensor] | None,
        epochs: float,
    ) -> Tensor:
        """The loss of network k, a scalar: L_x + λ_u L_u + the penalty of the prior.

        As in the code the network also guesses in training mode, view by view, and the other one in evaluation mode.

        Args:
            labelled: two views (B, C, H, W) of labelled images.
            label: (B,), their labels.
            w: (B,), probability that the label is right.
            unlabelled: two views (U, C, H, W), or None.
            epochs: since the warm-up.
        """
        network, other = self.pair[k].train(), self.pair[1 - k].eval()
        with torch.no_grad():
            guesses = []
            if unlabelled is not None:
                seen = [n(view).float().softmax(dim=1) for n in (network, other) for view in unlabelled]
                guesses = [sharpen(sum(seen) / 4, self.temperature)] * 2
            seen = [network(view).float().softmax(dim=1) for view in labelled]
            target = torch.cat([refined(label, sum(seen) / 2, w, self.temperature)] * 2 + guesses)
        image = torch.cat([*labelled, *(unlabelled or ())])
        generator = self.generator(f"mix {k}")
        lam = mixing.beta(self.alpha, generator)
        lam = max(lam, 1 - lam)
        partner = torch.randperm(len(image), generator=generator).to(image.device)
        image, target = (mixing.interpolate(rows, partner, lam) for rows in (image, target))
        self.keep_samples(image)
        logits, count = network(image).float(), 2 * len(label)
        loss = F.cross_entropy(logits[:count], target[:count]) + prior_penalty(logits)
        if unlabelled is None:
            return loss
        weight = ramped(self.weight, epochs, self.ramp_epochs)
        return loss + weight * F.mse_loss(logits[count:].softmax(dim=1), target[count:])

    # -- the division --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def divide(self, k: int) -> Tensor:
        """w (N,): for each training sample the probability that its label is right, by the losses of network k."""
        network, found = self.pair[k].eval(), []
        with self.trainer.strategy.precision_plugin.forward_context():
            for batch in self.trainer.datamodule.plain_train_loader(self.device):
                logits = network(batch["image"]).float()
                found.append(F.cross_entropy(logits, batch["label"], reduction="none"))
        losses = torch.cat(found)
        if not losses.isfinite().all():
            raise UserError(
                f"The losses that divide the training set are not finite numbers (epoch {self.current_epoch}). Lower "
                "optimizer.lr, or set trainer.gradient_clip_val=1."
            )
        past = self.current_epoch - self.warmup_epochs
        self.losses[k, past % self.history] = unit_range(losses)
        mean = self.losses[k, : min(past + 1, self.history)].mean(dim=0)
        # scikit-learn's seeds have 32 bits
        seed = seeding.derive(self.seed, f"mixture {k}", self.current_epoch) % 2**32
        return clean_probability(mean, seed).to(self.device, torch.float32)

    def plan(self, k: int, w: Tensor, label: Tensor, batch_size: int) -> list[Step]:
        """The steps of network k in this epoch: each labelled sample once, each unlabelled one before any comes again.

        Batches are as even as can be, so that none holds a single sample.

        Args:
            w: (N,), by the other network.
            label: int64 (N,).
            batch_size: labelled images of a step, and unlabelled ones, at most.
        """
        clean = w > self.threshold
        if clean.sum() < SMALLEST_PART:
            w, clean = torch.ones_like(w), torch.ones_like(clean)
        self.watch("labelled", clean.float().mean())
        parts = [part.nonzero().flatten() for part in (clean, ~clean)]
        if len(parts[1]) < SMALLEST_PART:
            parts[1] = parts[1][:0]
        generator = self.generator(f"division {k}")

        def batches(part: Tensor) -> list[Tensor]:
            order = torch.randperm(len(part), generator=generator).to(part.device)
            return list(part[order].tensor_split(max(-(-len(part) // batch_size), 1)))

        labelled, unlabelled = batches(parts[0]), []
        while len(unlabelled) < len(labelled):
            unlabelled += batches(parts[1])
        past, count = self.current_epoch - self.warmup_epochs, len(parts[0]) // batch_size + 1
        return [
            Step(k, own, label[own], w[own], other, past + i / count)
            for i, (own, other) in enumerate(zip(labelled, unlabelled, strict=False))
        ]

    # -- Lightning -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule
        if world_size() > 1:
            raise UserError(
                "dividemix trains on one process; set accelerator.devices=1 (and accelerator=gpu or cpu)."
            )
        if not isinstance(data, ImageDataModule):
            raise UserError(
                "dividemix draws batches of its own; train with train.py, or pass an ImageDataModule to fit."
            )
        if data.sets.train.streams:
            raise UserError(
                "dividemix draws its batches from images in memory, and this data set is streamed; choose another."
            )
        if data.node.get("labelled") is not None:
            raise UserError("dividemix takes all training labels; leave dataset.labelled null.")

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch >= self.warmup_epochs:
            data, w = self.trainer.datamodule, [self.divide(k) for k in (0, 1)]
            label = data.sets.train.labels.to(self.device)
            size = max(data.node["batch_size"] // 2, 1)  # code: the warm-up's batches are twice as large
            self._plan = [step for k in (0, 1) for step in self.plan(k, w[1 - k], label, size)]

    def training_step(self, batch, batch_idx: int) -> None:
        if self.current_epoch < self.warmup_epochs:
            loss = self.training_loss(batch)
            self.track(loss, batch_idx)
            self._descend(loss)
        else:
            batches = len(self.trainer.train_dataloader)
            first, last = (len(self._plan) * i // batches for i in (batch_idx, batch_idx + 1))
            for step in self._plan[first:last]:
                loss = self._loss_of(step)
                # Scaled so that the epoch's mean over batches is the sum of both networks' means, as in the warm-up.
                self.track(loss * (2 * batches / len(self._plan)), batch_idx)
                self._descend(loss)
        if (scheduler := self.lr_schedulers()) is not None:
            scheduler.step()

    def _loss_of(self, step: Step) -> Tensor:
        data, generator = self.trainer.datamodule, self.generator(f"views {step.network}")

        def views(index: Tensor) -> tuple[Tensor, Tensor]:
            return tuple(data.training_view(index, generator) for _ in range(2))

        unlabelled = views(step.unlabelled) if len(step.unlabelled) else None
        labelled = views(step.labelled)
        return self.mixmatch_loss(step.network, labelled, step.label, step.w, unlabelled, step.epochs)

    def _descend(self, loss: Tensor) -> None:
        """A step on the loss; a network without a part in it has no gradients, and the optimiser leaves it alone."""
        optimizer = self.optimizers()
        self.manual_backward(loss)
        if self.clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        optimizer.step()
        optimizer.zero_grad()
