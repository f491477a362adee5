"""Graphs with node labels: what a graph is, and `GraphDataModule`. Which graphs there are: `graph_sets.py`.

A graph is one batch: an epoch is one step on all its nodes. Its loaders give mappings with

- features, float32 (N, F), of all nodes;
- edges, int64 (2, E), each undirected edge in both directions;
- label, int64 (N,), the labels that training sees: those of the training nodes, −1 elsewhere;
- train_mask, bool (N,);

and for validation and test also node, int64 (n,), the nodes that are evaluated, and target, int64 (n,), their labels.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig
from torch import Tensor

from regbench.data.base import DataModule
from regbench.data.sets import fingerprint
from regbench.errors import UserError


@dataclass
class Graph:
    """A graph as a `load` function returns it.

    Args:
        features: float32 (N, F).
        edges: int64 (2, E), each undirected edge in both directions, without self-loops.
        labels: int64 (N,), the true classes.
        train, val, test: int64, positions of the nodes of each split.
        class_names: one a class.
        fingerprint: hash of the content; of a generated graph, of what it is generated from but for the seed.
        notes: what a reader of the results should know, in one sentence or none.
    """

    features: Tensor
    edges: Tensor
    labels: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    class_names: list[str]
    fingerprint: str = ""
    notes: str = ""

    def __post_init__(self):
        if not self.fingerprint:
            parts = (self.features, self.edges, self.labels, self.train, self.val, self.test)
            self.fingerprint = fingerprint(*parts, *self.class_names)

    @property
    def homophily(self) -> float:
        """Share of the edges that join nodes of one class."""
        same = self.labels[self.edges[0]] == self.labels[self.edges[1]]
        return float(same.double().mean()) if len(same) else 0.0


@dataclass
class Nodes:
    """The nodes of a split.

    Args:
        index: int64 (n,), positions in the graph.
        labels: int64 (n,), as training or validation sees them.
        clean: int64 (n,), the true classes where labels are noisy. For measuring only.
    """

    index: Tensor
    labels: Tensor
    clean: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)


@dataclass
class GraphSets:
    """The splits as they are used."""

    graph: Graph
    train: Nodes
    val: Nodes | None
    test: Nodes
    notes: str


class WholeGraph:
    """A loader of one batch: the graph."""

    def __init__(self, batch: Mapping[str, Tensor]):
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        yield dict(self.batch)


class GraphDataModule(DataModule):
    """The loaders of one graph; see the module for what their batches hold.

    Args:
        node: a config of the group `dataset` (see `configs/dataset/_graph.yaml` for every key).
        seeds: stream → seed. "data" draws generated graphs, "noise" the label noise. Splits of real graphs never
            depend on a seed.
    """

    def __init__(self, node: Mapping[str, Any] | DictConfig, seeds: Mapping[str, int]):
        super().__init__(node, seeds)
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def check(self, world: int = 1) -> None:
        """Raises UserError for mistakes in the config that can be seen before any data is read."""
        if world > 1:
            raise UserError(
                f"A graph is one batch, which {world} processes can't share. Use accelerator.devices=1."
            )
        if self.noise is not None and self.noise["kind"] == "instance":
            raise UserError(
                "dataset.noise.kind=instance is made for images; graphs have symmetric, asymmetric and pairflip noise."
            )

    @cached_property
    def sets(self) -> GraphSets:
        """The graph and its splits, with the label noise of the config. Read once."""
        self.check()
        options = dict(self.node["load"])
        load = get_object(options.pop("_target_"))
        if "seed" in inspect.signature(load).parameters:
            options["seed"] = self.seeds["data"]
        graph = load(self.node.get("root"), **options)
        classes = len(graph.class_names)
        if self.node.get("num_classes") not in (None, classes):
            raise UserError(
                f"dataset.num_classes={self.node['num_classes']}, but the graph has {classes} classes."
            )
        notes = graph.notes
        train, val, test = (
            Nodes(index, graph.labels[index]) for index in (graph.train, graph.val, graph.test)
        )
        if self.noise is not None:
            train, val, note = self.with_noise(train, val, classes)
            notes = f"{notes} {note}".strip()
        return GraphSets(graph, train, val if len(val) else None, test, notes)

    @property
    def class_names(self) -> list[str]:
        return self.sets.graph.class_names

    @property
    def shape(self) -> tuple[int]:
        """(F,), the number of a node's features."""
        return (self.sets.graph.features.shape[1],)

    # -- loaders ---------------------------------------------------------------------------------------------

    def train_loader(self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> WholeGraph:
        """The whole graph with the training nodes' labels."""
        self.check(world)
        device = torch.device(device)
        if device not in self._on_device:
            graph, train = self.sets.graph, self.sets.train
            label = torch.full_like(graph.labels, -1)
            label[train.index] = train.labels
            batch = {
                "features": graph.features,
                "edges": graph.edges,
                "label": label,
                "train_mask": label >= 0,
            }
            self._on_device[device] = {name: value.to(device) for name, value in batch.items()}
        return WholeGraph(self._on_device[device])

    def val_loader(
        self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
    ) -> WholeGraph | None:
        """The whole graph and the validation nodes' labels; None where there are none."""
        return None if self.sets.val is None else self._eval_loader(self.sets.val, device, rank, world)

    def test_loader(self, device: torch.device | str = "cpu", rank: int = 0, world: int = 1) -> WholeGraph:
        """The whole graph and the test nodes' labels."""
        return self._eval_loader(self.sets.test, device, rank, world)

    def _eval_loader(self, nodes: Nodes, device: torch.device | str, rank: int, world: int) -> WholeGraph:
        batch = self.train_loader(device, rank, world).batch
        return WholeGraph({**batch, "node": nodes.index.to(device), "target": nodes.labels.to(device)})

    def describe(self) -> dict[str, Any]:
        """What a result must say of its data: sizes, splits, homophily, fingerprint of the content."""
        sets, graph = self.sets, self.sets.graph
        return {
            "name": self.node.get("name"),
            "train": len(sets.train),
            "val": 0 if sets.val is None else len(sets.val),
            "test": len(sets.test),
            "shape": self.shape,
            "num_classes": self.num_classes,
            "validation": "none" if sets.val is None else "the set's own",
            "notes": sets.notes,
            "nodes": len(graph.labels),
            "edges": graph.edges.shape[1] // 2,
            "homophily": round(graph.homophily, 4),
            "fingerprint": graph.fingerprint,
        }
