"""Graphs: the generated one, the files of real ones, label noise, and what the loaders give out."""

import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hydra import compose, initialize_config_dir

from regbench.data import graph_sets
from regbench.data.graph_sets import block_model, both_ways
from regbench.data.graphs import GraphDataModule
from regbench.errors import UserError
from regbench.paths import configs_dir
from regbench.seeding import streams

REAL = Path(__file__).parents[3] / "shared" / "data"
NOISE = ["dataset.noise.kind=symmetric", "dataset.noise.rate=0.3"]


def make(name: str, *overrides: str, seed: int = 0) -> GraphDataModule:
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        config = compose(overrides=[f"+dataset={name}", *overrides])
    return GraphDataModule(config.dataset, streams(seed))


def planetoid_files(folder: Path, name: str = "cora", missing: tuple[int, ...] = ()) -> None:
    """Files as Planetoid has them: 6 labelled nodes of 3 classes, 504 nodes with features, 4 test nodes in disorder.

    Node i has class i mod 3 and the single word i mod 5; the graph is a path. `missing` test nodes have no features.
    """
    folder.mkdir(parents=True)
    total, test = 508, [507, 504, 506, 505]
    test = [i for i in test if i not in missing]

    def words(nodes):
        return sp.csr_matrix(np.eye(5, dtype=np.float32)[[i % 5 for i in nodes]])

    def classes(nodes):
        return np.eye(3, dtype=np.int32)[[i % 3 for i in nodes]]

    path = {i: [j for j in (i - 1, i + 1) if 0 <= j < total] for i in range(total)}
    # Rows of tx and ty follow test.index, in its order once sorted (the reader puts them in their places).
    content = {
        "x": words(range(6)), "y": classes(range(6)), "allx": words(range(504)), "ally": classes(range(504)),
        "tx": words(test), "ty": classes(test), "graph": path,
    }  # fmt: skip
    for part, value in content.items():
        (folder / f"ind.{name}.{part}").write_bytes(pickle.dumps(value, protocol=2))
    (folder / f"ind.{name}.test.index").write_text("\n".join(map(str, test)) + "\n")


def test_planetoid_files_are_read_and_nothing_is_written(tmp_path):
    raw = tmp_path / "planetoid" / "Cora" / "raw"
    planetoid_files(raw)
    before = sorted(path for path in tmp_path.rglob("*"))
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        config = compose(
            overrides=[
                "+dataset=cora",
                f"dataset.root={tmp_path}",
                "dataset.num_classes=3",
                "dataset.shape=[5]",
            ]
        )
    raw.chmod(0o500)
    try:
        data = GraphDataModule(config.dataset, streams(0))
        described = data.describe()
    finally:
        raw.chmod(0o700)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert (described["train"], described["val"], described["test"]) == (6, 500, 4)
    assert (described["nodes"], described["edges"], described["shape"]) == (508, 507, (5,))
    assert described["homophily"] == 0.0  # neighbours on the path differ by one
    graph = data.sets.graph
    assert graph.train.tolist() == [0, 1, 2, 3, 4, 5]
    assert graph.test.tolist() == [504, 505, 506, 507]
    assert graph.labels.tolist() == [i % 3 for i in range(508)]
    assert graph.features.argmax(1).tolist() == [i % 5 for i in range(508)]
    assert graph.edges[:, graph.edges[0] == 3].tolist() == [[3, 3], [2, 4]]


def test_citeseer_has_nodes_without_features(tmp_path):
    planetoid_files(tmp_path / "planetoid" / "CiteSeer" / "raw", "citeseer", missing=(505,))
    graph = graph_sets.load_planetoid(str(tmp_path), name="CiteSeer", normalise=True)
    assert graph.features[505].sum() == 0
    assert graph.features[506].argmax() == 1
    assert graph.test.tolist() == [504, 506, 507]


