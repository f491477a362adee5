"""ERASE: representations of nodes by maximal coding rate reduction on propagated labels (Chen et al. 2024).

Source of every equation: the released code, https://github.com/eraseai/erase, its scripts for the small graphs unless
said otherwise. The paper's text (arXiv:2312.08852) was not seen.
"""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from regbench.errors import UserError, unknown
from regbench.functional.coding_rate import class_coding_rate, coding_rate
from regbench.functional.label_propagation import NORMALISATIONS, adjacency, one_hot, propagate
from regbench.registry import Paper, register
from regbench.regularizers.node_classification.base import Graph, NodeMethod

DENOISING = ("train", "all", "shrink", "none")
SCORES = ("softmax", "linear")
ABSENT = -30.0  # logit of a class that no training node has: a probability of about 1e-13


def prototypes(z: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """μ_c = mean of the rows with label c, (num_classes, p); zeros for a class without rows.

    Args:
        z: (n, p).
        label: int64 (n,).
    """
    total = z.new_zeros(num_classes, z.shape[1]).index_add_(0, label, z)
    return total / label.bincount(minlength=num_classes).clamp(min=1)[:, None]


def semantic_scores(denoised: Tensor, z: Tensor, mu: Tensor, beta: float, scores: str) -> Tensor:
    """S = softmax(β Y_d + (1 − β) |cos(z, μ)|) over the classes, (N, C); a cosine with a row of zeros is 0.

    Args:
        denoised: Y_d, (N, C).
        z: (N, p).
        mu: (C, p).
        scores: softmax, or linear: without it.

    >>> mu = torch.tensor([[0.2, 0.0], [0.0, 0.9]]) / torch.tensor([[0.2], [0.9]])
    >>> z = torch.tensor([[0.2, 0.9797959]])
    >>> semantic_scores(torch.tensor([[1.0, 0.0]]), z, mu, 0.6, "linear")  # (0.6 + 0.4 · 0.2, 0.4 · 0.98)
    tensor([[0.6800, 0.3919]])
    """
    cosine = (F.normalize(z, dim=1) @ F.normalize(mu, dim=1).T).abs()
    mixed = beta * denoised + (1 - beta) * cosine
    return mixed.softmax(1) if scores == "softmax" else mixed


def rate_reduction_loss(z: Tensor, label: Tensor, eps: float, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, R, Rc): loss = −γ R(Z) + Rc(Z, label); see `regbench.functional.coding_rate`.

    >>> z = torch.eye(2).repeat(2, 1)
    >>> loss, whole, parts = rate_reduction_loss(z, torch.tensor([0, 1, 0, 1]), 0.5, 2.0)
    >>> round(loss.item(), 6)  # −2 ln 3 + 1/2 ln 5
    -1.392506
    """
    whole, parts = coding_rate(z, eps), class_coding_rate(z, label, eps)
    return parts - gamma * whole, whole, parts


def fit_probe(z: np.ndarray, label: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, p) and bias (C,) of a multinomial logistic regression (L2 penalty, C = 1, L-BFGS, 1000 iterations).

    Args:
        z: (n, p).
        label: (n,); a class that is not among them gets the probability of about 1e-13.
    """
    weight, bias = np.zeros((num_classes, z.shape[1])), np.full(num_classes, ABSENT)
    present = np.unique(label)
    if len(present) == 1:
        bias[present] = 0
        return weight, bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=1000).fit(z, label)
    if len(present) == 2:  # scikit-learn then has the second class's logit only
        weight[present[1]], bias[present] = fitted.coef_[0], [0, fitted.intercept_[0]]
    else:
        weight[present], bias[present] = fitted.coef_, fitted.intercept_
    return weight, bias


