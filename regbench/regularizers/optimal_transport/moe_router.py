"""A sparse mixture of experts with sparsity-constrained transport as its router (Liu et al. 2023), and the routers that
it is compared with. The routers are those of `regbench.functional.routing`.
"""

import torch
from torch import Tensor, nn

from regbench import seeding
from regbench.backbones.moe import MixtureOfExperts, Router
from regbench.data.sets import SPLIT_SEED
from regbench.errors import UserError
from regbench.functional.routing import check_router, importance_loss, load_loss, loads
from regbench.registry import Paper, register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.classification.base import ClassificationMethod


@register(
    "moe_router",
    task="classification",
    paper=Paper(
        title="Sparsity-Constrained Optimal Transport",
        authors="Tianlin Liu, Joan Puigcerver, Mathieu Blondel",
        year=2023,
        venue="ICLR",
        arxiv="2209.15466",
        code="https://github.com/google-research/vmoe",
    ),
)
class MoERouter(ClassificationMethod):
    """Routing tokens to experts by transport with at most a capacity of entries for each expert is competitive with
    token choice, Sinkhorn and expert choice, and keeps loads even without a balancing loss.

    Cross entropy through a backbone with a mixture of experts; each image is a token. A group of tokens is routed
    together, at test time too: what an image is given depends on those beside it. So validation and test split are
    kept whole and cut into random groups of `group_size`, the same ones always: batches in a split's own order may hold
    one class each. With several processes each groups its part.

    Args:
        router: topk (a token's best experts), topk_balanced (with noise, importance and load loss), sinkhorn (S-BASE),
            expert_choice (an expert's best tokens), quadratic (transport without a bound) or sparse_ot.
        choice: for quadratic and sparse_ot: whether expert (at most the capacity of tokens each) or token (at most
            experts_per_token each) bounds the entries of the plan.
        experts_per_token: experts that a token chooses.
        capacity_factor: capacity of an expert, as a multiple of an equal share.
        steps: of Adam (quadratic, sparse_ot) or of Sinkhorn's algorithm.
        adam_lr: learning rate of Adam on the potentials.
        group_size: images that are routed together.
        noise: for topk_balanced: standard deviation of the noise on the gate logits while training, times the number of
            experts.
        importance_weight: for topk_balanced: weight of the importance loss.
        load_weight: for topk_balanced: weight of the load loss.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        router: str = "sparse_ot",
        choice: str = "expert",
        experts_per_token: int = 1,
        capacity_factor: float = 1.0,
        steps: int = 20,
        adam_lr: float = 0.01,
        group_size: int = 256,
        noise: float = 1.0,
        importance_weight: float = 0.005,
        load_weight: float = 0.005,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        check_router(router, choice, experts_per_token, capacity_factor, steps, adam_lr)
        if group_size < 1:
            raise UserError(f"regularizer.group_size={group_size} must be at least 1.")
        if noise <= 0 or importance_weight < 0 or load_weight < 0:
            raise UserError(
                f"regularizer.noise={noise} must be above 0, importance_weight={importance_weight} and "
                f"load_weight={load_weight} at least 0."
            )
        mixtures = [module for module in self.backbone.modules() if isinstance(module, MixtureOfExperts)]
        if len(mixtures) != 1:
            raise UserError("moe_router needs a network with one mixture of experts: take backbone=moe.")
        self.importance_weight, self.load_weight = importance_weight, load_weight
        self.experts_per_token = min(experts_per_token, len(mixtures[0].experts))
        self.balanced = router == "topk_balanced"
        self.router = Router(
            group_size,
            router=router,
            choice=choice,
            experts_per_token=experts_per_token,
            capacity_factor=capacity_factor,
            steps=steps,
            lr=adam_lr,
        )
        if self.balanced:
            self.router.noise = noise / len(mixtures[0].experts)
            self.router.generator = lambda: self.generator("routing")
        mixtures[0].router = self.router
        self._waiting: list[
            tuple[Tensor, Tensor]
        ] = []  # images and labels of the split that is being evaluated

    # -- training ------------------------------------------------------------------------------------------------

    def penalty(self) -> Tensor:
        """The balancing losses of the last pass, means over its groups; and the loads are watched."""
        routed = self.router.take()
        gates = routed.noisy.softmax(1)
        size = self.router.group_size
        for routing, own in zip(routed.routings, gates.detach().split(size), strict=True):
            for name, value in loads(routing, own).items():
                self.watch(name, value)
        if not self.balanced:
            return gates.new_zeros(())
        losses = [
            self.importance_weight * importance_loss(logits.softmax(1))
            + self.load_weight * load_loss(logits, noisy, self.experts_per_token, self.router.noise)
            for logits, noisy in zip(routed.logits.split(size), routed.noisy.split(size), strict=True)
        ]
        return torch.stack(losses).mean()

    # -- evaluation: of a whole split at its end, in groups that no batch decides --------------------------------------

    def _wait(self, batch) -> None:
        self._waiting.append(tuple(batch_fields(batch, ("image", "label"))))

    def _classify(self, stage: str, *measures: nn.Module) -> None:
        """Routes what has been waiting in random groups, always the same, and logs how even the routings are."""
        if not self._waiting:
            return
        image, label = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        order = torch.randperm(len(label), generator=seeding.generator(SPLIT_SEED, "moe_router")).to(
            label.device
        )
        spread: dict[str, list[Tensor]] = {}
        for rows in order.split(self.router.group_size):
            # At the end of an epoch Lightning's autocast, in which the steps are, is over.
            with self.trainer.precision_plugin.forward_context():
                logits = self(image[rows])
            for measure in measures:
                measure.update(logits, label[rows])
            routed = self.router.take()
            for name, value in loads(routed.routings[0], routed.logits.softmax(1)).items():
                spread.setdefault(name, []).append(value)
        for name, values in spread.items():
            self.log(f"{stage}/{name}", torch.stack(values).mean(), sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        self._waiting.clear()

    def validation_step(self, batch, batch_idx: int) -> None:
        self._wait(batch)

    def on_validation_epoch_end(self) -> None:
        self._classify("val", self.val_metrics)
        super().on_validation_epoch_end()

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._waiting.clear()

    def test_step(self, batch, batch_idx: int) -> None:
        self._wait(batch)

    def on_test_epoch_end(self) -> None:
        self._classify("test", self.test_metrics, self.test_confusion)
        super().on_test_epoch_end()
