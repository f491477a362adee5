"""Graphs with node labels: `GraphDataModule`, and the sets that it reads.

A graph is one batch: an epoch is one step on all its nodes. Its loaders give mappings with

- features, float32 (N, F), of all nodes;
- edges, int64 (2, E), each undirected edge in both directions;
- label, int64 (N,), the labels that training sees: those of the training nodes, −1 elsewhere;
- train_mask, bool (N,);

and for validation and test also node, int64 (n,), the nodes that are evaluated, and target, int64 (n,), their labels.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object
from omegaconf import DictConfig
from torch import Tensor

from regbench import seeding
from regbench.data.base import DataModule
from regbench.data.sets import fingerprint, rank_in_class
from regbench.errors import UserError
from regbench.extras import need_torch_geometric
from regbench.paths import data_root

PLANETOID_FILES = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
ARXIV_URL = "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"


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


# -- generated graphs ----------------------------------------------------------------------------------------


def block_model(labels: np.ndarray, degree: float, homophily: float, rng: np.random.Generator) -> np.ndarray:
    """Edges int64 (2, E) of a stochastic block model, each undirected edge once, in time and memory O(E).

    A pair within a class of size n = N / C is an edge with probability degree · homophily / n, a pair across classes
    with degree · (1 − homophily) / (N − n): a node has `degree` neighbours on average, `homophily` of them alike.
    The number of edges of each pair of classes is binomial, and the edges are that many different pairs.

    Args:
        labels: int64 (N,), from 0 to C − 1.
        degree: mean number of neighbours.
        homophily: share of the edges within classes.
    """
    classes = int(labels.max()) + 1
    members = [np.flatnonzero(labels == c) for c in range(classes)]
    size = len(labels) / classes
    inside, across = degree * homophily / size, degree * (1 - homophily) / max(len(labels) - size, 1)
    found = []
    for a in range(classes):
        for b in range(a, classes):
            rows, columns = members[a], members[b]
            pairs = len(rows) * (len(rows) - 1) // 2 if a == b else len(rows) * len(columns)
            count = rng.binomial(pairs, min(inside if a == b else across, 1.0))
            # Of so many pairs so few are chosen that numpy draws them one by one and makes no list of all.
            place = (
                np.sort(rng.choice(pairs, count, replace=False, shuffle=False)) if pairs else np.zeros(0, int)
            )
            if a == b:  # pair number i (i − 1) / 2 + j, j < i
                i = ((1 + np.sqrt(1 + 8 * place.astype(np.float64))) / 2).astype(np.int64)
                i -= i * (i - 1) // 2 > place
                i += i * (i + 1) // 2 <= place
                j = place - i * (i - 1) // 2
            else:
                i, j = np.divmod(place, max(len(columns), 1))
            found.append(np.stack([rows[i], columns[j]]))
    return np.concatenate(found, axis=1)


def load_citation_sbm(
    root: str | None = None,
    *,
    nodes: int,
    classes: int,
    degree: float,
    homophily: float,
    words: int,
    own_words: int,
    word_rate: float,
    own_word_rate: float,
    train_per_class: int,
    train_share: float | None,
    val_nodes: int,
    test_nodes: int,
    seed: int = 0,
) -> Graph:
    """A citation-like graph: a block model whose nodes have binary words, some of them typical of their class.

    Classes are uniform. Each word of a node is on with probability `word_rate`; the `own_words` words from
    c · own_words on are on with `own_word_rate` for class c. Rows are divided by their sum.

    Args:
        train_share: share of each class's nodes that train, in place of train_per_class.
        seed: of the stream "data"; graph, words and splits are drawn from it.
    """
    if own_words * classes > words:
        raise UserError(
            f"dataset.own_words={own_words} for each of {classes} classes are more than dataset.words={words}."
        )
    if not 0 <= homophily <= 1 or degree < 0:
        raise UserError(
            f"dataset.homophily={homophily} lies in [0, 1], and dataset.degree={degree} is at least 0."
        )
    settings = {name: value for name, value in locals().items() if name not in ("root", "seed")}
    rng = np.random.default_rng(seeding.derive(seed, "citation_sbm"))
    labels = rng.integers(classes, size=nodes)
    edges = torch.from_numpy(block_model(labels, degree, homophily, rng))
    rate = np.full((classes, words), word_rate, dtype=np.float32)
    for c in range(classes):
        rate[c, c * own_words : (c + 1) * own_words] = own_word_rate
    on = torch.from_numpy(rng.random((nodes, words), dtype=np.float32) < rate[labels])
    order = torch.from_numpy(rng.permutation(nodes))
    labels = torch.from_numpy(labels)
    counts = labels.bincount(minlength=classes)
    quota = (
        torch.full_like(counts, train_per_class)
        if train_share is None
        else (counts * train_share).round().long()
    )
    by_class = [order[labels[order] == c] for c in range(classes)]
    train = torch.cat([members[: int(n)] for members, n in zip(by_class, quota, strict=True)])
    rest = order[~torch.isin(order, train)]
    if len(rest) < val_nodes + test_nodes or bool((counts < quota.clamp(min=1)).any()):
        raise UserError(
            f"dataset.val_nodes={val_nodes} and test_nodes={test_nodes} do not fit beside {len(train)} training nodes "
            f"into dataset.nodes={nodes}, or a class has too few nodes. Take a larger graph, or fewer of them."
        )
    return Graph(
        row_normalised(on.float()),
        both_ways(edges),
        labels,
        train.sort().values,
        rest[:val_nodes].sort().values,
        rest[val_nodes : val_nodes + test_nodes].sort().values,
        [str(c) for c in range(classes)],
        fingerprint("citation_sbm", json.dumps(settings, sort_keys=True)),
    )


def load_random_graph(root: str | None = None, *, features: int, num_classes: int, seed: int = 0) -> Graph:
    """A random graph of this many features and classes, ten nodes a class: to try out a run whose data is absent."""
    generator = seeding.generator(seed, "random_graph")
    labels = torch.arange(10 * num_classes) % num_classes
    edges = torch.randint(len(labels), (2, 2 * len(labels)), generator=generator)
    rank = torch.arange(len(labels)) // num_classes
    train, val, test = (mask.nonzero().flatten() for mask in (rank < 4, (rank >= 4) & (rank < 7), rank >= 7))
    x = torch.rand(len(labels), features, generator=generator)
    names = [str(c) for c in range(num_classes)]
    return Graph(x, both_ways(edges[:, edges[0] != edges[1]]), labels, train, val, test, names)


# -- real graphs ---------------------------------------------------------------------------------------------


def load_planetoid(root: str | None = None, *, name: str, normalise: bool) -> Graph:
    """Cora, CiteSeer or PubMed with the public split (Yang et al. 2016), read by PyTorch Geometric's reader.

    Args:
        root: holds planetoid/<name>/raw/ind.<name>.*, as PyTorch Geometric's Planetoid(root/planetoid, name) does; they
            are downloaded there where there is a network. Nothing else is written.
        normalise: whether each node's features are divided by their sum.
    """
    need_torch_geometric()
    from torch_geometric.datasets import Planetoid
    from torch_geometric.io import read_planetoid_data

    raw = data_root(root) / "planetoid" / name / "raw"
    files = [f"ind.{name.lower()}.{part}" for part in PLANETOID_FILES]
    missing = [file for file in files if not (raw / file).is_file()]
    for file in missing:
        _download(f"{Planetoid.url}/{file}", raw, f"{raw} lacks {', '.join(missing)} of the graph {name}.")
    data = read_planetoid_data(str(raw), name.lower())
    splits = (getattr(data, f"{split}_mask").nonzero().flatten() for split in ("train", "val", "test"))
    features = row_normalised(data.x) if normalise else data.x
    names = [str(c) for c in range(int(data.y.max()) + 1)]
    return Graph(features, both_ways(data.edge_index), data.y, *splits, names)


def load_citation_full(
    root: str | None = None,
    *,
    name: str,
    file: str,
    train_per_class: int,
    val_per_class: int,
    normalise: bool,
) -> Graph:
    """A graph of Bojchevski & Günnemann 2018 (CoraFull is `cora`), read by PyTorch Geometric's reader.

    Args:
        root: holds citation_full/<file>; it is downloaded there where there is a network.
        name: what messages call the graph.
        train_per_class, val_per_class: nodes of each class that train and validate, the same for every seed; the others
            test. A class that has fewer gives all to the first split.
    """
    need_torch_geometric()
    from torch_geometric.datasets import CitationFull
    from torch_geometric.io import read_npz

    path = data_root(root) / "citation_full" / file
    if not path.is_file():
        _download(CitationFull.url.format(path.stem), path.parent, f"{path}, the graph {name}, is not there.")
    data = read_npz(str(path), to_undirected=True)
    rank = rank_in_class(data.y, "graph split")
    held = rank < train_per_class + val_per_class
    masks = (rank < train_per_class, held & (rank >= train_per_class), ~held)
    features = row_normalised(data.x) if normalise else data.x
    names = [str(c) for c in range(int(data.y.max()) + 1)]
    return Graph(
        features, both_ways(data.edge_index), data.y, *(mask.nonzero().flatten() for mask in masks), names
    )


def load_ogbn_arxiv(root: str | None = None) -> Graph:
    """ogbn-arxiv (Hu et al. 2020) with its split by time, made undirected; its raw files are read, ogb is not needed.

    Args:
        root: holds ogb/ogbn_arxiv/raw/{edge,node-feat,node-label}.csv.gz and
            ogb/ogbn_arxiv/split/time/{train,valid,test}.csv.gz, as ogb unpacks them; where there is a network they are
            downloaded.
    """
    from pyarrow import csv

    base = data_root(root) / "ogb" / "ogbn_arxiv"
    files = {name: base / "raw" / f"{name}.csv.gz" for name in ("edge", "node-feat", "node-label")}
    files |= {name: base / "split" / "time" / f"{name}.csv.gz" for name in ("train", "valid", "test")}
    missing = [str(path.relative_to(base)) for path in files.values() if not path.is_file()]
    if missing:
        need_torch_geometric()
        from torch_geometric.data import extract_zip

        _download(ARXIV_URL, base.parent, f"{base} lacks {', '.join(missing)} of the graph ogbn-arxiv.")
        extract_zip(str(base.parent / "arxiv.zip"), str(base.parent))
        (base.parent / "arxiv").rename(base)
        (base.parent / "arxiv.zip").unlink()

    def read(name: str, dtype: torch.dtype) -> Tensor:
        table = csv.read_csv(files[name], read_options=csv.ReadOptions(autogenerate_column_names=True))
        return torch.stack([torch.tensor(column.to_numpy(), dtype=dtype) for column in table.columns], dim=1)

    labels = read("node-label", torch.long).flatten()
    splits = (read(name, torch.long).flatten() for name in ("train", "valid", "test"))
    names = [str(c) for c in range(int(labels.max()) + 1)]
    return Graph(
        read("node-feat", torch.float32), both_ways(read("edge", torch.long).T), labels, *splits, names
    )


def _download(url: str, folder: Path, problem: str) -> None:
    from torch_geometric.data import download_url

    try:
        download_url(url, str(folder), log=False)
    except Exception as error:
        raise UserError(
            f"{problem} (No download: {type(error).__name__}: {error}.) Put {url} into {folder}, or give the folder "
            "that holds the sets as dataset.root."
        ) from error


def row_normalised(features: Tensor) -> Tensor:
    """Each row divided by its sum; rows of zeros stay."""
    return features / features.sum(1, keepdim=True).clamp(min=1e-12)


def both_ways(edges: Tensor) -> Tensor:
    """The edges int64 (2, E) in both directions, each once, sorted, without self-loops.

    >>> both_ways(torch.tensor([[0, 1, 2, 2], [1, 0, 2, 1]])).tolist()
    [[0, 1, 1, 2], [1, 0, 2, 1]]
    """
    edges = edges[:, edges[0] != edges[1]]
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    width = int(edges.max()) + 1 if edges.numel() else 1
    key = (edges[0] * width + edges[1]).unique()
    return torch.stack([key // width, key % width])
