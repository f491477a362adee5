"""Self-tuning networks: layers that respond to the hyperparameters, which are tuned on validation data in the same run.

Of the paper only the abstract was seen, hence no equation numbers: what is here follows the released code, see
docs/papers.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError
from regbench.functional.distributed import world_size
from regbench.functional.hyperparameters import (
    Current,
    Space,
    attach_dropout,
    dropout_sites,
    softplus_inverse,
    weight_layers,
)
from regbench.registry import Paper, register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod

GATE_STD = 0.01  # standard deviation of the initial V and C; the released code


def respond(elementary: Tensor, response: Tensor, gate: Tensor) -> Tensor:
    """y = W_e x + b_e + (V λ) ∘ (W_h x) + (C λ) ∘ b_h, given its parts, so that no weight of one example is built.

    Args:
        elementary: W_e x + b_e, (B, D) or (B, D, H, W).
        response: W_h x, likewise.
        gate: V λ, (B, D) or (1, D).

    Returns:
        The first two terms; the bias's is added by the caller, where there is one.

    >>> respond(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, -1.0]]))
    tensor([[0.5000, 0.0000]])
    """
    return elementary + gate * response


def gaussian_entropy(sigma: Tensor) -> Tensor:
    """Entropy of N(0, diag(σ²)): sum_j ln(σ_j sqrt(2 π e)), in nats.

    Args:
        sigma: σ (H,), positive.

    Returns:
        A scalar.

    >>> gaussian_entropy(torch.tensor([0.5]))
    tensor(0.7258)
    """
    return (sigma.log() + 0.5 * math.log(2 * math.pi * math.e)).sum()


def perturbed(value: Tensor, rho: Tensor, noise: Tensor) -> Tensor:
    """λ + softplus(ρ) · noise, a row for each example.

    Args:
        value: λ (H,).
        rho: ρ (H,); σ = softplus(ρ).
        noise: (B, H), standard normal.

    Returns:
        (B, H).

    >>> perturbed(torch.zeros(1), torch.tensor([0.541325]), torch.tensor([[2.0], [0.0]]))
    tensor([[2.],
            [0.]])
    """
    return value + F.softplus(rho) * noise


class Hyperparameters(nn.Module):
    """λ and ρ (H,), and the gates' input in the step at hand.

    Both are parameters without gradients: only the tuning step makes gradients, and for itself.
    """

    def __init__(self, start: Tensor, sigma: float):
        super().__init__()
        self.value = nn.Parameter(start.clone(), requires_grad=False)
        self.rho = nn.Parameter(torch.full_like(start, softplus_inverse(sigma)), requires_grad=False)
        self.gate: Tensor | None = None  # (B, H); None: λ itself, for every example


class ResponseLayer(nn.Module):
    """A linear layer or 2-D convolution whose weights and biases are affine functions of the hyperparameters, each
    output unit (channel) with a gate of its own.

    Args:
        layer: becomes W_e and b_e, with its weights.
        hyperparameters: shared by all layers.
        scale: a learnt factor on W_e x + b_e that starts at 1, as in the released code.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, hyperparameters: Hyperparameters, scale: bool = True):
        super().__init__()
        count, units = len(hyperparameters.value), layer.weight.shape[0]
        self.in_channels = layer.weight.shape[1]  # what Backbone.num_features reads of a last layer
        self.elementary = layer
        self.response = copy.deepcopy(layer)
        self.response.reset_parameters()
        self.response_bias, self.response.bias = self.response.bias, None
        self.scale = nn.Parameter(torch.ones(())) if scale else None
        self.weight_gate = nn.Linear(count, units, bias=False)
        nn.init.normal_(self.weight_gate.weight, std=GATE_STD)
        self.bias_gate = None
        if layer.bias is not None:
            self.bias_gate = nn.Linear(count, units, bias=False)
            nn.init.normal_(self.bias_gate.weight, std=GATE_STD)
        self.__dict__["hyperparameters"] = hyperparameters  # not a submodule: the backbone owns it

    def forward(self, x: Tensor) -> Tensor:
        gate = self.hyperparameters.gate
        gate = self.hyperparameters.value[None] if gate is None else gate
        elementary = self.elementary(x)
        if self.scale is not None:
            elementary = self.scale * elementary
        y = respond(elementary, self.response(x), self._fitting(self.weight_gate(gate), x))
        if self.bias_gate is not None:
            y = y + self._fitting(self.bias_gate(gate) * self.response_bias, x)
        return y

    def _fitting(self, rows: Tensor, x: Tensor) -> Tensor:
        """(B, D) → (B, D, 1, 1) for a convolution, (B, 1, …, D) for a linear layer of more dimensions."""
        if isinstance(self.elementary, nn.Conv2d):
            return rows[:, :, None, None]
        return rows.view(len(rows), *[1] * (x.ndim - 2), -1)

    def folded(self) -> nn.Linear | nn.Conv2d:
        """The plain layer at λ: W = W_e + (V λ) ∘ W_h by row, b = b_e + (C λ) ∘ b_h."""
        value, factor = self.hyperparameters.value, 1.0 if self.scale is None else self.scale
        layer = copy.deepcopy(self.elementary)
        with torch.no_grad():
            gate = self.weight_gate(value).view(-1, *[1] * (layer.weight.ndim - 1))
            layer.weight.copy_(factor * layer.weight + gate * self.response.weight)
            if self.bias_gate is not None:
                layer.bias.copy_(factor * layer.bias + self.bias_gate(value) * self.response_bias)
        return layer


