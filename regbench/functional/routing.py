"""Which tokens of a group go to which experts of a sparse mixture (Liu et al. 2023, arXiv:2209.15466).

N tokens, E experts, gate logits L (N, E), gates S = softmax of each row. A routing is a boolean mask (N, E); it carries
no gradient: experts' outputs are summed with the gates S as weights, through which the gate learns. The rules are
those of google-research/vmoe.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from regbench.errors import UserError, unknown
from regbench.functional.optimal_transport import adam_plan

# router → whether tokens choose experts or experts choose tokens; either: as the option `choice` says.
ROUTERS = {
    "topk": "token",
    "topk_balanced": "token",
    "sinkhorn": "token",
    "expert_choice": "expert",
    "quadratic": "either",
    "sparse_ot": "either",
}
CHOICES = ("expert", "token")


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
        mask: bool (N, E), the pairs that are computed.
        wanted: bool (N, E), those that were chosen before an expert's capacity cut some off.
    """

    mask: Tensor
    wanted: Tensor


def expert_capacity(choices: int, experts: int, factor: float, multiple_of: int = 4) -> int:
    """Tokens that an expert takes at most: ceil(factor · choices / experts), rounded up to a multiple.

    Args:
        choices: of all tokens together: N times the experts of each.

    >>> expert_capacity(256, 8, 1.05)  # ceil(33.6) = 34, and the next multiple of 4
    36
    """
    capacity = math.ceil(
        round(choices * factor / experts, 9)
    )  # 1.1 · 80 / 8 is 11, and not 11.000000000000002
    return capacity + -capacity % multiple_of


def token_choice(scores: Tensor, k: int, capacity: int) -> Routing:
    """Each token takes the k experts with its largest scores above 0, as long as they have room.

    All first choices come before all second ones, and earlier tokens before later ones.

    Args:
        scores: (N, E), at least 0.

    >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    >>> token_choice(scores, 1, 2).mask.int()
    tensor([[1, 0],
            [1, 0],
            [0, 0]], dtype=torch.int32)
    """
    values, chosen = scores.topk(k, dim=1)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    wanted = mask.clone()
    taken = torch.zeros(scores.shape[1], dtype=torch.long, device=scores.device)
    for rank in range(k):
        one = torch.zeros_like(mask).scatter(1, chosen[:, rank : rank + 1], values[:, rank : rank + 1] > 0)
        place = taken + one.cumsum(0)  # of each token in its expert's queue
        mask |= one & (place <= capacity)
        wanted |= one
        taken = taken + one.sum(0)
    return Routing(mask, wanted)


def expert_choice(scores: Tensor, capacity: int) -> Routing:
    """Each expert takes the tokens with its `capacity` largest scores above 0 (Zhou et al. 2022, arXiv:2202.09368).

    Args:
        scores: (N, E), at least 0.
    """
    rows = scores.topk(min(capacity, len(scores)), dim=0).indices
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(0, rows, True) & (scores > 0)
    return Routing(mask, mask)


def sinkhorn_plan(logits: Tensor, steps: int) -> Tensor:
    """The entropic plan for the cost −L with weight 1 of the entropy: exp(L) scaled to row sums 1 and column sums N/E.

    Args:
        logits: (N, E).
        steps: of Sinkhorn's algorithm; the columns are scaled last.
    """
    tokens, experts = logits.shape
    plan = logits
    for _ in range(steps):
        plan = plan - plan.logsumexp(1, keepdim=True)
        plan = plan - plan.logsumexp(0, keepdim=True) + math.log(tokens / experts)
    return plan.exp()


def quadratic_plan(gates: Tensor, k: int, steps: int, lr: float, choice: str) -> Tensor:
    """The plan (N, E) for the cost −S with at most k entries, γ = 1, by Adam on the semi-dual.

    Row sums 1 and column sums N/E are the constraints. The code leaves the weights unnormalised; γ is of that scale.

    Args:
        gates: S, (N, E).
        k: entries of a column where experts choose, of a row where tokens choose.
        choice: expert or token.
    """
    tokens, experts = gates.shape
    token_weight, expert_weight = gates.new_ones(tokens), gates.new_full((experts,), tokens / experts)
    if choice == "expert":
        return adam_plan(-gates, token_weight, expert_weight, k, 1.0, steps=steps, lr=lr)
    return adam_plan(-gates.T, expert_weight, token_weight, k, 1.0, steps=steps, lr=lr).T


