"""Grokking: data, network, periodicity, pruning and loss against numbers by hand and the released code's."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.backbones import build
from regbench.backbones.modular import ModularMLP
from regbench.composing import compose_config
from regbench.data.modular import load_modular, modular_pairs
from regbench.data.samples import Samples
from regbench.errors import UserError
from regbench.functional.fourier import inverse_participation_ratio
from regbench.measures.modular import (
    ModularMeasures,
    accuracies,
    gains,
    operation_of,
    pruned_predictions,
    residue_order,
    unit_ipr,
)
from regbench.regularizers.theory.base import SampleClassifier
from regbench.regularizers.theory.grokking import Grokking, one_hot_squared_error
from support import history, read_result, weights

ADDITION = {"p": 97, "operation": "addition", "train_fraction": 0.5, "corrupted": 0.35}
SMALL = ["regularizer=grokking", "dataset.p=13", "backbone.hidden=32", "callbacks.modular.every=2", "logger=none",
         "progress=none"]  # fmt: skip


def analytic(p: int, hidden: int, frequencies: torch.Tensor | None = None) -> ModularMLP:
    """Gromov 2023 (arXiv:2301.02679): cosines of random frequency and phase that solve modular addition untrained."""
    generator = torch.Generator().manual_seed(0)
    m = torch.randint(1, (p + 1) // 2, (hidden,), generator=generator) if frequencies is None else frequencies
    a, b = (torch.rand(2, hidden, generator=generator) * 2 - 1) * math.pi
    angle = 2 * math.pi * torch.outer(torch.arange(p).float(), m.float()) / p  # (p, N)
    network = ModularMLP(p, hidden=hidden)
    with torch.no_grad():
        network.first.weight.copy_(torch.cat([(angle + a).cos(), (angle + b).cos()]))
        network.out.weight.copy_((angle + a + b).cos())
    return network.eval()


def accuracy(method: Grokking, split: Samples) -> float:
    """On the labels of the split."""
    return (method(split.fields["pair"]).argmax(1) == split.fields["label"]).double().mean().item()


# -- data --------------------------------------------------------------------------------------------------------------


def test_the_released_codes_data():
    """Its printed accuracy of full inversion is 3075 of 4704: of 1646 drawn labels 17 are right by chance."""
    sets = load_modular(**ADDITION, pair_seed=420, label_seed=0)
    train, test = sets.train, sets.test
    assert (len(train), len(test), int(train.hidden["corrupted"].sum())) == (4704, 4705, 1646)
    assert int((train.fields["label"] == train.hidden["clean"]).sum()) == 3075
    assert 0.6536989795918368 == 3075 / 4704


def test_sizes_of_the_batch_norm_experiment():
    sets = load_modular(p=97, operation="addition", train_fraction=0.65, corrupted=0.2)
    assert (len(sets.train), int(sets.train.hidden["corrupted"].sum())) == (6115, 1223)


@pytest.mark.parametrize(
    ("operation", "result"),
    [("addition", lambda i, j: i + j), ("multiplication", lambda i, j: i * j)],
)
def test_every_pair_once_and_right_labels_but_for_the_corrupted(operation, result):
    sets = load_modular(p=7, operation=operation, train_fraction=0.6, corrupted=0.5, seed=1)
    pairs = torch.cat([sets.train.fields["pair"], sets.test.fields["pair"]])
    assert sorted(map(tuple, pairs.tolist())) == [(i, j) for i in range(7) for j in range(7)]
    for split in (sets.train, sets.test):
        right = torch.tensor([result(i, j) % 7 for i, j in split.fields["pair"].tolist()])
        assert torch.equal(split.hidden["clean"], right)
        kept = ~split.hidden["corrupted"]
        assert torch.equal(split.fields["label"][kept], right[kept])
    assert sets.train.hidden["corrupted"].tolist() == [True] * 14 + [False] * 15
    assert not sets.test.hidden["corrupted"].any()


def test_seeds_of_pairs_and_of_labels_are_apart():
    def fields(**seeds):
        sets = load_modular(**{**ADDITION, "p": 11}, **seeds)
        return sets.train.fields["pair"], sets.train.fields["label"]

    pair, label = fields(seed=0, pair_seed=3)
    again, other_label = fields(seed=1, pair_seed=3)
    assert torch.equal(pair, again)
    assert not torch.equal(label, other_label)
    assert not torch.equal(pair, fields(seed=0, pair_seed=4)[0])
    assert not torch.equal(fields(seed=0)[0], fields(seed=1)[0])
    both = fields(seed=0, pair_seed=3, label_seed=5), fields(seed=1, pair_seed=3, label_seed=5)
    assert torch.equal(both[0][1], both[1][1])


def test_the_fingerprint_tells_every_option_apart_and_no_seed():
    base = {**ADDITION, "p": 11}
    changes = [{}, {"p": 12}, {"operation": "multiplication"}, {"train_fraction": 0.6}, {"corrupted": 0.1},
               {"pair_seed": 1}, {"label_seed": 1}]  # fmt: skip
    prints = {load_modular(**base | change).fingerprint for change in changes}
    assert len(prints) == len(changes)
    assert load_modular(**base, seed=5).fingerprint in prints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operation": "adition"}, "Did you mean addition"),
        ({"p": 1}, "dataset.p=1"),
        ({"train_fraction": 0.0}, "leaves 0 of 9409"),
        ({"train_fraction": 1.0}, "leaves 9409 of 9409"),
        ({"corrupted": 1.5}, "dataset.corrupted=1.5"),
    ],
)
def test_mistakes_in_the_data(options, message):
    with pytest.raises(UserError, match=message):
        load_modular(**ADDITION | options)


# -- network -----------------------------------------------------------------------------------------------------------


def test_the_network_is_two_matrices_on_one_hot_vectors():
    network = ModularMLP(7, hidden=5).double()
    pair = torch.tensor([[3, 6], [0, 0], [6, 1]])
    x = torch.cat([F.one_hot(pair[:, 0], 7), F.one_hot(pair[:, 1], 7)], 1).double()
    left, right, out = network.units()
    first = torch.cat([left, right], 1)  # W1, (N, 2p)
    torch.testing.assert_close(network(pair), (x @ first.T) ** 2 @ out)
    assert sum(w.numel() for w in network.parameters()) == 3 * 5 * 7


def test_initial_weights():
    """s = 0.5 / 1000^(1/3) = 0.05 for N = 500, and 0.5 / 256^(1/3) = 0.07875 for N = 128."""
    torch.manual_seed(0)
    for hidden, std in ((500, 0.05), (128, 0.07875)):
        for weight in ModularMLP(97, hidden=hidden).parameters():
            assert weight.std().item() == pytest.approx(std, rel=0.02)
            assert abs(weight.mean().item()) < 0.02 * std * 3


def test_dropout_is_before_the_square_and_batch_norm_behind_it():
    torch.manual_seed(0)
    network = ModularMLP(7, hidden=2000, dropout=0.5)
    pair = torch.tensor([[1, 2]])
    with torch.no_grad():
        network.first.weight.fill_(0.5)  # every pre-activation is 1, kept ones are 2 and their squares 4
        network.out.weight.fill_(1.0)
    assert network(pair)[0, 0].item() / 4 == pytest.approx(1000, abs=100)
    assert network.eval()(pair)[0, 0].item() == 2000

    norm = ModularMLP(7, hidden=1, batch_norm=True)
    with torch.no_grad():
        norm.first.weight.copy_(torch.tensor([[0.0], [1], [2], [3], [0], [0], [0], *[[0.0]] * 7]))
        norm.out.weight.fill_(1.0)
    squares = torch.tensor([0.0, 1, 4, 9])
    expected = (squares - 3.5) / (squares.var(correction=0) + 1e-5).sqrt()
    got = norm(torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]]))[:, 0]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("p", "hidden", "accuracy"), [(97, 500, 1.0), (97, 200, 1.0), (23, 500, 1.0)])
def test_the_analytic_solution_needs_no_training(p, hidden, accuracy):
    pairs, result = modular_pairs(p, "addition")
    network = analytic(p, hidden)
    with torch.no_grad():
        f = network(pairs)
    assert (f.argmax(1) == result).double().mean().item() == accuracy
    assert (f[torch.arange(len(f)), result] / hidden).mean().item() == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(unit_ipr(network, torch.arange(p)).detach().float(), torch.ones(hidden))


def test_it_is_built_for_pairs_and_refuses_what_can_not_be():
    config = {"_target_": "regbench.backbones.modular.ModularMLP", "name": "modular_mlp", "hidden": 8}
    backbone = build(config, shape=(2,), num_classes=13)
    assert backbone.num_features == 8
    assert backbone(torch.tensor([[12, 12]])).shape == (1, 13)
    for options in ({"hidden": 0}, {"dropout": 1.0}):
        with pytest.raises(UserError, match=r"backbone\.hidden"):
            ModularMLP(7, **options)


# -- periodicity -------------------------------------------------------------------------------------------------------


def test_participation_ratios():
    i = torch.arange(97, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * 5 * i / 97 + 0.3)
    assert inverse_participation_ratio(wave).item() == pytest.approx(1, abs=1e-12)
    two = wave + torch.cos(2 * math.pi * 9 * i / 97)
    assert inverse_participation_ratio(two).item() == pytest.approx(0.5, abs=1e-9)
    # Amplitudes in the ratio 3 : 1, so powers 9 : 1 of 10.
    unlike = 3 * wave + torch.cos(2 * math.pi * 9 * i / 97)
    assert inverse_participation_ratio(unlike).item() == pytest.approx(0.81 + 0.01, abs=1e-9)
    assert inverse_participation_ratio(unlike, r=3).item() == pytest.approx(0.729 + 0.001, abs=1e-9)
    delta = torch.zeros(97)
    delta[3] = 2
    assert inverse_participation_ratio(delta).item() == pytest.approx(1 / 49, rel=1e-5)


def test_participation_ratio_as_the_released_code_has_it():
    x = np.random.default_rng(0).standard_normal((4, 97))
    a = np.abs(np.fft.rfft(x))
    expected = [((row / np.sqrt((row**2).sum())) ** 4).sum() for row in a]
    np.testing.assert_allclose(inverse_participation_ratio(torch.from_numpy(x)).numpy(), expected, rtol=1e-10)


def test_a_units_score_is_the_mean_of_its_three():
    """Unit 0: a cosine, two cosines and a delta: (1 + 1/2 + 1/4) / 3 for p = 7, whose spectrum has 4 places."""
    i = torch.arange(7) * 2 * math.pi / 7
    delta = torch.zeros(7)
    delta[2] = 1
    network = ModularMLP(7, hidden=1)
    with torch.no_grad():
        network.first.weight.copy_(torch.cat([i.cos(), i.cos() + (2 * i).cos()])[:, None])
        network.out.weight.copy_(delta[:, None])
    assert unit_ipr(network, torch.arange(7)).item() == pytest.approx((1 + 0.5 + 0.25) / 3, abs=1e-6)


@pytest.mark.parametrize("p", [2, 3, 23, 59])
def test_places_of_residues_are_logarithms_for_multiplication(p):
    order = residue_order(p, "multiplication")
    assert sorted(order.tolist()) == list(range(1, p))
    place = {residue: k for k, residue in enumerate(order.tolist())}
    assert all(place[i * j % p] == (place[i] + place[j]) % (p - 1) for i in range(1, p) for j in range(1, p))
    assert torch.equal(residue_order(p, "addition"), torch.arange(p))


def test_units_that_multiply_are_periodic_in_the_logarithm():
    """Gromov's cosines in log i in place of i: they multiply, untrained, and each is one cosine; in i it is none."""
    p, order = 59, residue_order(59, "multiplication")
    logarithmic, network = analytic(p - 1, 300), ModularMLP(p, hidden=300)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        network.first.weight[torch.cat([order, p + order])] = logarithmic.first.weight
        network.out.weight[order] = logarithmic.out.weight
        pairs, result = modular_pairs(p, "multiplication")
        pairs, result = pairs[result > 0], result[result > 0]
        assert torch.equal(network(pairs).argmax(1), result)
    torch.testing.assert_close(unit_ipr(network, order).detach().float(), torch.ones(300))
    assert unit_ipr(network, torch.arange(p)).max() < 0.3