@register(
    "erase",
    task="node_classification",
    paper=Paper(
        title="ERASE: Error-Resilient Representation Learning on Graphs for Label Noise Tolerance",
        authors="Ling-Hao Chen, Yuanshuo Zhang, Taohua Huang, Liangcai Su, Zeyi Lin, Xi Xiao, Xiaobo Xia, "
        "Tongliang Liu",
        year=2024,
        venue="CIKM",
        arxiv="2312.08852",
        code="https://github.com/eraseai/erase",
    ),
)
class ERASE(NodeMethod):
    """Node representations that maximise the coding rate reduction of propagated soft labels tolerate wrong labels:
    test accuracy above plain graph networks from 10 to 50 % of them.

    Before training the given labels are denoised along the edges between training nodes. In each epoch they are mixed
    with the cosines to the classes' prototypes and propagated over the graph; their largest entries are the semantic
    labels L of all nodes. The loss is −γ R(Z) + Rc(Z, L). After the step a logistic regression is fitted to the
    training nodes' codes, divided by their L2 norm, and L; it is what is tested.

    Args:
        gamma: γ, weight of the coding rate of all nodes (gam2 of the released code).
        eps: distortion of the coding rates.
        alpha: share of its own labels that a node keeps in a step of propagation, in [0, 1].
        beta: share of the denoised labels against the prototypes' cosines, in [0, 1]; 1: no prototypes.
        steps: steps of each propagation; 0: none.
        denoise: train: along the edges between training nodes (released code for small graphs); all: along all edges
            (ogbn-arxiv); shrink: labels times alpha^steps, no edges; none.
        scores: softmax of the mixed labels, or linear: as they are (ogbn-arxiv).
        normalisation: of the adjacency matrix: column (small graphs), row, or symmetric (ogbn-arxiv).
        restart: true: a step keeps the share alpha of the first labels, and clamps to [0, 1] (ogbn-arxiv); false: of
            the last step's.
        labels_from: the pass that the semantic labels come from: train, with dropout (released code), or eval.
    """

    takes_codes = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        gamma: float = 2.0,
        eps: float = 0.05,
        alpha: float = 0.6,
        beta: float = 0.6,
        steps: int = 5,
        denoise: str = "train",
        scores: str = "softmax",
        normalisation: str = "column",
        restart: bool = False,
        labels_from: str = "train",
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value <= 1:
                raise UserError(f"regularizer.{name}={value} is a share, from 0 to 1.")
        if eps <= 0 or gamma <= 0 or steps < 0:
            raise UserError(
                f"regularizer.eps={eps} and regularizer.gamma={gamma} must be above 0, regularizer.steps={steps} at "
                "least 0."
            )
        for name, value, known in (
            ("denoise", denoise, DENOISING),
            ("scores", scores, SCORES),
            ("normalisation", normalisation, NORMALISATIONS),
            ("labels_from", labels_from, ("train", "eval")),
        ):
            if value not in known:
                raise unknown(f"regularizer.{name}", str(value), known)
        self.gamma, self.eps, self.alpha, self.beta, self.steps = gamma, eps, alpha, beta, steps
        self.denoise, self.scores, self.normalisation = denoise, scores, normalisation
        self.restart, self.labels_from = restart, labels_from
        # Of the last graph: its adjacency and denoised labels.
        self._prepared: tuple[Graph, Tensor, Tensor] | None = None
        self._codes: Tensor | None = None  # of the validation that follows the step
        self.semantic: Tensor | None = None  # int64 (N,), of the last step
        self.register_buffer("probe_weight", torch.zeros(num_classes, self.backbone.codes))
        self.register_buffer("probe_bias", torch.zeros(num_classes))

    # -- training ----------------------------------------------------------------------------------------------------

    def prepare(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """The normalised adjacency matrix, sparse (N, N), and the denoised labels (N, C); made once for a graph."""
        if self._prepared is None or any(a is not b for a, b in zip(self._prepared[0], graph, strict=True)):
            nodes = len(graph.label)
            matrix = adjacency(graph.edges, nodes, self.normalisation)
            given = one_hot(graph.label, self.num_classes)
            if self.denoise == "none":
                denoised = given
            elif self.denoise == "shrink":
                denoised = given * self.alpha**self.steps
            else:
                within = matrix
                if self.denoise == "train":
                    inner = graph.train_mask[graph.edges].all(0)
                    within = adjacency(graph.edges[:, inner], nodes, self.normalisation)
                denoised = self._propagate(given, within)
            self._prepared = graph, matrix, denoised
        return self._prepared[1:]

    def semantic_labels(self, z: Tensor, graph: Graph) -> Tensor:
        """L, int64 (N,), of the codes z (N, p)."""
        matrix, denoised = self.prepare(graph)
        train = graph.train_mask
        mu = prototypes(z[train], denoised[train].argmax(1), self.num_classes)
        return self._propagate(semantic_scores(denoised, z, mu, self.beta, self.scores), matrix).argmax(1)

    def _propagate(self, label: Tensor, matrix: Tensor) -> Tensor:
        with torch.autocast(label.device.type, enabled=False):  # a sparse product has no half precision
            return propagate(
                label.float(), matrix, self.alpha, self.steps, restart=self.restart, clamp=self.restart
            )

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        graph = Graph.of(batch)
        z = self.backbone(graph.features, graph.edges)
        seen = z.detach() if self.labels_from == "train" else self._eval_codes(graph)
        self.semantic = self.semantic_labels(seen.float(), graph)
        loss, whole, parts = rate_reduction_loss(z, self.semantic, self.eps, self.gamma)
        self.watch("rate", whole)
        self.watch("class_rate", parts)
        return loss.to(z.dtype)

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        epoch = self.current_epoch + 1
        if epoch % self.trainer.check_val_every_n_epoch == 0 or epoch == self.max_epochs:
            self.fit(Graph.of(batch))

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self._codes = None  # other weights may be tested next

    @torch.no_grad()
    def fit(self, graph: Graph) -> None:
        """Fits the classifier to the codes of the training nodes and their semantic labels of the last step."""
        if self.semantic is None:
            raise UserError(
                "erase fits its classifier to the labels of the last step; call training_loss(batch) first."
            )
        self._codes = self._eval_codes(graph)
        train = graph.train_mask
        z = F.normalize(self._codes[train].float(), dim=1).cpu().numpy()
        weight, bias = fit_probe(z, self.semantic[train].cpu().numpy(), self.num_classes)
        self.probe_weight.copy_(torch.from_numpy(weight))
        self.probe_bias.copy_(torch.from_numpy(bias))

    @torch.no_grad()
    def _eval_codes(self, graph: Graph) -> Tensor:
        training = self.backbone.training
        self.backbone.eval()
        z = self.backbone(graph.features, graph.edges)
        self.backbone.train(training)
        return z

    # -- evaluation --------------------------------------------------------------------------------------------------

    def predict(self, graph: Graph) -> Tensor:
        # Validation right after the step has the step's codes: one pass less.
        z = self._codes if self._codes is not None else self(graph.features, graph.edges)
        self._codes = None
        return F.linear(F.normalize(z.float(), dim=1), self.probe_weight, self.probe_bias)