@torch.no_grad()
def route(
    logits: Tensor,
    router: str,
    *,
    choice: str = "expert",
    experts_per_token: int = 1,
    capacity_factor: float = 1.0,
    steps: int = 20,
    lr: float = 0.01,
) -> Routing:
    """The routing of one group of tokens.

    Args:
        logits: L, (N, E); for topk_balanced with their noise, where there is any.
        router: a key of ROUTERS.
        choice: for quadratic and sparse_ot: expert (columns have at most the capacity entries) or token (rows have at
            most experts_per_token).
        experts_per_token: experts that a token chooses.
        capacity_factor: capacity of an expert, as a multiple of an equal share.
        steps: of Adam or of Sinkhorn's algorithm.
        lr: Adam's.
    """
    tokens, experts = logits.shape
    logits = logits.float()
    gates = logits.softmax(1)
    by = ROUTERS[router] if ROUTERS[router] != "either" else choice
    per_token = min(experts_per_token, experts)
    capacity = expert_capacity(tokens * (per_token if by == "token" else 1), experts, capacity_factor)
    scores = gates
    if router == "sinkhorn":
        scores = sinkhorn_plan(logits, steps)
    elif router in ("quadratic", "sparse_ot"):
        entries, most = (capacity, tokens) if by == "expert" else (per_token, experts)
        k = most if router == "quadratic" else min(entries, most)
        scores = quadratic_plan(gates, k, steps, lr, by)
    if by == "token":
        return token_choice(scores, per_token, capacity)
    routing = expert_choice(scores, capacity)
    return routing._replace(wanted=scores > 0) if router == "quadratic" else routing


def check_router(
    router: str, choice: str, experts_per_token: int, capacity_factor: float, steps: int, lr: float
) -> None:
    """Raises UserError for options of `route` outside their range."""
    if router not in ROUTERS:
        raise unknown("regularizer.router", str(router), ROUTERS)
    if choice not in CHOICES:
        raise unknown("regularizer.choice", str(choice), CHOICES)
    if experts_per_token < 1 or steps < 1:
        raise UserError(
            f"regularizer.experts_per_token={experts_per_token} and regularizer.steps={steps} must be at least 1."
        )
    if capacity_factor <= 0 or lr <= 0:
        raise UserError(
            f"regularizer.capacity_factor={capacity_factor} and regularizer.adam_lr={lr} must be above 0."
        )


# -- how even a routing is, and losses that make it even ---------------------------------------------------------------


def loads(routing: Routing, gates: Tensor) -> dict[str, Tensor]:
    """How a routing spreads tokens; every value a scalar.

    - load: pairs of the busiest expert over the experts' mean, before capacity cuts any off;
    - unrouted: share of the tokens that no expert computes;
    - gate_mass: mean over the tokens of the gates of their experts.

    >>> mask = torch.tensor([[True, False], [True, False], [False, True], [False, False]])
    >>> found = loads(Routing(mask, mask), torch.full((4, 2), 0.5))
    >>> {name: round(value.item(), 4) for name, value in found.items()}
    {'load': 1.3333, 'unrouted': 0.25, 'gate_mass': 0.375}
    """
    load = routing.wanted.sum(0).float()
    return {
        "load": load.max() / load.mean(),
        "unrouted": 1 - routing.mask.any(1).float().mean(),
        "gate_mass": (gates * routing.mask).sum(1).mean(),
    }


def squared_variation(x: Tensor) -> Tensor:
    """(standard deviation / mean)² of the entries, with the standard deviation over all (not n − 1).

    >>> squared_variation(torch.tensor([1.0, 3.0]))
    tensor(0.2500)
    """
    return x.var(correction=0) / x.mean() ** 2


def importance_loss(gates: Tensor) -> Tensor:
    """Squared variation over the experts of the gates' sums (Riquelme et al. 2021, arXiv:2106.05974, appendix A.2).

    Args:
        gates: (N, E).
    """
    return squared_variation(gates.sum(0))


def load_loss(logits: Tensor, noisy: Tensor, k: int, noise: float) -> Tensor:
    """Squared variation over the experts of the mean probability that an expert is among a token's k (same appendix).

    The probability is that of new noise lifting the logit to the k-th largest of the noisy ones.

    Args:
        logits: (N, E), without noise.
        noisy: (N, E), with the noise of this step.
        noise: its standard deviation.
    """
    threshold = noisy.topk(k, dim=1).values[:, -1:]
    chance = torch.special.ndtr((logits - threshold) / noise)
    return squared_variation(chance.mean(0))