def test_the_operation_is_read_off_the_results():
    for operation in ("addition", "multiplication"):
        assert operation_of(*modular_pairs(7, operation), 7) == operation
    pairs, result = modular_pairs(7, "addition")
    assert operation_of(pairs, (result + 1) % 7, 7) == ""
    assert residue_order(7, "") is None
    assert [p for p in range(2, 30) if residue_order(p, "multiplication") is not None] == [
        2, 3, 5, 7, 11, 13, 17, 19, 23, 29
    ]  # fmt: skip


def test_gains():
    network = ModularMLP(7, hidden=4, batch_norm=True)
    cosine = (torch.arange(7) * 2 * math.pi / 7).cos()
    with torch.no_grad():
        for k, noise in enumerate((0.0, 3.0, 1.0, 0.3)):  # IPR falls with the height of a delta on a cosine
            wave = cosine.clone()
            wave[3] += noise
            network.first.weight[:, k] = wave.repeat(2)
            network.out.weight[:, k] = wave
        network.norm.weight.copy_(torch.tensor([-4.0, 1.0, 2.0, 3.0]))
    assert gains(Grokking(network, 7), torch.arange(7)) == pytest.approx(
        {"gain_low_ipr": 1.5, "gain_high_ipr": 3.5, "gain_ipr": 1.0}
    )
    assert gains(Grokking(network, 7), None) == {}
    assert gains(Grokking(ModularMLP(7, hidden=4), 7), torch.arange(7)) == {}


