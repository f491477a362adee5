"""Networks that solve a differential equation: an encoder, a field that a solver of `regbench.solvers` integrates from
time 0 to `end`, and a head. `solve` gives the steps with their heuristics, `read` the head's output at the end.

They compute in `dtype`: a tolerance of 1.4e-8 lies below float32's rounding, which would dominate the estimates of the
error.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.solvers import sde, tsit5
from regbench.solvers.solution import Solution

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class TimeLinear(nn.Linear):
    """A linear layer of a state (B, d) with the time appended to it."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features + 1, out_features)

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        """`t` is a number, or (B, 1): a time for each state."""
        of_state, of_time = self.weight[:, :-1], self.weight[:, -1]
        if isinstance(t, Tensor):
            return nn.functional.linear(z, of_state, self.bias) + t * of_time
        return nn.functional.linear(z, of_state, torch.add(self.bias, of_time, alpha=t))


class Field(nn.Module):
    """f(t, z), from states (B, d) to their slopes (B, d): linear layers with tanh between them.

    Args:
        dim: d.
        hidden: units of each hidden layer.
        time: the time is appended to each layer's input; without it f does not depend on it.
        bounded: tanh on the output too.
        cube: the first layer sees z³.
        squash: the first layer sees tanh(z).
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        *,
        time: bool = False,
        bounded: bool = False,
        cube: bool = False,
        squash: bool = False,
    ):
        super().__init__()
        sizes = [dim, *hidden, dim]
        layer = TimeLinear if time else nn.Linear
        self.layers = nn.ModuleList(layer(a, b) for a, b in pairwise(sizes))
        self.time, self.bounded, self.cube, self.squash = time, bounded, cube, squash

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        z = z**3 if self.cube else z
        z = torch.tanh(z) if self.squash else z
        for position, layer in enumerate(self.layers):
            z = layer(t, z) if self.time else layer(z)
            if self.bounded or position + 1 < len(self.layers):
                z = torch.tanh(z)
        return z


class Flow(nn.Module):
    """encode → integrate from 0 to `end` → head. A subclass has `integrate`.

    Args:
        end: the end time T; 0: nothing is integrated, the head sees the encoder's output.
        tolerance: absolute and relative, of the solver.
        trajectories: solutions of an input whose outputs are averaged in `forward`; more than one where there is noise.
    """

    def __init__(
        self,
        encode: nn.Module,
        head: nn.Module,
        *,
        end: float,
        tolerance: float,
        trajectories: int = 1,
        dtype: str = "float64",
    ):
        super().__init__()
        if not 0 <= end < math.inf or not 0 < tolerance < math.inf or trajectories < 1:
            raise UserError(
                f"backbone.end={end} is at least 0, backbone.tolerance={tolerance} above 0, backbone.trajectories="
                f"{trajectories} at least 1."
            )
        if dtype not in DTYPES:
            raise unknown("backbone.dtype", dtype, DTYPES)
        self.encode, self.head = encode, head
        self.end, self.tolerance, self.trajectories, self.dtype = end, tolerance, trajectories, DTYPES[dtype]

    def integrate(self, z: Tensor, end: float, seed: int) -> Solution:
        """The solution from states (B, d) at time 0. The seed names the noise, where there is noise."""
        raise NotImplementedError(f"{type(self).__name__} defines no integrate")

    def solve(
        self, point: Tensor, *, end: float | None = None, seed: int = 0, trajectories: int = 1
    ) -> Solution:
        """The solution from the encoded points (B, …); its states have B · trajectories rows, trajectory by trajectory.

        Args:
            end: the end time; None: the network's own.
            seed: names the noise, where there is noise.
        """
        z = self.encode(point.flatten(1).to(self.dtype)).repeat(trajectories, 1)
        return self.integrate(z, self.end if end is None else end, seed)

    def read(self, solution: Solution, trajectories: int = 1) -> Tensor:
        """The head's output (B, C) at the solution's end, the mean over the trajectories."""
        return self.head(solution.end).unflatten(0, (trajectories, -1)).mean(0)

    def forward(self, point: Tensor) -> Tensor:
        """(B, …) → (B, C), as at test time; where there is noise, always of one seed."""
        return self.read(self.solve(point, trajectories=self.trajectories), self.trajectories)


class NeuralODE(Flow):
    """z' = f(t, z), solved by Tsit5."""

    def __init__(self, encode: nn.Module, field: nn.Module, head: nn.Module, **options):
        super().__init__(encode, head, **options)
        self.field = field
        self.to(self.dtype)

    def integrate(self, z: Tensor, end: float, seed: int) -> Solution:
        return tsit5.solve(self.field, z, 0.0, end, tolerance=self.tolerance)


