"""Networks for modular arithmetic: they read pairs of residues."""

import torch
from torch import Tensor, nn

from regbench.errors import UserError


class ModularMLP(nn.Module):
    """Two layers with a quadratic activation and no biases (Gromov 2023, arXiv:2301.02679): f(i, j) = W (U_i + V_j)².

    W1 = [U V] times the one-hot vectors of i and j is the column U_i plus the column V_j, so it is looked up and not
    multiplied. Dropout acts before the square, batch normalisation after it.

    Args:
        num_classes: p, the modulus.
        hidden: N, hidden units.
        dropout: probability of dropping a hidden unit.
        batch_norm: whether the squares are normalised.

    >>> network = ModularMLP(7, hidden=4)
    >>> network(torch.tensor([[3, 5], [0, 6]])).shape
    torch.Size([2, 7])
    """

    def __init__(
        self, num_classes: int, *, hidden: int = 500, dropout: float = 0.0, batch_norm: bool = False
    ):
        super().__init__()
        if hidden < 1 or not 0 <= dropout < 1:
            raise UserError(
                f"backbone.hidden={hidden} must be at least 1, backbone.dropout={dropout} from 0 to below 1."
            )
        self.p = num_classes
        self.register_buffer("offset", torch.tensor([0, num_classes]), persistent=False)
        self.first = nn.EmbeddingBag(2 * num_classes, hidden, mode="sum")  # W1 transposed
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.out = nn.Linear(hidden, num_classes, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Both layers from N(0, s²), s = 0.5 / (2N)^(1/3), as the released code of arXiv:2310.13061 has it."""
        std = 0.5 / (2 * self.out.in_features) ** (1 / 3)
        for layer in (self.first, self.out):
            nn.init.normal_(layer.weight, std=std)

    def forward(self, pair: Tensor) -> Tensor:
        """Pairs (B, 2) of residues → (B, p)."""
        places = (
            pair.long() + self.offset
        )  # long(): a network is tried on floating-point zeros when it is built
        return self.out(self.norm(self.dropout(self.first(places)).square()))

    def units(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of each hidden unit: U (N, p), V (N, p), and W transposed (N, p)."""
        left, right = self.first.weight.split(self.p)
        return left.T, right.T, self.out.weight.T