# -- pruning and accuracies --------------------------------------------------------------------------------------------


def test_pruning_is_zeroing_a_units_three_vectors():
    torch.manual_seed(0)
    network = Grokking(ModularMLP(11, hidden=10), 11)
    pairs, _ = modular_pairs(11, "addition")
    order = torch.randperm(10)
    features = network.backbone.outputs(pairs).features
    weight = network.backbone.network.out.weight
    for share, prediction in zip(
        (0, 30, 90), pruned_predictions(features, weight, order, (0, 30, 90)), strict=True
    ):
        pruned = ModularMLP(11, hidden=10)
        pruned.load_state_dict(network.backbone.network.state_dict())
        gone = order[: share // 10]
        with torch.no_grad():
            pruned.first.weight[:, gone] = 0
            pruned.out.weight[:, gone] = 0
        assert torch.equal(prediction, pruned(pairs).argmax(1))


def test_accuracies_of_the_parts():
    train = Samples(
        {"label": torch.tensor([4, 1, 2, 3])},
        {"clean": torch.tensor([0, 1, 2, 3]), "corrupted": torch.tensor([True, True, False, False])},
    )
    test = Samples({"label": torch.tensor([5, 6])})
    found = accuracies(torch.tensor([0, 1, 2, 0, 5, 5]), train, test)
    assert found == {
        "train": 0.5,
        "corrupted": 0.5,
        "uncorrupted": 0.5,
        "corrupted_right": 1.0,
        "test": 0.5,
    }


def test_without_corrupted_pairs_their_accuracies_are_left_out():
    sets = load_modular(**{**ADDITION, "p": 7, "corrupted": 0.0})
    right = torch.cat([sets.train.fields["label"], sets.test.fields["label"]])
    assert accuracies(right, sets.train, sets.test) == {"train": 1.0, "uncorrupted": 1.0, "test": 1.0}


# -- the method --------------------------------------------------------------------------------------------------------


def test_losses():
    """Outputs of 0: 1/97 = 0.0103093, where the notebook's forgetting run ends, and ln 97 for cross entropy."""
    zero, label = torch.zeros(5, 97), torch.arange(5)
    assert one_hot_squared_error(zero, label).item() == pytest.approx(0.01030928, abs=1e-8)
    batch = {"pair": torch.tensor([[1, 2]]), "label": torch.tensor([3])}
    network = ModularMLP(97, hidden=4)
    nn.init.zeros_(network.out.weight)
    assert Grokking(network, 97).training_loss(batch).item() == pytest.approx(1 / 97)
    entropy = Grokking(network, 97, loss="cross_entropy").training_loss(batch)
    assert entropy.item() == pytest.approx(math.log(97), rel=1e-6)


def test_a_classifier_of_other_fields():
    """The family's base on images: two of three are right, and the mean of the losses counts samples."""

    class OnImages(SampleClassifier):
        task = "classification"

    method = OnImages(nn.Flatten(), 2)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    label = torch.tensor([0, 1, 1])
    losses = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    loss = method.training_loss({"image": logits, "label": label})
    assert loss.item() == pytest.approx(sum(losses) / 3)
    for rows in (slice(2), slice(2, 3)):
        method.test_step({"image": logits[rows], "label": label[rows]}, 0)
        method.validation_step({"image": logits[rows], "label": label[rows]}, 0)
    expected = {"accuracy": 2 / 3, "loss": sum(losses) / 3}
    for prefix, metrics in (("test/", method.test_metrics), ("val/", method.val_metrics)):
        found = {name: value.item() for name, value in metrics.compute().items()}
        assert found == pytest.approx({prefix + name: value for name, value in expected.items()})


def test_a_step_without_gradient_multiplies_the_weights_by_085():
    make = compose_config(["regularizer=grokking"]).optimizer
    options = {key: value for key, value in make.items() if key[0] != "_"}
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    torch.optim.AdamW([weight], **options).step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.85))