class LatentGRU(nn.Module):
    """Reads series backwards in time (Rubanova et al. 2019, as the released code of Pal et al. 2021 has it).

    The state is a pair (m, s) of `width` numbers each, both 0 after the last time. At a time with the input x,

        u = σ(net_u(m, s, x)),    r = σ(net_r(m, s, x)),    (m', s') = net(r m, r s, x)
        m ← (1 − u) m' + u m,     s ← (1 − u) s' + u s

    where the nets have one hidden layer with tanh. x is the values, which of them were observed (1 or 0), and the time
    to the next one.

    Args:
        features: F, values of a time.
        width: numbers of m, and of s.
        hidden: units of the nets' hidden layers.
        skip_unobserved: times at which nothing was observed leave the state as it was. The released code means to do
            this, but takes the time to the next one for an observation: it does so only at the last time.
    """

    def __init__(self, features: int, width: int, hidden: int, skip_unobserved: bool = False):
        super().__init__()
        inputs = 2 * width + 2 * features + 1

        def net(outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))

        self.update, self.reset, self.new = net(width), net(width), net(2 * width)
        self.features, self.width = features, width
        self.skip_unobserved = skip_unobserved

    def forward(self, series: Tensor) -> Tensor:
        """(B, 2 F + 1, T) → (B, 2 width), (m, s) after the first time."""
        state = series.new_zeros(len(series), 2 * self.width)
        observed = series[:, self.features : -1 if self.skip_unobserved else None]
        seen = observed.sum(1, keepdim=True) > 0
        for position in reversed(range(series.shape[2])):
            x = series[:, :, position]
            inputs = torch.cat([state, x], 1)
            keep = torch.sigmoid(self.update(inputs)).repeat(1, 2)
            reset = torch.sigmoid(self.reset(inputs)).repeat(1, 2)
            new = self.new(torch.cat([reset * state, x], 1))
            state = torch.where(seen[:, :, position], (1 - keep) * new + keep * state, state)
        return state


class LatentODE(NeuralODE):
    """A state drawn around what an encoder makes of a series flows along z' = f(t, z); the head reads values
    from it at any time.
    """

    def posterior(self, series: Tensor) -> tuple[Tensor, Tensor]:
        """Series (B, 2 F + 1, T), see `LatentGRU` → mean and log variance (B, d) of the state at time 0."""
        mean, log_variance = self.encode(series.to(self.dtype)).chunk(2, 1)
        return mean, log_variance

    def draw(self, mean: Tensor, log_variance: Tensor, seed: int) -> Tensor:
        """States (B, d) from the normal distribution; the seed names the noise."""
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed), dtype=mean.dtype)
        return mean + torch.exp(log_variance / 2) * noise.to(mean.device)

    def integrate(self, z: Tensor, end: float, seed: int) -> Solution:
        return tsit5.solve(self.field, z, 0.0, end, tolerance=self.tolerance, dense=True)

    def solve(
        self, point: Tensor, *, end: float | None = None, seed: int = 0, trajectories: int = 1
    ) -> Solution:
        """The solution from states drawn for the series (B, 2 F + 1, T), `trajectories` of them for each."""
        mean, log_variance = (part.repeat(trajectories, 1) for part in self.posterior(point))
        return self.integrate(self.draw(mean, log_variance, seed), self.end if end is None else end, seed)