def make_responsive(backbone: Backbone, hyperparameters: Hyperparameters, scale: bool) -> None:
    """Puts a `ResponseLayer` in place of every linear layer and convolution of the backbone.

    Raises:
        UserError: torch's attention is in it, which reads its layers' weights and does not call them.
    """
    if any(isinstance(module, nn.MultiheadAttention) for module in backbone.modules()):
        raise UserError(
            "self_tuning_networks gates linear layers and convolutions, and torch's nn.MultiheadAttention uses its "
            "weights without calling such a layer; choose another backbone, e.g. mlp, small_cnn or stn_alexnet."
        )
    for name in weight_layers(backbone):
        backbone.set_submodule(name, ResponseLayer(backbone.get_submodule(name), hyperparameters, scale))
    backbone.hyperparameters = hyperparameters


@register(
    "self_tuning_networks",
    task="classification",
    paper=Paper(
        title="Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions",
        authors="Matthew MacKay, Paul Vicol, Jon Lorraine, David Duvenaud, Roger Grosse",
        year=2019,
        venue="ICLR",
        arxiv="1903.03088",
        code="https://github.com/asteroidhouse/self-tuning-networks",
    ),
)
class SelfTuningNetworks(ClassificationMethod):
    """A network whose units are gated by its hyperparameters is a local best response to them, so that dropout and
    augmentation are tuned on validation data in the one run that trains it, better than by grid search, random search
    or Bayesian optimisation, and along a schedule that beats fixed values.

    Training steps fit the response under random perturbations of the hyperparameters, one for each example; tuning
    steps move the hyperparameters down the validation loss, through the response.

    Args:
        tune: hyperparameters, keys of `regbench.functional.hyperparameters.RANGES`; dropout has a rate for each of the
            backbone's dropout layers, or for each layer but the first where it has none.
        ranges: key → [low, high, start], where they differ from RANGES.
        lr: Adam's learning rate for λ.
        sigma: standard deviation σ of the perturbations of λ, at the start.
        tune_sigma: whether the tuning steps also learn σ; where not, they don't perturb.
        sigma_lr: Adam's learning rate for ρ, σ = softplus(ρ).
        tau: weight τ of the perturbations' entropy.
        train_steps: training steps before each tuning phase.
        valid_steps: tuning steps in each.
        valid_batch_size: validation images of a tuning step; None takes as many as a training batch has.
        warmup_epochs: epochs of training steps only.
        scale: whether each layer has a learnt factor on its part without a gate, as in the released code.
    """

    owns_loop = True  # training and tuning steps alternate, with three optimisers

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        tune: Sequence[str] = ("dropout", "input_dropout", "input_scale"),
        ranges: Mapping[str, Sequence[float]] = {},
        lr: float = 3e-3,
        sigma: float = 0.5,
        tune_sigma: bool = True,
        sigma_lr: float = 3e-3,
        tau: float = 1e-3,
        train_steps: int = 2,
        valid_steps: int = 1,
        valid_batch_size: int | None = None,
        warmup_epochs: int = 5,
        scale: bool = True,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if min(lr, sigma, sigma_lr) <= 0 or tau < 0:
            raise UserError(
                f"self_tuning_networks needs lr > 0, sigma > 0, sigma_lr > 0 and tau >= 0; it got lr={lr}, "
                f"sigma={sigma}, sigma_lr={sigma_lr}, tau={tau}."
            )
        if min(train_steps, valid_steps) < 1 or warmup_epochs < 0:
            raise UserError(
                f"self_tuning_networks needs train_steps >= 1, valid_steps >= 1 and warmup_epochs >= 0; it got "
                f"train_steps={train_steps}, valid_steps={valid_steps}, warmup_epochs={warmup_epochs}."
            )
        if valid_batch_size is not None and valid_batch_size < 1:
            raise UserError(f"regularizer.valid_batch_size={valid_batch_size} must be at least 1, or null.")
        self.lr, self.sigma_lr, self.tau, self.tune_sigma = lr, sigma_lr, tau, tune_sigma
        self.train_steps, self.valid_steps, self.valid_batch_size = train_steps, valid_steps, valid_batch_size
        self.warmup_epochs = warmup_epochs
        sites = dropout_sites(self.backbone)
        self.space = Space(tune, ranges, len(sites))
        self.current = Current()
        make_responsive(self.backbone, Hyperparameters(self.space.start(), sigma), scale)
        attach_dropout(self.backbone, sites, self.space, self.current)
        # Of the normalisation; set from the data. Without it the images count as pixels.
        self.register_buffer("pixel_mean", torch.zeros(1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.ones(1, 1, 1), persistent=False)
        self._validation: tuple[Tensor, Tensor] | None = None  # all images and labels of the split
        self._order: Tensor | None = None  # positions that are left of this pass over them

    @property
    def hyperparameters(self) -> Hyperparameters:
        return self.backbone.hyperparameters

    # -- the two kinds of step -----------------------------------------------------------------------------------

    def training_loss(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        image, label = batch_fields(batch, ("image", "label"))
        self.space.check_channels(image.shape[1])
        hyper = self.hyperparameters
        gate = perturbed(hyper.value, hyper.rho, self._noise("perturb", image))
        real = self.space.real(gate)
        image = self.space.regularised(image, real, self.pixel_mean, self.pixel_std)
        self.keep_samples(image)
        with self._set(gate, real):
            return F.cross_entropy(self.backbone(image), label)

    def tuning_gradients(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in λ and ρ of the validation loss less τ times the entropy of the perturbations.

        Args:
            image: validation images (B, C, H, W), which are not regularised.
            label: (B,).
        """
        value = self.hyperparameters.value.detach().requires_grad_()
        rho = self.hyperparameters.rho.detach().requires_grad_()
        if self.tune_sigma:
            gate = perturbed(value, rho, self._noise("perturb_validation", image))
        else:
            gate = value.expand(len(image), -1)
        self.backbone.eval()
        with self._set(gate, None):
            loss = F.cross_entropy(self.backbone(image), label)
        self.backbone.train()
        if self.tune_sigma:
            loss = loss - self.tau * gaussian_entropy(F.softplus(rho))
        of_value, of_rho = torch.autograd.grad(loss, (value, rho), allow_unused=True)
        return of_value, torch.zeros_like(rho) if of_rho is None else of_rho

    def _noise(self, stream: str, image: Tensor) -> Tensor:
        noise = torch.randn(len(image), len(self.space), generator=self.generator(stream))
        return noise.to(image.device, non_blocking=True)

    @contextmanager
    def _set(self, gate: Tensor, real: Tensor | None) -> Iterator[None]:
        self.hyperparameters.gate, self.current.real = gate, real
        try:
            yield
        finally:
            self.hyperparameters.gate = self.current.real = None

    def parameter_options(self) -> list[dict[str, Any]]:
        gates = [p for name, p in self.named_parameters() if "_gate." in name]
        return [{"params": gates, "weight_decay": 0.0}]  # decay would pull the response towards none

    # -- Lightning -----------------------------------------------------------------------------------------------

    automatic_optimization = False

    def configure_optimizers(self):
        weights = super().configure_optimizers()  # λ and ρ have no gradients, so they are not among them
        weights = weights if isinstance(weights, dict) else {"optimizer": weights}
        hyper = self.hyperparameters
        return [
            weights,
            {"optimizer": torch.optim.Adam([hyper.value], lr=self.lr)},
            {"optimizer": torch.optim.Adam([hyper.rho], lr=self.sigma_lr)},
        ]

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule
        if world_size() > 1:
            raise UserError(
                "self_tuning_networks trains on one process; set accelerator.devices=1 (and accelerator=gpu or cpu)."
            )
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "self_tuning_networks has gradients that no loss scaling reaches; set accelerator.precision=bf16-mixed."
            )
        if data is None or data.sets.val is None:
            raise UserError(
                "self_tuning_networks tunes on validation data; set dataset.val_fraction above 0 (and train with "
                "train.py, or pass an ImageDataModule to fit)."
            )
        if data.sets.val.streams:
            raise UserError(
                "self_tuning_networks keeps the validation images on the device, and this data set is streamed; choose "
                "one that is held in memory."
            )
        self.space.check_channels(data.shape[0])
        batches = list(data.val_loader(self.device))
        self._validation = tuple(torch.cat([batch[key] for batch in batches]) for key in ("image", "label"))
        mean, std = (torch.tensor(values, device=self.device).view(-1, 1, 1) for values in data.mean_std)
        self.pixel_mean, self.pixel_std = mean, std

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._order = torch.empty(0, dtype=torch.long)

    def training_step(self, batch, batch_idx: int) -> None:
        loss = self.training_loss(batch)
        self.track(loss, batch_idx)
        self.optimize(loss, batch_idx)
        # Counted from the run's start, so that a resumed run goes on in the rhythm.
        step = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        if self.current_epoch < self.warmup_epochs or (step + 1) % self.train_steps:
            return
        # Not Lightning's wrappers: they would count these as steps of training.
        _, *optimizers = self.optimizers(use_pl_optimizer=False)
        for _ in range(self.valid_steps):
            gradients = self.tuning_gradients(*self._validation_batch(len(batch["label"])))
            for optimizer, gradient in zip(optimizers, gradients, strict=True):
                optimizer.param_groups[0]["params"][0].grad = gradient
            optimizers[0].step()
            if self.tune_sigma:
                optimizers[1].step()

    def _validation_batch(self, train_batch_size: int) -> tuple[Tensor, Tensor]:
        """The next validation images and labels, each once before any comes again within an epoch."""
        images, labels = self._validation
        size = min(self.valid_batch_size or train_batch_size, len(labels))
        if len(self._order) < size:
            self._order = torch.randperm(len(labels), generator=self.generator("validation"))
        chosen, self._order = self._order[:size].to(labels.device), self._order[size:]
        return images[chosen], labels[chosen]

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        sigma = F.softplus(self.hyperparameters.rho)
        for name, value, spread in zip(self.space.names, self.real_values(), sigma, strict=True):
            self.log(f"train/{name}", value)
            self.log(f"train/{name}_sigma", spread)

    def real_values(self) -> Tensor:
        """The hyperparameters (H,) as they are now, in their ranges."""
        return self.space.real(self.hyperparameters.value)

    def plain_backbone(self) -> Backbone:
        network = super().plain_backbone()
        for name, layer in [(n, m) for n, m in network.named_modules() if isinstance(m, ResponseLayer)]:
            network.set_submodule(name, layer.folded())
        del network.hyperparameters
        for module in network.modules():  # of dropout layers: the hooks that drop
            module._forward_pre_hooks.clear()
        return network