def test_mistakes():
    with pytest.raises(UserError, match="Did you mean mse"):
        Grokking(ModularMLP(7), 7, loss="mes")
    with pytest.raises(UserError, match="reads pairs of residues"):
        Grokking(nn.Linear(2, 7), 7)
    with pytest.raises(UserError, match="every=0"):
        ModularMeasures(every=0)
    for prune in ([100], [0.5]):
        with pytest.raises(UserError, match="percentages"):
            ModularMeasures(prune=prune)


@pytest.mark.parametrize(
    ("weight_decay", "printed"),
    [
        (0.0, {1: (0.010413740761578083, 243, 36), 20: (0.007833055220544338, 4683, 15)}),
        (15.0, {1: (0.010413740761578083, 301, 35), 10: (0.010113192722201347, 1129, 15),
                20: (0.010017937049269676, 3045, 9)}),
    ],
)  # fmt: skip
def test_the_released_notebooks_printed_numbers(weight_decay, printed):
    """From its initial weights: loss, and right predictions among 4704 training and 4705 test pairs, after an epoch."""
    sets = load_modular(**ADDITION, pair_seed=420, label_seed=0)
    network = ModularMLP(97)
    # What the notebook draws, in its order: labels, PyTorch's own initial weights, the normal ones.
    torch.manual_seed(0)
    torch.randint(97, (1646,))
    first, out = nn.Linear(194, 500, bias=False), nn.Linear(500, 97, bias=False)
    for layer in (first, out):
        nn.init.normal_(layer.weight, std=0.25**0.5 / 1000 ** (1 / 3))
    with torch.no_grad():
        network.first.weight.copy_(first.weight.T)
        network.out.weight.copy_(out.weight)
    method = Grokking(network, 97)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=weight_decay)
    for epoch in range(1, max(printed) + 1):
        optimizer.zero_grad()
        loss = method.training_loss(sets.train.fields)
        loss.backward()
        optimizer.step()
        if epoch in printed:
            expected, of_train, of_test = printed[epoch]
            assert loss.item() == pytest.approx(expected, rel=1e-5)
            with torch.no_grad():
                assert accuracy(method, sets.train) * 4704 == pytest.approx(of_train, abs=2.5)
                assert accuracy(method, sets.test) * 4705 == pytest.approx(of_test, abs=2.5)