class NeuralSDE(Flow):
    """du = f(t, u) dt + g(t, u) dW with diagonal noise, solved by the adaptive Euler-Maruyama scheme."""

    def __init__(self, encode: nn.Module, drift: nn.Module, diffusion: nn.Module, head: nn.Module, **options):
        super().__init__(encode, head, **options)
        self.drift, self.diffusion = drift, diffusion
        self.to(self.dtype)

    def integrate(self, z: Tensor, end: float, seed: int) -> Solution:
        path = sde.brownian(z, end, seed) if end else None
        return sde.solve(self.drift, self.diffusion, z, 0.0, end, path=path, tolerance=self.tolerance)


def neural_ode(
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, ...] = (),
    *,
    hidden: Sequence[int] = (32,),
    bounded: bool = False,
    end: float = 1.0,
    tolerance: float = 1.4e-8,
    dtype: str = "float64",
) -> NeuralODE:
    """The points themselves flow; a linear layer classifies where they end."""
    dim = in_channels * math.prod(image_size)
    field = Field(dim, hidden, time=True, bounded=bounded)
    head = nn.Linear(dim, num_classes)
    return NeuralODE(nn.Identity(), field, head, end=end, tolerance=tolerance, dtype=dtype)


def neural_sde(
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, ...] = (),
    *,
    width: int = 32,
    hidden: Sequence[int] = (64,),
    end: float = 1.0,
    tolerance: float = 0.14,
    trajectories: int = 10,
    dtype: str = "float64",
) -> NeuralSDE:
    """A linear layer maps the points to `width` numbers that flow with noise; a linear layer classifies the end."""
    dim = in_channels * math.prod(image_size)
    drift, diffusion = Field(width, hidden), Field(width, ())
    encode, head = nn.Linear(dim, width), nn.Linear(width, num_classes)
    options = {"end": end, "tolerance": tolerance, "trajectories": trajectories, "dtype": dtype}
    return NeuralSDE(encode, drift, diffusion, head, **options)


def path_sde(
    in_channels: int,
    *,
    hidden: Sequence[int] = (50,),
    cube: bool = True,
    end: float = 1.0,
    tolerance: float = 0.3,
    dtype: str = "float64",
) -> NeuralSDE:
    """A process in the space of the data: no encoder, no head; the diffusion is linear."""
    drift, diffusion = Field(in_channels, hidden, cube=cube), Field(in_channels, ())
    return NeuralSDE(
        nn.Identity(), drift, diffusion, nn.Identity(), end=end, tolerance=tolerance, dtype=dtype
    )


def latent_ode(
    in_channels: int,
    *,
    latent: int = 8,
    hidden: Sequence[int] = (32,),
    width: int = 16,
    encoder_hidden: int = 16,
    skip_unobserved: bool = False,
    spread: float = 0.05,
    end: float = 1.0,
    tolerance: float = 1.4e-8,
    dtype: str = "float64",
) -> LatentODE:
    """A GRU reads the series backwards, states of `latent` numbers flow, and a linear layer reads values from them.

    `in_channels` is 2 F + 1: values, which of them were observed, and the time to the next ones. `spread` is the
    standard deviation of the starts before training, but for the initial weights.
    """
    if not 0 < spread < math.inf:
        raise UserError(f"backbone.spread={spread} is a standard deviation, above 0.")
    features = (in_channels - 1) // 2
    encode = nn.Sequential(
        LatentGRU(features, width, encoder_hidden, skip_unobserved),
        nn.Linear(2 * width, width),
        nn.Tanh(),
        nn.Linear(width, 2 * latent),
    )
    with torch.no_grad():
        encode[-1].bias[latent:] += 2 * math.log(spread)
    field, head = Field(latent, hidden, bounded=True, squash=True), nn.Linear(latent, features)
    return LatentODE(encode, field, head, end=end, tolerance=tolerance, dtype=dtype)
