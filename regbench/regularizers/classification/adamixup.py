"""AdaMixUp: the interval of the mixing share is learned for each pair, beside a discriminator of mixed images.

The paper's text was not at hand, hence no equation numbers: what is here follows the released code, see docs/papers.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.backbones.backbone import Backbone, reset_parameters
from regbench.errors import UserError, unknown
from regbench.functional import mixing
from regbench.functional.distributed import gather_rows, own_rows, world_size
from regbench.registry import Paper, register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod

POLICIES = ("learned", "beta", "fixed")
POLICY_INPUTS = ("average", "pair")
HEAD_STD = 1e-3  # standard deviation of the two added heads' initial weights; the released code


def interval(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(a, d, r) = softmax(logits), r is dropped: the mixing share lies in [a, a + d], inside (0, 1) for any logits.

    Args:
        logits: (B, 3), the policy network's output.

    Returns:
        a and d, each (B,).

    >>> interval(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 0.0]]))
    (tensor([0.3333, 0.2447]), tensor([0.3333, 0.6652]))
    """
    a, d, _ = logits.softmax(1).unbind(1)
    return a, d


def share(a: Tensor | float, d: Tensor | float, eps: Tensor) -> Tensor:
    """γ = a + ε d with ε ~ U(0, 1): a uniform draw from [a, a + d] through which gradients reach a and d.

    Args:
        a: (B,), the interval's lower end; or one for all.
        d: (B,), its length; or one for all.
        eps: (B,), in [0, 1].

    Returns:
        (B,).

    >>> share(torch.tensor([0.25]), torch.tensor([0.5]), torch.tensor([0.5]))
    tensor([0.5000])
    """
    return a + eps * d


def mix_pairs(image: Tensor, partner: Tensor, gamma: Tensor) -> Tensor:
    """x̃ = γ x1 + (1 − γ) x2, each pair with its own γ.

    Args:
        image: x1, (B, C, H, W).
        partner: x2, (B, C, H, W).
        gamma: (B,).

    Returns:
        (B, C, H, W).

    >>> mix_pairs(torch.tensor([[2.0]]), torch.tensor([[-2.0]]), torch.tensor([0.6]))
    tensor([[0.4000]])
    """
    gamma = gamma.to(image.dtype).view(-1, *[1] * (image.ndim - 1))
    return gamma * image + (1 - gamma) * partner


def pair_cross_entropy(logits: Tensor, label: Tensor, partner_label: Tensor, gamma: Tensor) -> Tensor:
    """−[γ log p_a + (1 − γ) log p_b] of each row, p = softmax(logits): mixup cross entropy with a share for each row.

    Differentiable in γ, which is then the weight of the labels; pass `gamma.detach()` for the released code's loss.

    Args:
        logits: (B, C).
        label: a, int64 (B,).
        partner_label: b, int64 (B,).
        gamma: (B,).

    Returns:
        (B,), not averaged.

    >>> logits = torch.tensor([[0.4, -0.3]])
    >>> pair_cross_entropy(logits, torch.tensor([0]), torch.tensor([1]), torch.tensor([0.6]))
    tensor([0.6832])
    """
    log_p = F.log_softmax(logits, dim=1)
    nll_a, nll_b = (F.nll_loss(log_p, target, reduction="none") for target in (label, partner_label))
    return gamma * nll_a + (1 - gamma) * nll_b


def random_average(image: Tensor, partner: Tensor, m1: Tensor, m2: Tensor) -> Tensor:
    """u = (m1 ∘ x1 + m2 ∘ x2) / 2, the policy network's input; m1, m2 elementwise from a normal cut at two deviations.

    Args: all (B, C, H, W).

    Returns:
        (B, C, H, W).

    >>> random_average(*torch.tensor([4.0, 2.0, 0.5, -1.0]))
    tensor(0.)
    """
    return (m1 * image + m2 * partner) / 2