def test_a_run_and_its_curves(train):
    code, folder = train(*SMALL, "trainer.max_epochs=5", "callbacks.modular.prune=[0,50]")
    assert code == 0
    metrics = read_result(folder)["metrics"]
    assert metrics["test/lowest_0_test"] == metrics["test/random_0_test"] == metrics["test/accuracy"]
    assert metrics["test/highest_0_train"] == metrics["test/train_accuracy"]
    n = int(0.5 * 169)
    m = int(0.35 * n)
    share = (metrics["test/corrupted"] * m + metrics["test/uncorrupted"] * (n - m)) / n
    assert share == pytest.approx(metrics["test/train_accuracy"], abs=1e-6)
    rows = [row for row in history(folder) if row["train/accuracy"]]
    assert [int(row["epoch"]) for row in rows] == [1, 3, 4]
    assert float(rows[-1]["train/test_accuracy"]) == pytest.approx(metrics["test/accuracy"], abs=1e-7)
    assert {path.name for path in (folder / "figures").iterdir()} == {"modular.png", "pruning.png"}


def test_a_run_of_multiplication_takes_the_residues_by_their_logarithms(train):
    options = [*SMALL, "dataset.operation=multiplication", "trainer.max_epochs=1"]
    _, folder = train(*options)
    network = ModularMLP(13, hidden=32)
    network.load_state_dict(
        {name.removeprefix("backbone.network."): value for name, value in weights(folder).items()}
    )
    ipr = unit_ipr(network, torch.tensor([pow(2, k, 13) for k in range(12)]))  # 2 is a primitive root of 13
    assert read_result(folder)["metrics"]["test/ipr"] == pytest.approx(ipr.median().item(), rel=1e-6)


