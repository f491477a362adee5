"""Fisher merging: each entry of a model's weights counts as much as its Fisher information says.

Formulas and options are the released code's (mmatena/model_merging: fisher.py, merging.py).
"""

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from regbench import seeding
from regbench.backbones.backbone import Backbone
from regbench.data.base import DataModule
from regbench.data.module import data_module
from regbench.errors import UserError, unknown
from regbench.registry import Paper, register
from regbench.regularizers.base import batch_fields
from regbench.regularizers.merging.base import Batches, MergingMethod, Parameters, weighted_mean

KINDS = ("exact", "sampled", "empirical")
SOURCES = ("own", "target")


def squared_gradients(
    network: nn.Module, names: Sequence[str], image: Tensor, target: Tensor, weight: Tensor
) -> Parameters:
    """sum_n sum_k w_nk ( d log p(y_nk | x_n) / d theta )^2, elementwise: one gradient for each image and class.

    Args:
        network: in evaluation mode; images (B, ...) → logits (B, C).
        names: of the parameters theta.
        image: x, (B, ...).
        target: y as rows that are one at the class and zero elsewhere, (B, K, C).
        weight: w, (B, K).

    Returns:
        name → tensor of the parameter's shape.
    """
    everything = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    everything = {name: value.detach() for name, value in everything.items()}
    theta = {name: everything.pop(name) for name in names}

    def of_image(x: Tensor, rows: Tensor, w: Tensor) -> Parameters:
        def log_p(parameters: Parameters) -> Tensor:
            return functional_call(network, (parameters, everything), (x[None],)).log_softmax(1)[0]

        _, pull_back = vjp(log_p, theta)
        (gradients,) = vmap(pull_back)(rows)
        return {name: torch.tensordot(w, g.square(), 1) for name, g in gradients.items()}

    return {name: value.sum(0) for name, value in vmap(of_image)(image, target, weight).items()}


def diagonal_fisher(
    network: nn.Module,
    names: Sequence[str],
    batches: Batches,
    *,
    kind: str = "exact",
    draws: int = 1,
    generator: torch.Generator | None = None,
    chunk: int = 16,
) -> Parameters:
    """The diagonal of the Fisher information, F_j = 1/N sum_n E_{y ~ p(y|x_n)} ( d log p(y | x_n) / d theta_j )^2.

    Args:
        network: images (B, ...) → logits (B, C); it is put into evaluation mode.
        names: of the parameters theta.
        batches: of images, with labels where `kind` is empirical.
        kind: exact: the expectation over all classes; sampled: the mean over `draws` classes drawn from p(y|x);
            empirical: y is the true label, which is not the Fisher information.
        draws: for sampled.
        generator: on the CPU, for sampled.
        chunk: images at once; memory grows with it, times the classes and the parameters.

    Returns:
        name → tensor of the parameter's shape, at least 0.

    With one weight w, logits (w x, 0) and p = sigmoid(w x), F = p (1 − p) x²; here 1/4 · 4:

    >>> layer = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> diagonal_fisher(layer, ["weight"], [(torch.tensor([[2.0]]), None)])["weight"]
    tensor([[1.],
            [1.]])
    """
    network.eval()
    total: Parameters = {}
    count = 0
    for batch in batches:
        (whole,) = batch_fields(batch, ("image",))
        labels = batch_fields(batch, ("image", "label"))[1] if kind == "empirical" else None
        for first in range(0, len(whole), chunk):
            image = whole[first : first + chunk]
            with torch.no_grad():
                p = network(image).softmax(1)
            if kind == "exact":
                classes, weight = torch.arange(p.shape[1], device=p.device).expand(len(p), -1), p
            elif kind == "sampled":
                classes = torch.multinomial(p.cpu(), draws, replacement=True, generator=generator).to(
                    p.device
                )
                weight = torch.full_like(classes, 1 / draws, dtype=p.dtype)
            else:
                classes = labels[first : first + chunk, None]
                weight = torch.ones_like(classes, dtype=p.dtype)
            target = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)[classes]
            with sdpa_kernel(SDPBackend.MATH):  # torch can't vectorise its fused attention over images
                part = squared_gradients(network, names, image, target, weight)
            total = {name: total[name] + value if total else value for name, value in part.items()}
            count += len(image)
    return {name: value / count for name, value in total.items()}


def norm(fisher: Mapping[str, Tensor]) -> Tensor:
    """The L2 norm of a model's whole diagonal Fisher, a scalar."""
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(value) for value in fisher.values()])
    )


