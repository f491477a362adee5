"""Training and evaluation of autoencoders whose latents shall be an image's factors of variation. A method overrides
`latent` and `penalty`.

Training never reads the factors: they are in the batch to measure InfoM, InfoE and InfoC.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio

from regbench.backbones.autoencoder import Autoencoder
from regbench.errors import UserError
from regbench.metrics.disentanglement import InfoMEC
from regbench.registry import TASKS
from regbench.regularizers.base import Method, batch_fields

# Raised when a change in this file changes numbers: the family's finished runs are then run again.
VERSION = 1


class Latent(NamedTuple):
    """The code of a batch.

    Attributes:
        z: (B, inputs), what the decoder gets.
        measured: (B, latents), what is compared with the factors: symbols where the method is `discrete`.
        parts: name → what the method's penalty needs beside.
    """

    z: Tensor
    measured: Tensor
    parts: Mapping[str, Tensor] = {}


class AutoencoderMethod(Method):
    """Binary cross entropy of the pixels, its mean over all of them, plus the method's penalty.

    Weights are decayed (by AdamW decoupled: θ ← θ − lr · weight_decay · θ) and their gradients clipped element by
    element; biases and what the method adds to the network are neither. Instance norms' scales count as weights.

    Args:
        backbone: an `Autoencoder` (regbench.backbones.autoencoder).
        num_classes: not used.
        latents: number of latents.
        weight_decay: of weights; it stands for the optimiser's own, which is not used.
        clip_value: largest size of an entry of the weights' gradients; None clips none.

    Attributes:
        discrete: whether what is measured are symbols, not numbers.
        outputs_per_latent, inputs_per_latent: numbers for each latent that the encoder gives and the decoder takes.
    """

    discrete = False
    outputs_per_latent = 1
    inputs_per_latent = 1

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        latents: int,
        weight_decay: float,
        clip_value: float | None,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if not isinstance(self.backbone.network, Autoencoder):
            raise UserError(
                f"{type(self).__name__} needs an autoencoder: backbone=autoencoder_mlp, autoencoder_image_small or "
                "autoencoder_image."
            )
        if latents < 2:
            raise UserError(f"regularizer.latents={latents} must be at least 2.")
        if weight_decay < 0 or (clip_value is not None and clip_value <= 0):
            raise UserError(
                f"regularizer.weight_decay={weight_decay} must be at least 0, regularizer.clip_value={clip_value} "
                "above 0 or null."
            )
        self.latents, self.weight_decay, self.clip_value = latents, weight_decay, clip_value
        self.network: Autoencoder = self.backbone.network
        self.network.connect(latents * self.outputs_per_latent, latents * self.inputs_per_latent)
        self.val_psnr, self.test_psnr = (PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)) for _ in "ab")
        self.val_infomec, self.test_infomec = InfoMEC(self.discrete), InfoMEC(self.discrete)

    # -- what a method overrides -----------------------------------------------------------------------------------

    def latent(self, code: Tensor) -> Latent:
        """The latents of what the encoder gives, (B, latents · outputs_per_latent); drawn where `self.training`."""
        return Latent(code, code)

    def penalty(self, latent: Latent, image: Tensor) -> Tensor:
        """What is added to the pixels' cross entropy (scalar)."""
        return image.new_zeros(())

    def is_weight(self, name: str) -> bool:
        """Whether a parameter of the method (its name in `named_parameters`) is decayed and its gradient clipped."""
        return name.startswith("backbone.") and not name.endswith("bias")

    # -- training ----------------------------------------------------------------------------------------------------

    @property
    def networks(self) -> list[nn.Module]:
        return [self.network.encoder, self.network.decoder]

    def encode(self, image: Tensor) -> Latent:
        """Images (B, C, H, W) in [0, 1] → their latents."""
        return self.latent(self.network.encode(image))

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] → logits of the reconstructed pixels, likewise."""
        return self.network.decode(self.encode(image).z)

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        image = self._image(batch)
        latent = self.encode(image)
        pixels = F.binary_cross_entropy_with_logits(self.network.decode(latent.z), image)
        self.watch("pixels", pixels)
        return pixels + self.penalty(latent, image)

    def _image(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The batch's images in [0, 1], in the type of the network's parameters."""
        image = batch_fields(batch, TASKS["disentanglement"])[0]
        image = image.float() / 255 if image.dtype == torch.uint8 else image
        return image.to(next(self.network.parameters()).dtype)

    def weights(self) -> list[nn.Parameter]:
        """The parameters that are decayed and whose gradients are clipped."""
        return [p for name, p in self.named_parameters() if self.is_weight(name)]

    def parameter_options(self) -> list[dict[str, Any]]:
        others = [p for name, p in self.named_parameters() if not self.is_weight(name)]
        groups = [
            {"params": self.weights(), "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        if gradient_clip_val:  # trainer.gradient_clip_val, the norm of all, comes first
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.weights(), self.clip_value)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        norms = torch.stack([p.detach().norm() for p in self.weights()])
        self.log("train/weight_norm", norms.norm())

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _measure(self, batch: Mapping[str, Tensor], psnr: PeakSignalNoiseRatio, code: InfoMEC) -> None:
        image = self._image(batch)
        latent = self.encode(image)
        psnr.update(self.network.decode(latent.z).float().sigmoid(), image.float())
        code.update(batch["factors"], latent.measured.float() if not self.discrete else latent.measured)

    def validation_step(self, batch, batch_idx: int) -> None:
        self._measure(batch, self.val_psnr, self.val_infomec)

    def on_validation_epoch_end(self) -> None:
        self._log("val", self.val_psnr, self.val_infomec)

    def test_step(self, batch, batch_idx: int) -> None:
        self._measure(batch, self.test_psnr, self.test_infomec)

    def on_test_epoch_end(self) -> None:
        self._log("test", self.test_psnr, self.test_infomec)

    def _log(self, split: str, psnr: PeakSignalNoiseRatio, code: InfoMEC) -> None:
        values = code.compute() | {"psnr": psnr.compute()}
        self.log_dict({f"{split}/{name}": value for name, value in values.items()})
        psnr.reset()
        code.reset()
