"""The routers of sparse mixtures of experts on given gates, without a network: how evenly they spread tokens."""

from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.routing import check_router, loads, route
from regbench.registry import Paper, register
from regbench.regularizers.optimal_transport.base import TransportMethod


@register(
    "token_routing",
    task="optimal_transport",
    paper=Paper(
        title="Sparsity-Constrained Optimal Transport",
        authors="Tianlin Liu, Joan Puigcerver, Mathieu Blondel",
        year=2023,
        venue="ICLR",
        arxiv="2209.15466",
        code="https://github.com/google-research/vmoe",
    ),
)
class TokenRouting(TransportMethod):
    """On given gates, sparsity-constrained transport leaves fewer tokens without an expert than token choice and expert
    choice do, with no expert above its capacity, at a small loss of gates.

    The gates are minus the cost. What the routers do is said in `regbench.functional.routing`.

    Args:
        router: topk, sinkhorn, expert_choice, quadratic or sparse_ot.
        choice: for quadratic and sparse_ot: whether expert or token bounds the entries of the plan.
        experts_per_token: experts that a token chooses.
        capacity_factor: capacity of an expert, as a multiple of an equal share.
        steps: of Adam (quadratic, sparse_ot) or of Sinkhorn's algorithm.
        adam_lr: Adam's learning rate.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int = 0,
        *,
        router: str = "sparse_ot",
        choice: str = "expert",
        experts_per_token: int = 1,
        capacity_factor: float = 1.0,
        steps: int = 20,
        adam_lr: float = 0.01,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        check_router(router, choice, experts_per_token, capacity_factor, steps, adam_lr)
        if router == "topk_balanced":
            raise UserError("topk_balanced differs from topk in training only; take regularizer.router=topk.")
        self.options = {
            "router": router,
            "choice": choice,
            "experts_per_token": experts_per_token,
            "capacity_factor": capacity_factor,
            "steps": steps,
            "lr": adam_lr,
        }

    def evaluate(self, cost: Tensor, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """See `regbench.functional.routing.loads`. The logits are the gates' logarithms."""
        if (cost >= 0).any():
            raise UserError("token_routing takes minus a router's gates as cost: take dataset=token_gates.")
        gates = -cost.float()
        return loads(route(gates.log(), **self.options), gates)