def fisher_merge(
    parameters: Sequence[Mapping[str, Tensor]],
    fishers: Sequence[Mapping[str, Tensor]],
    coefficients: Sequence[float],
    *,
    floor: float = 1e-6,
    favour_target: bool = True,
    normalise: bool = True,
) -> Parameters:
    """theta_j = sum_i lambda_i F_ij theta_ij / sum_i lambda_i F_ij for each entry j.

    Args:
        parameters, fishers: of each model, name → tensor; the first is the target's.
        coefficients: lambda.
        floor: Fisher entries below it are raised to it (the maximum, not the sum) ...
        favour_target: ... of the target only, which then keeps its value where nobody has Fisher information; False: of
            all models, and such entries become the average.
        normalise: each lambda_i is divided by the norm of the model's whole Fisher, before the floor.

    Returns:
        name → tensor.

    >>> theta = [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, -2.0])}]
    >>> fishers = [{"a": torch.tensor([4.0, 1.0])}, {"a": torch.tensor([1.0, 3.0])}]
    >>> fisher_merge(theta, fishers, [0.5, 0.5], normalise=False)  # (4 + 3) / 5, (2 - 6) / 4
    {'a': tensor([ 1.4000, -1.0000])}
    """
    weights = []
    for i, (fisher, coefficient) in enumerate(zip(fishers, coefficients, strict=True)):
        scale = coefficient / norm(fisher) if normalise else coefficient
        raised = i == 0 or not favour_target
        weights.append({n: scale * (f.clamp_min(floor) if raised else f) for n, f in fisher.items()})
    return weighted_mean(parameters, weights)


@register(
    "fisher_merging",
    task="classification",
    paper=Paper(
        title="Merging Models with Fisher-Weighted Averaging",
        authors="Michael Matena, Colin Raffel",
        year=2022,
        venue="NeurIPS",
        arxiv="2111.09832",
        code="https://github.com/mmatena/model_merging",
    ),
)
class FisherMerging(MergingMethod):
    """The average of fine-tuned networks in which each weight counts as much as its Fisher information says beats their
    plain average, and passes on what another task's network has learnt at a small part of the cost of training on it.

    Args:
        models: two or more, the target's first; `artifacts.model_1`, `artifacts.model_2` … say which runs make them.
        coefficients, search, merge_head, batchnorm_images: as in `MergingMethod`.
        examples: training images that each Fisher is computed on.
        fisher: exact, sampled or empirical, see `diagonal_fisher`.
        draws: classes drawn for each image; sampled only.
        chunk: images whose gradients are held at once.
        images: own: each model's Fisher is of the data that its run trained on; target: of this run's data.
        floor: smallest Fisher entry, at least 0.
        favour_target: whether the floor is the target's only.
        normalise: whether each Fisher is divided by its norm.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        models: Sequence[nn.Module],
        coefficients: Sequence[float] | None = None,
        search: int = 51,
        merge_head: bool = False,
        batchnorm_images: int = 512,
        examples: int = 4096,
        fisher: str = "exact",
        draws: int = 1,
        chunk: int = 16,
        images: str = "own",
        floor: float = 1e-6,
        favour_target: bool = True,
        normalise: bool = True,
        **base,
    ):
        super().__init__(
            backbone,
            num_classes,
            models=models,
            coefficients=coefficients,
            search=search,
            merge_head=merge_head,
            batchnorm_images=batchnorm_images,
            **base,
        )
        if fisher not in KINDS:
            raise unknown("regularizer.fisher", fisher, KINDS)
        if images not in SOURCES:
            raise unknown("regularizer.images", images, SOURCES)
        if min(examples, draws, chunk) < 1 or floor < 0:
            raise UserError(
                "fisher_merging needs examples, draws and chunk of at least 1 and floor of at least 0; it got "
                f"examples={examples}, draws={draws}, chunk={chunk}, floor={floor}."
            )
        self.examples, self.fisher, self.draws, self.chunk = examples, fisher, draws, chunk
        self.images = images
        self.options = {"floor": floor, "favour_target": favour_target, "normalise": normalise}
        self.fishers: list[Parameters] = []

    def prepare(self, training: Sequence[Batches]) -> None:
        """Computes each model's Fisher."""
        self.fishers = []
        names = list(self.mergeable[0])
        for i, (model, batches) in enumerate(zip(self.models, training, strict=True), start=1):
            fisher = diagonal_fisher(
                model,
                names,
                batches,
                kind=self.fisher,
                draws=self.draws,
                generator=seeding.generator(self.seed, "fisher", i),
                chunk=self.chunk,
            )
            size = norm(fisher)
            if not size.isfinite() or not size > 0:
                raise UserError(
                    f"The Fisher information of model_{i} has the norm {size:g}: its weights are not finite, or it is "
                    "so sure of every class that no gradient is left."
                )
            self.fishers.append(fisher)

    def merged(self, coefficients: Sequence[float]) -> Parameters:
        return fisher_merge(self.mergeable, self.fishers, coefficients, **self.options)

    def data_of(self, model: Backbone) -> DataModule:
        own = super().data_of(model)
        if self.images == "target" or model.origin is None:
            return own
        config = model.origin.config
        if json.dumps(config["dataset"]) == json.dumps(own.node):
            return own
        return data_module(config["dataset"], seeding.streams(config["seed"], config["seeds"]))