def test_where_no_order_is_periodic_the_ratio_is_left_out(train, capsys):
    options = [*SMALL, "dataset.operation=multiplication", "dataset.p=12", "trainer.max_epochs=1"]
    code, folder = train(*options)
    assert code == 0
    assert "test/right_labels" in read_result(folder)["metrics"]
    assert "test/ipr" not in read_result(folder)["metrics"]
    code, _ = train(*options, "callbacks.modular.prune=[10]", run_dir="pruned")
    assert code == 2
    assert "another dataset.p than 12" in capsys.readouterr().err


def test_resuming_gives_the_same_weights_and_curves(train):
    options = [*SMALL, "backbone.dropout=0.5"]
    _, whole = train(*options, "trainer.max_epochs=2", run_dir="whole")
    _, half = train(*options, "trainer.max_epochs=1", run_dir="half")
    _, rest = train(
        *options,
        "trainer.max_epochs=2",
        f"ckpt_path={half / 'checkpoints' / 'last.ckpt'}",
        run_dir="rest",
    )
    first, second = weights(whole), weights(rest)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_result(whole)["metrics"] == read_result(rest)["metrics"]


def test_full_inversion_at_a_small_modulus():
    """Modulus 31, 20 % corrupted: the network first fits them, then they are unlearned and the test pairs are right."""
    sets = load_modular(p=31, operation="addition", train_fraction=0.7, corrupted=0.2)
    torch.manual_seed(0)
    method = Grokking(ModularMLP(31, hidden=128), 31)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=10.0)
    of_train, of_test = [], []
    for _ in range(300):
        optimizer.zero_grad()
        method.training_loss(sets.train.fields).backward()
        optimizer.step()
        with torch.no_grad():
            of_train.append(accuracy(method, sets.train))
            of_test.append(accuracy(method, sets.test))
    right = (sets.train.fields["label"] == sets.train.hidden["clean"]).double().mean().item()
    assert of_train[49] > 0.95
    assert of_test[24] < 0.1
    assert right <= of_train[-1] < right + 0.04
    assert of_test[-1] > 0.98
    assert unit_ipr(method.backbone.network, torch.arange(31)).median() > 0.5


def test_the_measure_refuses_other_data(train, capsys):
    code, _ = train("regularizer=none", "dataset=digits", "backbone=mlp", "callbacks=[default,modular]",
                    "trainer.max_epochs=1", "logger=none", "progress=none")  # fmt: skip
    assert code == 2
    assert "callbacks=modular measures modular arithmetic" in capsys.readouterr().err


def test_result_is_json_without_nan(train):
    _, folder = train(*SMALL, "dataset.corrupted=0", "trainer.max_epochs=1", "backbone.batch_norm=true")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert all(value is not None for value in metrics.values())
    assert "test/gain_high_ipr" in metrics