class PolicyNetwork(nn.Module):
    """Maps pairs of images to the logits (B, 3) of `interval`: the classifier's architecture with weights of its own,
    then Linear(F → hidden) and Linear(hidden → 3) with no activation between.

    The copy gets PyTorch's own initialisation of each layer, drawn from torch's global generator (which a run seeds
    from its stream `init`). Parameters outside such layers (position embeddings) keep their values in `backbone`.

    Args:
        backbone: the classifier, which stays as it is.
        inputs: images that the head sees features of: 1 (an average of the pair), or 2 (both).
        hidden: units of the first linear layer.
    """

    def __init__(self, backbone: Backbone, inputs: int, hidden: int):
        super().__init__()
        self.trunk = copy.deepcopy(backbone)
        reset_parameters(self.trunk)
        network, classifier = self.trunk.network, self.trunk.classifier
        name = next(name for name, module in network.named_modules() if module is classifier)
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Identity())
        self.head = small_head(inputs * backbone.num_features, hidden, 3)

    def forward(self, *images: Tensor) -> Tensor:
        """One or two tensors (B, C, H, W) → (B, 3)."""
        features = self.trunk.network(torch.cat(images)).flatten(1)
        return self.head(torch.cat(features.chunk(len(images)), dim=1))


def small_head(features: int, hidden: int, out: int) -> nn.Sequential:
    """Linear(features → hidden), Linear(hidden → out), weights from N(0, 10⁻⁶), biases 0, no activation between."""
    head = nn.Sequential(nn.Linear(features, hidden), nn.Linear(hidden, out))
    for layer in head:
        nn.init.normal_(layer.weight, std=HEAD_STD)
        nn.init.zeros_(layer.bias)
    return head


