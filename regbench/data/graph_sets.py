"""The graphs that there are: generated ones, and the files of real ones."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regbench import seeding
from regbench.data.download import from_host
from regbench.data.graphs import Graph
from regbench.data.sets import fingerprint, rank_in_class
from regbench.errors import UserError
from regbench.extras import need_torch_geometric
from regbench.paths import data_root

PLANETOID_FILES = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
ARXIV_URL = "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"

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

    def error(reason: str) -> UserError:
        return UserError(
            f"{problem} {reason} Put {url} into {folder}, or give the folder that holds the sets as dataset.root."
        )

    with from_host(url, error):
        download_url(url, str(folder), log=False)


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