def test_missing_files_say_what_to_put_where(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch_geometric.data.download_url", fail)
    proxies = dict.fromkeys(("http", "https"), "http://proxy.invalid")
    monkeypatch.setattr("regbench.data.download.getproxies", lambda: proxies)
    with pytest.raises(UserError, match=r"ind\.cora\.x.*no route to host.*dataset\.root"):
        graph_sets.load_planetoid(str(tmp_path), name="Cora", normalise=True)
    with pytest.raises(UserError, match=r"citation_full.*CoraFull"):
        graph_sets.load_citation_full(
            str(tmp_path),
            name="CoraFull",
            file="cora.npz",
            train_per_class=20,
            val_per_class=30,
            normalise=False,
        )
    with pytest.raises(UserError, match=r"edge\.csv\.gz"):
        graph_sets.load_ogbn_arxiv(str(tmp_path))


def test_citation_full_file(tmp_path):
    folder = tmp_path / "citation_full"
    folder.mkdir()
    labels = np.arange(40) % 2
    words = sp.csr_matrix(np.eye(4, dtype=np.float32)[labels] * 3)
    links = sp.csr_matrix((np.ones(2), ([0, 1], [1, 2])), shape=(40, 40))
    np.savez(
        folder / "tiny.npz", labels=labels,
        attr_data=words.data, attr_indices=words.indices, attr_indptr=words.indptr, attr_shape=words.shape,
        adj_data=links.data, adj_indices=links.indices, adj_indptr=links.indptr, adj_shape=links.shape,
    )  # fmt: skip
    graph = graph_sets.load_citation_full(
        str(tmp_path), name="tiny", file="tiny.npz", train_per_class=5, val_per_class=3, normalise=False
    )
    assert graph.edges.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert graph.labels[graph.train].bincount().tolist() == [5, 5]
    assert graph.labels[graph.val].bincount().tolist() == [3, 3]
    assert len(graph.test) == 24
    assert not set(graph.train.tolist()) & set(graph.val.tolist()) & set(graph.test.tolist())


def test_ogbn_arxiv_files(tmp_path):
    import gzip

    base = tmp_path / "ogb" / "ogbn_arxiv"
    content = {
        "raw/edge": "0,1\n2,1\n",
        "raw/node-feat": "0.5,1\n0,2\n-1,3\n",
        "raw/node-label": "1\n0\n1\n",
        "split/time/train": "2\n",
        "split/time/valid": "0\n",
        "split/time/test": "1\n",
    }
    for name, text in content.items():
        path = base / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    graph = graph_sets.load_ogbn_arxiv(str(tmp_path))
    assert graph.features.tolist() == [[0.5, 1], [0, 2], [-1, 3]]
    assert graph.edges.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert (graph.train.tolist(), graph.val.tolist(), graph.test.tolist()) == ([2], [0], [1])


@pytest.mark.skipif(not (REAL / "planetoid/Cora/raw").is_dir(), reason="the real Cora is not here")
def test_the_real_cora():
    """Its sizes as the literature states them; homophily .81."""
    described = make("cora", f"dataset.root={REAL}").describe()
    assert (described["nodes"], described["edges"], described["shape"]) == (2708, 5278, (1433,))
    assert (described["train"], described["val"], described["test"]) == (140, 500, 1000)
    assert described["homophily"] == pytest.approx(0.81, abs=0.001)


def test_block_model_has_its_degree_and_homophily():
    """Mean degree 5 and homophily .8 within four standard errors, no pair twice, no loop."""
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=20_000)
    edges = torch.from_numpy(block_model(labels, 5.0, 0.8, rng))
    key = edges.sort(0).values
    assert len((key[0] * 20_000 + key[1]).unique()) == edges.shape[1]
    assert bool((edges[0] != edges[1]).all())
    assert 2 * edges.shape[1] / 20_000 == pytest.approx(5, abs=4 * 2 * 50_000**0.5 / 20_000)
    same = float((torch.from_numpy(labels)[edges[0]] == torch.from_numpy(labels)[edges[1]]).double().mean())
    assert same == pytest.approx(0.8, abs=4 * (0.16 / 50_000) ** 0.5)


def test_a_complete_block_is_every_pair():
    """With probability 1 within classes and 0 across, each class is a clique: the pairs' numbering misses none."""
    labels = np.array([0, 1, 0, 0, 1, 0])
    edges = block_model(labels, 3.0, 1.0, np.random.default_rng(0))  # 3 / (6 / 2) = 1
    pairs = {tuple(sorted(pair)) for pair in edges.T.tolist()}
    assert pairs == {(0, 2), (0, 3), (0, 5), (2, 3), (2, 5), (3, 5), (1, 4)}
    assert edges.shape[1] == len(pairs)