@register(
    "adamixup",
    task="classification",
    paper=Paper(
        title="MixUp as Locally Linear Out-Of-Manifold Regularization",
        authors="Hongyu Guo, Yongyi Mao, Richong Zhang",
        year=2019,
        venue="AAAI",
        arxiv="1809.02499",
        code="https://github.com/SITE5039/AdaMixUp",
    ),
)
class AdaMixUp(ClassificationMethod):
    """Learning for each pair of images the interval from which the mixing share is drawn, beside a discriminator that
    tells mixed images from real ones, avoids mixed images whose soft label is wrong (manifold intrusion) and lowers the
    test error below mixup's, without mixup's alpha.

    Classifier, discriminator (the same trunk, a head of its own) and policy network minimise one summed loss. At test
    time only the classifier remains.

    Args:
        policy: learned (the paper), beta (γ ~ Beta(alpha, alpha)) or fixed (γ uniform on `interval`), each γ per pair.
        policy_input: what the learned policy sees: average (a random average of the pair, as in the released code), or
            pair (the features of both; ours, for inputs too small for the average to tell which pair it is).
        alpha: of the beta policy.
        interval: (low, high) of the fixed policy.
        hidden: units of the policy head's first layer.
        w_cls: weight of the classification loss.
        w_intr: weight of the discriminator's loss; 0 leaves the discriminator out.
        detach_label_weight: whether γ gets no gradient through the labels, as in the released code.
    """

    owns_loop = True  # two passes through the backbone in each step, and mixing shares with gradients

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        policy: str = "learned",
        policy_input: str = "average",
        alpha: float = 1.0,
        interval: Sequence[float] = (0.25, 0.75),
        hidden: int = 100,
        w_cls: float = 1.0,
        w_intr: float = 1.0,
        detach_label_weight: bool = True,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        if policy not in POLICIES:
            raise unknown("regularizer.policy", policy, POLICIES)
        if policy_input not in POLICY_INPUTS:
            raise unknown("regularizer.policy_input", policy_input, POLICY_INPUTS)
        if not alpha > 0:
            raise UserError(f"regularizer.alpha={alpha} must be above 0: γ is drawn from Beta(alpha, alpha).")
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise UserError(
                f"regularizer.interval={list(interval)} must be [low, high] with 0 ≤ low ≤ high ≤ 1."
            )
        if hidden < 1:
            raise UserError(f"regularizer.hidden={hidden} must be at least 1.")
        if w_cls <= 0 or w_intr < 0:
            raise UserError(
                f"regularizer.w_cls={w_cls} must be above 0 and regularizer.w_intr={w_intr} at least 0."
            )
        self.policy, self.policy_input = policy, policy_input
        self.alpha, self.interval = alpha, tuple(interval)
        self.w_cls, self.w_intr = w_cls, w_intr
        self.detach_label_weight = detach_label_weight
        # What is not used is not made: with several processes every parameter has to get a gradient.
        self.discriminator = small_head(self.backbone.num_features, num_classes, 2) if w_intr > 0 else None
        self.policy_network = None
        if policy == "learned":
            self.policy_network = PolicyNetwork(self.backbone, 1 + (policy_input == "pair"), hidden)

    def training_loss(self, batch: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        image, label = batch_fields(batch, ("image", "label"))
        # The global batch is paired, so that several processes do together what one does.
        image, label = gather_rows(image), gather_rows(label)
        world = world_size()
        half = len(image) // (2 * world) * world
        if half == 0:
            raise UserError(
                f"AdaMixUp mixes half of a batch, and {len(image)} images leave none for each of {world} processes. "
                f"Set dataset.batch_size to {2 * world} or more."
            )
        order = torch.randperm(len(image), generator=self.generator("mix"))[:half]
        order = order.to(image.device, non_blocking=True)
        partner, partner_label = own_rows(image.index_select(0, order)), own_rows(label[order])
        unmixed = own_rows(image[half:])
        image, label = own_rows(image[:half]), own_rows(label[:half])

        gamma = self.draw(image, partner, half)
        mixed = mix_pairs(image, partner, gamma)
        self.keep_samples(mixed)

        mixed_logits, real_logits = self.backbone(torch.cat([mixed, image])).chunk(2)
        weight = gamma.detach() if self.detach_label_weight else gamma
        loss_mixed = pair_cross_entropy(mixed_logits, label, partner_label, weight).mean()
        # Half and half, as the mean over the released code's batch of as many mixed images as real ones.
        loss = self.w_cls * (loss_mixed + F.cross_entropy(real_logits, label)) / 2
        if self.discriminator is None:
            return loss
        # A pass of its own, also for batch norm: it takes and updates its statistics in both.
        seen = self.discriminator(self.backbone.outputs(torch.cat([mixed, image, unmixed])).features)
        real = torch.ones(len(seen), dtype=torch.long, device=seen.device)
        real[: len(mixed)] = 0
        loss_intrusion = F.cross_entropy(seen, real)
        self.watch("loss_intrusion", loss_intrusion)
        self.watch("discriminator_accuracy", (seen.argmax(1) == real).float().mean())
        return loss + self.w_intr * loss_intrusion

    def draw(self, image: Tensor, partner: Tensor, count: int) -> Tensor:
        """The mixing shares γ (B,) of pairs of images (B, C, H, W), B of the `count` pairs of all processes."""
        generator = self.generator("policy")
        if self.policy == "learned":
            a, d = interval(self._policy_logits(image, partner, count, generator))
            self.watch("alpha", a.mean())
            self.watch("delta", d.mean())
        elif self.policy == "fixed":
            low, high = self.interval
            a, d = low, high - low
        if self.policy == "beta":
            gamma = own_rows(mixing.betas(self.alpha, count, generator).float()).to(
                image.device, non_blocking=True
            )
        else:
            eps = own_rows(torch.rand(count, generator=generator)).to(image.device, non_blocking=True)
            gamma = share(a, d, eps)
        self.watch("gamma", gamma.mean())
        return gamma

    def _policy_logits(
        self, image: Tensor, partner: Tensor, count: int, generator: torch.Generator
    ) -> Tensor:
        if self.policy_input == "pair":
            return self.policy_network(image, partner)
        # Drawn on the device, from a seed that is alike on every process: a copy of two images' size would cost more.
        seed = int(torch.randint(2**62, (), generator=generator))
        normal = torch.empty(2, count, *image.shape[1:], device=image.device)
        on_device = torch.Generator(image.device).manual_seed(seed)
        m1, m2 = nn.init.trunc_normal_(normal, a=-2.0, b=2.0, generator=on_device)
        return self.policy_network(random_average(image, partner, own_rows(m1), own_rows(m2)))
