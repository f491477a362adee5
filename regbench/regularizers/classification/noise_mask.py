"""Pretraining on images times a random mask from a learned Beta policy, then fine-tuning on clean ones (Yavuz & Yang).

Source of every equation: the released code, https://github.com/ogrenenmakine/Policy-Gradient-Driven-Noise-Mask
("code"). The paper's own method section was not seen.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta
from torchvision.transforms.v2.functional import gaussian_blur

from regbench.backbones.small import small_cnn
from regbench.backbones.timm_models import timm_model
from regbench.errors import UserError, unknown
from regbench.functional.distributed import gather_rows, own_draw, own_rows, world_size
from regbench.registry import Paper, register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod
from regbench.schedules import cosine, lr_factor

MASKS = ("policy", "uniform", "constant", "none", "gaussian_noise")
OBJECTIVES = ("lse", "joint")
CREDITS = ("batch", "sample")
BASELINES = ("none", "ema", "loo")
EDGE = 1e-6  # a cell's value is kept this far from 0 and 1, where densities are 0 or infinite; our choice
LARGEST = 5.0  # |log α| and |log β| go no further; our choice
REWARD_DECAY = 0.9  # of the baseline `ema`, for each step; our choice
WARMUP_FROM = 0.01  # fine-tuning's warm-up starts at this share of its learning rate; code
POLICY_IMAGE = 224  # what timm is told the images' side is; a convolutional network takes any


def log_parameters(base: Tensor, head: Tensor, head_mix: float) -> Tensor:
    """u = (1 − head_mix) b + head_mix h(x), the logarithm of α or β, cut to [−5, 5].

    Args:
        base: b, (1, K), without a gradient.
        head: h(x), (B, K).
        head_mix: share of the head; 0.1 in the code.

    Returns:
        (B, K).

    >>> log_parameters(torch.tensor([[0.5]]), torch.tensor([[1.0]]), 0.1)
    tensor([[0.5500]])
    """
    return ((1 - head_mix) * base + head_mix * head).clamp(-LARGEST, LARGEST)


def moved_base(base: Tensor, head: Tensor, ema: float) -> Tensor:
    """b ← ema · b + (1 − ema) · mean over the batch of h(x); (1, K), without a gradient.

    >>> moved_base(torch.tensor([[0.5]]), torch.tensor([[1.0], [1.0]]), 0.99)
    tensor([[0.5050]])
    """
    return ema * base + (1 - ema) * head.detach().mean(0, keepdim=True)


def log_densities(alpha: Tensor, beta: Tensor, cells: Tensor) -> Tensor:
    """log p of each cell's value under its Beta(α, β); all (B, K).

    >>> log_densities(torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([0.25]))  # ln 1.6875
    tensor([0.5232])
    """
    return Beta(alpha, beta, validate_args=False).log_prob(cells)


def score(log_p: Tensor, objective: str) -> Tensor:
    """What the policy's gradient is taken of, (B,): log Σ_k p_k (`lse`, code), or Σ_k log p_k (`joint`, REINFORCE).

    `joint` is the mask's log-probability. `lse` is not: see docs/papers/noise_mask.md.

    Args:
        log_p: (B, K), the cells' log densities.
        objective: lse | joint.

    >>> log_p = torch.tensor([[1.6875, 1.0, 1.061033]]).log()
    >>> score(log_p, "lse"), score(log_p, "joint")
    (tensor([1.3214]), tensor([0.5825]))
    """
    return log_p.logsumexp(1) if objective == "lse" else log_p.sum(1)


def surrogate(ce: Tensor, scores: Tensor, factor: Tensor | float, credit: Tensor) -> Tensor:
    """A scalar with the value factor · CE whose gradient is factor · ∇CE + mean(credit · ∇score).

    With factor = mean score and credit = CE this is the code's product (mean score) · CE, value and gradients.

    Args:
        ce: the batch's cross entropy, scalar; its gradient reaches the classifier.
        scores: (B,); their gradient reaches the policy.
        factor: of the classifier's loss; no gradient.
        credit: (B,) or scalar, what each mask cost; no gradient.

    >>> surrogate(torch.tensor(2.0), torch.tensor([1.0, 1.5]), 1.25, torch.tensor(2.0))
    tensor(2.5000)
    """
    policy = (credit * scores).mean()
    return factor * ce + (policy - policy.detach())


def smooth_mask(cells: Tensor, size: tuple[int, int], kernel: int, sigma: float) -> Tensor:
    """Cells (B, K) → mask (B, 1, H, W): a square grid, resized to `size` by nearest neighbour, then a Gaussian blur.

    Args:
        size: (H, W).
        kernel: side of the blur's kernel in pixels, odd; the image is mirrored beyond its border.
        sigma: the blur's standard deviation in pixels.

    >>> smooth_mask(torch.full((2, 64), 0.3), (28, 28), 13, 6.0).mean().round(decimals=4)
    tensor(0.3000)
    """
    side = math.isqrt(cells.shape[1])
    mask = cells.view(-1, 1, side, side)
    if (side, side) != tuple(size):
        mask = F.interpolate(mask, size=size, mode="nearest")
    return gaussian_blur(mask, [kernel, kernel], [sigma, sigma])


def finetune_factor(epoch: int, warmup: int) -> float:
    """Factor on fine-tuning's learning rate: linear by epoch from 0.01 to 1 over `warmup` epochs, then 1 (code).

    >>> [round(1e-3 * finetune_factor(epoch, 7), 6) for epoch in (0, 1, 6, 7, 9)]
    [1e-05, 0.000151, 0.000859, 0.001, 0.001]
    """
    return 1.0 if epoch >= warmup else WARMUP_FROM + (1 - WARMUP_FROM) * epoch / warmup


class PolicyNetwork(nn.Module):
    """Images (B, C, H, W) → h_a(x), h_b(x), each (B, cells). C is 1 or 3; grey images are repeated to three channels.

    Args:
        cells: K, outputs of each head.
        backbone: a convolutional network of timm; None: three small convolutions (16, 32, 64 channels).
        hidden: units of the two hidden layers of each head.
    """

    def __init__(self, cells: int, backbone: str | None, hidden: int):
        super().__init__()
        if backbone is None:
            trunk = small_cnn(3, (8, 8), 1, width=16)
            features, self.trunk = trunk.num_features, trunk.network
            self.trunk.fc = nn.Identity()
        else:
            self.trunk = timm_model(3, (POLICY_IMAGE, POLICY_IMAGE), 0, model_name=backbone).network
            features = self.trunk.num_features
        self.head_a, self.head_b = (
            nn.Sequential(
                *(nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
                *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
                nn.Linear(hidden, cells),
            )
            for _ in range(2)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if image.shape[1] not in (1, 3):
            raise UserError(
                f"regularizer.mask=policy looks at grey or colour images; these have {image.shape[1]} channels. "
                "Take regularizer.mask=uniform, constant or none."
            )
        features = self.trunk(image.expand(-1, 3, -1, -1))
        return self.head_a(features), self.head_b(features)


@register(
    "noise_mask",
    task="classification",
    paper=Paper(
        title="Policy Gradient-Driven Noise Mask",
        authors="Mehmet Can Yavuz, Yang Yang",
        year=2025,
        venue="",
        arxiv="2406.14568",
        code="https://github.com/ogrenenmakine/Policy-Gradient-Driven-Noise-Mask",
    ),
)
class NoiseMask(ClassificationMethod):
    """Pretraining on images multiplied by a mask from a Beta policy that a policy gradient trains, then fine-tuning
    briefly on clean images, raises macro F1 and balanced accuracy over ordinary training, at no cost at inference.

    Both phases are one run: the last `finetune_share` of the epochs see clean images, with a learning rate of their own
    and new momentum; the policy no longer acts. The schedule of the configuration spans the first phase. Validation
    sees clean images in both phases, unless `masked_validation`.

    Args:
        mask: policy (code); uniform (every cell ~ U(0, 1)), constant (1/2), none (controls, ours), or gaussian_noise
            (added to the image, standard deviation `noise`; ours).
        grid: cells a side, G; the mask has K = G² of them.
        kernel: side of the blur's kernel.
        sigma: standard deviation of the blur.
        head_mix: share of the heads in log α and log β; the rest is a running vector.
        base_ema: decay of the running vectors.
        objective: lse (log Σ_k p_k, code) or joint (Σ_k log p_k, the log-probability).
        credit: batch (one cross entropy for all masks of a batch, code) or sample (its own for each mask).
        baseline: subtracted from the policy's credit: none (code), ema (running mean), loo (mean of the others).
        couple_classifier: whether the classifier's loss is multiplied by the mean score, as in the code.
        loss_scale: the classifier's loss is multiplied by it in the first phase where no policy does so.
        noise: standard deviation of mask=gaussian_noise.
        policy_lr: learning rate of the policy, as a share of the classifier's.
        policy_backbone: the policy's trunk, a name of timm's; None: a small one.
        policy_hidden: units of its heads' hidden layers.
        finetune_share: share of the epochs that fine-tune, the last ones.
        finetune_lr: their learning rate, as a share of the first phase's initial one.
        finetune_warmup: share of them with a linear warm-up.
        masked_validation: whether the first phase validates under one mask a batch from the running vectors, as in
            the code.
    """

    owns_loop = True  # a second network, and two phases

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        mask: str = "policy",
        grid: int = 8,
        kernel: int = 13,
        sigma: float = 6.0,
        head_mix: float = 0.1,
        base_ema: float = 0.99,
        objective: str = "lse",
        credit: str = "batch",
        baseline: str = "none",
        couple_classifier: bool = True,
        loss_scale: float = 1.0,
        noise: float = 0.1,
        policy_lr: float = 0.1,
        policy_backbone: str | None = None,
        policy_hidden: int = 64,
        finetune_share: float = 0.1,
        finetune_lr: float = 0.01,
        finetune_warmup: float = 0.7,
        masked_validation: bool = False,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        for name, value, known in (
            ("mask", mask, MASKS),
            ("objective", objective, OBJECTIVES),
            ("credit", credit, CREDITS),
            ("baseline", baseline, BASELINES),
        ):
            if value not in known:
                raise unknown(f"regularizer.{name}", value, known)
        if baseline == "loo" and credit == "batch":
            raise UserError(
                "regularizer.baseline=loo compares a mask with the others of its batch; set regularizer.credit=sample."
            )
        for name, value in (
            ("head_mix", head_mix),
            ("base_ema", base_ema),
            ("finetune_share", finetune_share),
            ("finetune_warmup", finetune_warmup),
        ):
            if not 0 <= value <= 1:
                raise UserError(f"regularizer.{name}={value}: it is a share, from 0 to 1.")
        if grid < 1 or policy_hidden < 1:
            raise UserError(f"regularizer.grid={grid} and policy_hidden={policy_hidden} must be at least 1.")
        if kernel < 1 or kernel % 2 == 0 or not sigma > 0:
            raise UserError(
                f"regularizer.kernel={kernel} and sigma={sigma}: the blur needs an odd side and a sigma above 0."
            )
        if masked_validation and mask != "policy":
            raise UserError(
                f"regularizer.masked_validation=true validates under the policy's mask; mask={mask} has none."
            )
        for name, value in (
            ("loss_scale", loss_scale),
            ("finetune_lr", finetune_lr),
        ):
            if not value > 0:
                raise UserError(f"regularizer.{name}={value} must be above 0.")
        if noise < 0 or policy_lr < 0:
            raise UserError(f"regularizer.noise={noise} and policy_lr={policy_lr} must be at least 0.")
        self.mask, self.grid, self.kernel, self.sigma = mask, grid, kernel, sigma
        self.head_mix, self.base_ema = head_mix, base_ema
        self.objective_name, self.credit, self.baseline = objective, credit, baseline
        self.couple_classifier, self.loss_scale, self.noise = couple_classifier, loss_scale, noise
        self.policy_lr = policy_lr
        self.finetune_share, self.finetune_lr = finetune_share, finetune_lr
        self.finetune_warmup, self.masked_validation = finetune_warmup, masked_validation
        self.policy = None
        if mask == "policy":
            self.policy = PolicyNetwork(grid**2, policy_backbone, policy_hidden)
            self.register_buffer("base_a", torch.rand(1, grid**2))
            self.register_buffer("base_b", torch.rand(1, grid**2))
            self.register_buffer("mean_ce", torch.tensor(math.log(num_classes)))  # as untrained

    # -- the two phases ------------------------------------------------------------------------------------------

    @property
    def masked_epochs(self) -> int:
        """Epochs of the first phase."""
        return self.max_epochs - round(self.finetune_share * self.max_epochs)

    @property
    def masks(self) -> bool:
        """Whether the current epoch is one of the first phase."""
        return self.current_epoch < self.masked_epochs

    def lr_factors(self, total: int) -> list[Callable[[int], float]]:
        """Step → factor on the initial learning rate, of the classifier and of the policy.

        Args:
            total: optimiser steps of the run.
        """
        per_epoch = total / self.max_epochs
        first = round(per_epoch * self.masked_epochs)
        warmup = round(self.finetune_warmup * (self.max_epochs - self.masked_epochs))
        schedule = lr_factor(self._schedule, total=first, per_epoch=per_epoch) if first else None

        def classifier(step: int) -> float:
            if step < first:
                return schedule(step)
            return self.finetune_lr * finetune_factor(int((step - first) / per_epoch), warmup)

        def policy(step: int) -> float:
            return cosine(step, total=first, per_epoch=per_epoch) if step < first else 0.0

        return [classifier, policy]

    def configure_optimizers(self):
        groups = [{"params": list(self.backbone.parameters())}]
        if self.policy is not None:
            groups.append({"params": list(self.policy.parameters())})
        optimizer = self._make_optimizer(groups)
        for group in optimizer.param_groups[1:]:
            group["lr"] *= self.policy_lr
        factors = self.lr_factors(int(self.trainer.estimated_stepping_batches))[: len(groups)]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == self.masked_epochs:
            # Fine-tuning is a new optimiser in the code: no momentum of the first phase. A run that is resumed here
            # has read that momentum from its checkpoint, and forgets it too.
            self.trainer.optimizers[0].state.clear()

    # -- a step --------------------------------------------------------------------------------------------------

    def training_loss(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        image, label = batch_fields(batch, ("image", "label"))
        if not self.masks:
            loss = F.cross_entropy(self.backbone(image), label)
            if self.policy is not None and world_size() > 1:  # DDP waits for a gradient of every parameter
                loss = loss + 0.0 * sum(p.sum() for p in self.policy.parameters())
            return loss
        scores = None
        if self.mask == "policy":
            mask, scores = self.act(image)
        else:
            mask = self.control(image)
        if self.mask == "gaussian_noise":
            image = image + mask
        elif mask is not None:
            image = image * mask
            self.watch("mask_mean", mask.mean())
            self.watch("mask_std", mask.std(dim=(-2, -1), correction=0).mean())
        self.keep_samples(image)
        logits = self.backbone(image)
        loss = F.cross_entropy(logits, label)
        if scores is None:
            return self.loss_scale * loss
        ce = F.cross_entropy(logits.detach().float(), label, reduction="none")
        factor = gather_rows(scores.detach()).mean() if self.couple_classifier else 1.0
        return surrogate(loss, scores, factor, self.credits(ce))

    def act(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's masks (B, 1, H, W), without a gradient, and their scores (B,); moves the running vectors."""
        size = self._size(image)
        head_a, head_b = (head.float() for head in self.policy(image))
        alpha = log_parameters(self.base_a, head_a, self.head_mix).exp()
        beta = log_parameters(self.base_b, head_b, self.head_mix).exp()
        with torch.no_grad():
            self.base_a.copy_(moved_base(self.base_a, gather_rows(head_a.detach()), self.base_ema))
            self.base_b.copy_(moved_base(self.base_b, gather_rows(head_b.detach()), self.base_ema))
            # Masks of the global batch, of which this process takes its own.
            cells = own_rows(self.draw(gather_rows(alpha.detach()), gather_rows(beta.detach())))
        scores = score(log_densities(alpha, beta, cells), self.objective_name)
        with torch.no_grad():
            mean = alpha / (alpha + beta)
            self.watch("alpha", alpha.mean())
            self.watch("beta", beta.mean())
            # Of each cell's mean over the images: 0 where the policy does not look at the image.
            self.watch("policy_std", mean.std(0, correction=0).mean())
            self.watch("score", scores.mean())
            self.watch("score_below_0", (scores < 0).float().mean())
        return smooth_mask(cells, size, self.kernel, self.sigma), scores

    def control(self, image: Tensor) -> Tensor | None:
        """What takes the place of the policy's masks: masks (B, 1, H, W), noise of the image's shape, or None."""
        if self.mask == "none":
            return None
        if self.mask == "constant":
            return image.new_full((len(image), 1, *self._size(image)), 0.5)
        device = image.device
        if self.mask == "gaussian_noise":
            options = {"device": device, "generator": self._device_generator(device)}
            return self.noise * own_draw(lambda n: torch.randn(n, *image.shape[1:], **options), len(image))
        cells = own_draw(lambda n: self.draw(*torch.ones(2, n, self.grid**2, device=device)), len(image))
        return smooth_mask(cells, self._size(image), self.kernel, self.sigma)

    def draw(self, alpha: Tensor, beta: Tensor, stream: str = "mask") -> Tensor:
        """Cells ~ Beta(α, β), (B, K), in [10⁻⁶, 1 − 10⁻⁶]."""
        pair = torch.stack([alpha, beta], dim=-1)
        # torch.distributions' own sampler, which takes no generator
        drawn = torch._sample_dirichlet(pair, generator=self._device_generator(alpha.device, stream))
        return drawn[..., 0].clamp(EDGE, 1 - EDGE)

    @torch.no_grad()
    def credits(self, ce: Tensor) -> Tensor:
        """What each mask cost beyond the baseline, from the cross entropies (B,): (B,), or a scalar for the batch."""
        everyone = gather_rows(ce)
        mean = everyone.mean()
        credit = mean if self.credit == "batch" else ce
        if self.baseline == "ema":
            credit = credit - self.mean_ce
            self.mean_ce.lerp_(mean, 1 - REWARD_DECAY)
        elif self.baseline == "loo":
            others = max(len(everyone) - 1, 1)
            credit = ce - (everyone.sum() - ce) / others
        return credit

    def _size(self, image: Tensor) -> tuple[int, int]:
        size = tuple(image.shape[-2:])
        if self.grid > min(size) or self.kernel // 2 >= min(size):
            raise UserError(
                f"Images of {size[0]}x{size[1]} pixels can't have regularizer.grid={self.grid} cells a side and a "
                f"blur with regularizer.kernel={self.kernel}: take a grid of at most {min(size)} and a kernel of at "
                f"most {2 * min(size) - 1}."
            )
        return size

    def _device_generator(self, device: torch.device, stream: str = "mask") -> torch.Generator:
        """Drawn from on the device, from a seed that is alike on every process."""
        seed = int(torch.randint(2**62, (), generator=self.generator(stream)))
        return torch.Generator(device).manual_seed(seed)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch, batch_idx: int) -> None:
        if self.masked_validation and self.policy is not None and self.masks:
            image, label = batch_fields(batch, ("image", "label"))
            cells = self.draw(self.base_a.exp(), self.base_b.exp(), "validation_mask")
            image = image * smooth_mask(cells, self._size(image), self.kernel, self.sigma)
            batch = {"image": image, "label": label}
        super().validation_step(batch, batch_idx)