def test_a_large_graph_takes_memory_of_its_edges():
    """10^5 nodes: a matrix of all pairs would take 10 GB even at a byte each."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sets = make("citation_sbm", "dataset.nodes=100000", "dataset.words=200").sets
    assert sets.graph.edges.shape[1] == pytest.approx(500_000, rel=0.02)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # KiB


def test_the_generated_graph_follows_the_stream_data_and_its_fingerprint_its_sizes():
    one, again, other = (make("citation_sbm", seed=seed).sets.graph for seed in (0, 0, 1))
    assert torch.equal(one.edges, again.edges)
    assert torch.equal(one.features, again.features)
    assert one.edges.shape != other.edges.shape or not torch.equal(one.edges, other.edges)
    assert one.fingerprint == other.fingerprint  # the seed is in a run's identity by itself
    assert one.fingerprint != make("citation_sbm", "dataset.degree=6").sets.graph.fingerprint
    assert one.labels[one.train].bincount().tolist() == [20] * 5
    assert (len(one.val), len(one.test)) == (200, 700)
    assert not set(one.train.tolist()) & set(one.val.tolist() + one.test.tolist())
    sums = one.features.sum(1)
    torch.testing.assert_close(sums[sums > 0], torch.ones_like(sums[sums > 0]))


def test_half_of_the_nodes_train():
    graph = make("citation_sbm", "dataset.train_share=0.5", "dataset.test_nodes=300").sets.graph
    assert abs(len(graph.train) - 500) <= 2
    with pytest.raises(UserError, match="do not fit"):
        _ = make("citation_sbm", "dataset.train_share=0.5").sets


def test_noise_is_on_training_labels_only_and_the_truth_is_in_no_batch():
    data = make("citation_sbm", "dataset.train_per_class=50", "dataset.test_nodes=500", *NOISE)
    graph, train = data.sets.graph, data.sets.train
    assert torch.equal(data.clean_labels, graph.labels[train.index])
    wrong = (train.labels != train.clean).double().mean()
    assert wrong == pytest.approx(0.3, abs=4 * (0.21 / 250) ** 0.5)
    assert data.sets.val.clean is None
    [batch], [val] = list(data.train_loader()), list(data.val_loader())
    assert set(batch) == {"features", "edges", "label", "train_mask"}
    assert torch.equal(batch["label"][train.index], train.labels)
    assert bool((batch["label"][~batch["train_mask"]] == -1).all())
    assert int(batch["train_mask"].sum()) == 250
    assert torch.equal(val["target"], graph.labels[val["node"]])
    assert torch.equal(val["label"], batch["label"])
    noisy = make("citation_sbm", *NOISE, "dataset.noise.validation=true")
    assert bool((noisy.sets.val.labels != noisy.sets.val.clean).any())
    assert bool((noisy.sets.test.labels == noisy.sets.graph.labels[noisy.sets.test.index]).all())


def test_asymmetric_noise_has_one_random_target_for_each_class():
    data = make(
        "citation_sbm",
        "dataset.noise.kind=asymmetric",
        "dataset.noise.rate=1.0",
        "dataset.noise.class_map=random",
    )
    train = data.sets.train
    targets = {c: set(train.labels[train.clean == c].tolist()) for c in range(5)}
    assert all(len(found) == 1 and found != {c} for c, found in targets.items())


@pytest.mark.parametrize(
    ("overrides", "world", "message"),
    [
        (["dataset.noise.kind=instance", "dataset.noise.rate=0.2"], 1, "made for images"),
        (["dataset.noise.rate=0.2"], 1, "without a kind"),
        ([], 2, "one batch"),
    ],
)
def test_mistakes(overrides, world, message):
    with pytest.raises(UserError, match=message):
        make("citation_sbm", *overrides).check(world)


@pytest.mark.parametrize(
    "override", ["dataset.own_words=50", "dataset.homophily=1.5", "dataset.num_classes=3000"]
)
def test_impossible_sizes(override):
    with pytest.raises(UserError, match="dataset"):
        _ = make("citation_sbm", override).sets


def test_both_ways_drops_loops_and_doubles():
    edges = torch.tensor([[0, 1, 1, 2, 0], [1, 0, 1, 0, 1]])
    assert both_ways(edges).tolist() == [[0, 0, 1, 2], [1, 2, 0, 0]]
    assert both_ways(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)
