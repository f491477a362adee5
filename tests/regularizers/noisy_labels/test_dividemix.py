"""DivideMix against its equations: losses, mixture, whose division trains whom, and what a resumed run draws."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from regbench.backbones.small import mlp
from regbench.composing import compose_config
from regbench.data.module import ImageDataModule
from regbench.errors import UserError
from regbench.functional import mixing
from regbench.regularizers.noisy_labels import dividemix
from regbench.regularizers.noisy_labels.dividemix import DivideMix, clean_probability
from regbench.seeding import streams
from support import check_resume, read_result

LAM = 0.7  # of a drawn 0.3: the larger share is the image's own
LABELLED, UNLABELLED = torch.randn(2, 2, 2, 1, 2, 2, generator=torch.Generator().manual_seed(1))
LABEL, W = torch.tensor([0, 2]), torch.tensor([1.0, 0.6])


def method(**options):
    torch.manual_seed(0)
    return DivideMix(mlp(1, (2, 2), 3, hidden=(5,)), 3, **options)


def digits(*overrides):
    config = compose_config(["regularizer=dividemix", "dataset=digits", "dataset.train_size=200", *overrides])
    return ImageDataModule(config.dataset, streams(0))


def on_digits(**options):
    torch.manual_seed(0)
    made = DivideMix(mlp(1, (8, 8), 10, hidden=(16,)), 10, **options)
    made.on_data(200)
    return made


def fit(made, data, epochs=1, **options):
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, **options)  # fmt: skip
    trainer.fit(made, datamodule=data)
    return trainer


# -- the losses ----------------------------------------------------------------------------------------------------


def probabilities(network, images):
    with torch.no_grad():
        return network(images).double().softmax(1).tolist()


def sharpened(p):
    """With T = 1/2: squares, normalised."""
    total = sum(value**2 for value in p)
    return [value**2 / total for value in p]


def targets_by_hand(made, k, unlabelled):
    """Of the two views of the labelled images, and of those of the unlabelled ones: rows of C numbers."""
    own, other = made.pair[k], made.pair[1 - k]
    seen = [probabilities(own, view) for view in LABELLED]
    of_labelled = []
    for i in range(2):
        w, mean = W[i].item(), [(a + b) / 2 for a, b in zip(seen[0][i], seen[1][i], strict=True)]
        of_labelled.append(sharpened([w * (LABEL[i] == c).item() + (1 - w) * mean[c] for c in range(3)]))
    guesses = []
    if unlabelled:
        seen = [probabilities(network, view) for network in (own, other) for view in UNLABELLED]
        guesses = [sharpened([sum(rows[i][c] for rows in seen) / 4 for c in range(3)]) for i in range(2)]
    return of_labelled * 2 + guesses * 2


def loss_by_hand(made, k, order, unlabelled, weight):
    target = targets_by_hand(made, k, unlabelled)
    images = torch.cat([*LABELLED, *(UNLABELLED if unlabelled else ())])
    p = probabilities(made.pair[k], LAM * images + (1 - LAM) * images[order])
    mixed = [[LAM * target[i][c] + (1 - LAM) * target[j][c] for c in range(3)] for i, j in enumerate(order)]
    loss = -sum(mixed[i][c] * math.log(p[i][c]) for i in range(4) for c in range(3)) / 4
    mean = [sum(row[c] for row in p) / len(p) for c in range(3)]
    loss += sum(math.log((1 / 3) / m) / 3 for m in mean)
    if unlabelled:
        loss += weight * sum((p[i][c] - mixed[i][c]) ** 2 for i in range(4, 8) for c in range(3)) / 12
    return loss


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("unlabelled", [True, False])
def test_loss_by_hand(monkeypatch, k, unlabelled):
    order = [5, 0, 3, 6, 7, 1, 2, 4] if unlabelled else [2, 0, 3, 1]
    monkeypatch.setattr(mixing, "beta", lambda alpha, generator: 0.3)
    monkeypatch.setattr(torch, "randperm", lambda n, generator=None: torch.tensor(order))
    made = method(weight=25.0, ramp_epochs=16)
    views = tuple(UNLABELLED) if unlabelled else None
    loss = made.mixmatch_loss(k, tuple(LABELLED), LABEL, W, views, epochs=4.0)  # a quarter of the ramp
    assert loss.item() == pytest.approx(loss_by_hand(made, k, order, unlabelled, 25 / 4), abs=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in made.pair[k].parameters())
    assert all(p.grad is None for p in made.pair[1 - k].parameters())


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_warm_up_by_hand(penalty):
    made = method(warmup_penalty=penalty)
    expected = 0.0
    for network in made.pair:
        p = probabilities(network, LABELLED[0])
        expected -= sum(math.log(p[i][LABEL[i]]) for i in range(2)) / 2
        expected += penalty * sum(value * math.log(value) for row in p for value in row) / 2
    assert made.training_loss((LABELLED[0], LABEL)).item() == pytest.approx(expected, abs=1e-5)


def test_prior_is_a_kl_divergence_from_the_uniform_one():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    mean = torch.distributions.Categorical(probs=logits.softmax(1).mean(0))
    uniform = torch.distributions.Categorical(probs=torch.full((4,), 0.25))
    expected = torch.distributions.kl_divergence(uniform, mean)
    torch.testing.assert_close(dividemix.prior_penalty(logits), expected)


def test_tested_is_the_mean_of_both_networks():
    made = method().eval()
    first, second = (network(LABELLED[0]) for network in made.pair)
    assert not first.equal(second)
    torch.testing.assert_close(made(LABELLED[0]), (first + second) / 2)


# -- the division --------------------------------------------------------------------------------------------------


def posterior_by_em(losses):
    """Two Gaussians from the halves that 2-means finds: at most 10 steps, until the log-likelihood gains < 0.01."""
    lows = [value < 0.5 for value in losses]  # the data's clusters have their means on both sides
    r = [[float(low), float(not low)] for low in lows]

    def maximised(r):
        found = []
        for j in range(2):
            n = sum(row[j] for row in r)
            mean = sum(row[j] * x for row, x in zip(r, losses, strict=True)) / n
            var = sum(row[j] * (x - mean) ** 2 for row, x in zip(r, losses, strict=True)) / n + 5e-4
            found.append((n / len(losses), mean, var))
        return found

    def expected(parts):
        rows, likelihood = [], 0.0
        for x in losses:
            d = [s * math.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v) for s, m, v in parts]
            rows.append([value / sum(d) for value in d])
            likelihood += math.log(sum(d)) / len(losses)
        return rows, likelihood

    parts, before = maximised(r), -math.inf
    for _ in range(10):
        r, likelihood = expected(parts)
        parts = maximised(r)
        if abs(likelihood - before) < 1e-2:
            break
        before = likelihood
    low = min((0, 1), key=lambda j: parts[j][1])
    return [row[low] for row in expected(parts)[0]]


def test_clean_probability_is_the_posterior_that_em_finds():
    generator = torch.Generator().manual_seed(0)
    low, high = (
        torch.randn(120, generator=generator) * 0.12 + 0.25,
        torch.randn(80, generator=generator) * 0.1 + 0.75,
    )
    losses = torch.cat([low, high]).clamp(0, 1)
    found = clean_probability(losses, seed=3)
    assert found.tolist() == pytest.approx(posterior_by_em(losses.double().tolist()), abs=1e-6)
    assert ((found > 0.05) & (found < 0.95)).sum() >= 5  # the clusters overlap
    assert (found[:120] > 0.5).double().mean() > 0.9
    assert (found[120:] > 0.5).double().mean() < 0.1


def test_losses_that_are_all_alike_leave_every_label():
    assert clean_probability(torch.zeros(5), seed=0).tolist() == [1.0] * 5


def test_a_division_reads_the_images_as_they_are_and_averages_over_epochs(monkeypatch):
    """Losses in [0, 1] of unaugmented images in evaluation mode; with history 2 the mean of the last two epochs."""
    data, made, seen = digits("dataset.augment.flip=true"), on_digits(warmup_epochs=3, history=2), []
    monkeypatch.setattr(dividemix, "clean_probability", lambda losses, seed: seen.append(losses) or losses)
    plain = torch.cat([batch["image"] for batch in data.plain_train_loader()])
    label = data.sets.train.labels
    strategy = SimpleNamespace(precision_plugin=pl.plugins.precision.Precision())
    made._trainer = SimpleNamespace(datamodule=data, strategy=strategy)
    expected = []
    for epoch in (3, 4, 5):
        made._trainer.current_epoch = epoch
        with torch.no_grad():
            p = made.second(plain).double().softmax(1)
        nll = torch.tensor([-math.log(p[i, label[i]]) for i in range(200)])
        expected.append((nll - nll.min()) / (nll.max() - nll.min()))
        made.divide(1)
        torch.testing.assert_close(seen[-1], sum(expected[-2:]) / len(expected[-2:]), atol=1e-5, rtol=0)
        with torch.no_grad():  # the next epoch's network is another one
            for parameter in made.second.parameters():
                parameter += 0.05 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(epoch)
                )
    assert made.losses[0].abs().sum() == 0


def test_each_network_trains_on_the_division_by_the_other():
    made = on_digits(warmup_epochs=2, threshold=0.5)
    data = digits("dataset.batch_size=40")
    label = data.sets.train.labels
    w = [torch.full((200,), 0.1), torch.full((200,), 0.2)]
    w[0][10:60] = 0.9  # 50 labelled samples for the second network
    w[1][100:190] = 0.8  # 90 for the first
    made._trainer = SimpleNamespace(datamodule=data, current_epoch=5, global_rank=0)
    made.divide = lambda k: w[k]
    made.on_train_epoch_start()
    steps = [[step for step in made._plan if step.network == k] for k in (0, 1)]
    assert [step.network for step in made._plan] == [0] * 5 + [1] * 3  # 90 and 50 in batches of 20
    for own, by, chosen in zip(steps, reversed(w), (range(100, 190), range(10, 60)), strict=True):
        labelled = torch.cat([step.labelled for step in own])
        assert sorted(labelled.tolist()) == list(chosen)
        assert torch.cat([step.w for step in own]).equal(by[labelled])
        assert torch.cat([step.label for step in own]).equal(label[labelled])
        unlabelled = torch.cat([step.unlabelled for step in own])
        assert len(set(unlabelled.tolist())) == len(unlabelled)  # none comes twice before all came
        assert not set(unlabelled.tolist()) & set(chosen)
    assert [len(step.labelled) for step in steps[0]] == [18] * 5
    assert [step.epochs for step in steps[0]] == pytest.approx([3 + i / 5 for i in range(5)])  # 90 // 20 + 1
    assert [step.epochs for step in steps[1]] == pytest.approx([3 + i / 3 for i in range(3)])


def test_few_unlabelled_samples_come_again():
    made = on_digits(warmup_epochs=0)
    w = torch.ones(200)
    w[:7] = 0.0
    steps = made.plan(0, w, torch.zeros(200, dtype=torch.long), batch_size=5)
    passes = [sorted(torch.cat([s.unlabelled for s in steps[i : i + 2]]).tolist()) for i in (0, 2, 4)]
    assert passes == [list(range(7))] * 3
    assert steps[0].unlabelled.tolist() != steps[2].unlabelled.tolist()


@pytest.mark.parametrize(("value", "labelled", "w_after"), [(0.2, 200, 1.0), (0.9, 199, 0.9)])
def test_a_part_of_one_sample_counts_as_empty(value, labelled, w_after):
    """Without a labelled part every sample is one, with its label as it is."""
    made = on_digits(warmup_epochs=0)
    w = torch.full((200,), value)
    w[3] = 1 - value
    steps = made.plan(0, w, torch.zeros(200, dtype=torch.long), batch_size=64)
    assert len(torch.cat([step.labelled for step in steps])) == labelled
    assert all(len(step.unlabelled) == 0 for step in steps)
    assert torch.cat([step.w for step in steps]).eq(w_after).all()


# -- training ------------------------------------------------------------------------------------------------------


def test_the_first_half_of_an_epoch_is_the_first_networks():
    """A step of one network leaves the other alone, weight decay and momentum too."""
    data = digits("dataset.batch_size=20")
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1)
    made = on_digits(warmup_epochs=1, optimizer=sgd)
    fit(made, data)
    before = [[p.clone() for p in network.parameters()] for network in made.pair]

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            moved = [
                any(not p.equal(q) for p, q in zip(network.parameters(), old, strict=True))
                for network, old in zip(module.pair, before, strict=True)
            ]
            seen.append(moved)

    seen = []
    made.warmup_epochs = 0
    trainer = fit(made, data, callbacks=[Watch()])
    assert seen[2] == [True, False]
    assert seen[-1] == [True, True]
    assert trainer.global_step == len(made._plan)  # every step was taken, within the loader's ten batches
    assert len(seen) == 10


def test_a_whole_part_without_unlabelled_samples_trains():
    made = on_digits(warmup_epochs=0)
    made.divide = lambda k: torch.ones(200)
    trainer = fit(made, digits("dataset.batch_size=40"))
    assert trainer.global_step == 20
    assert all(p.isfinite().all() for p in made.parameters())


RUN = ["regularizer=dividemix", "dataset=digits", "dataset.train_size=200", "dataset.batch_size=20", "logger=none",
       "dataset.augment.translate=1", "progress=none", "regularizer.warmup_epochs=1", "regularizer.history=2",
       "backbone=small_cnn", "backbone.width=4", "trainer.max_epochs=4"]  # fmt: skip


def test_resuming_continues_bit_for_bit(train):
    """Stopped in the third epoch, whose division averages the second's losses."""
    check_resume(train, *RUN, after=2)


def test_it_beats_cross_entropy_with_wrong_labels(train):
    options = ["dataset=digits", "dataset.train_size=300", "dataset.noise.kind=symmetric", "dataset.noise.rate=0.4",
               "dataset.batch_size=30", "backbone=mlp", "backbone.hidden=[256]", "scheduler=constant",
               "trainer.max_epochs=15", "logger=none", "progress=none", "checkpoint.select=last"]  # fmt: skip
    accuracy = {}
    for slug in ("none", "dividemix"):
        _, folder = train(f"regularizer={slug}", *options, run_dir=slug)
        accuracy[slug] = read_result(folder)["metrics"]["test/accuracy"]
    assert accuracy["dividemix"] > accuracy["none"] + 0.1


# -- views of the data module --------------------------------------------------------------------------------------


def test_a_view_is_augmented_anew_by_its_generator():
    data, index = digits("dataset.augment.flip=true"), torch.tensor([7, 3, 3, 150])
    plain = torch.cat([batch["image"] for batch in data.plain_train_loader()])[index]
    generator = torch.Generator().manual_seed(0)
    first, second = (data.training_view(index, generator) for _ in range(2))
    assert not first.equal(second)
    for view in (first, second):
        for image, original in zip(view, plain, strict=True):
            assert image.equal(original) or image.equal(original.flip(-1))
    assert data.training_view(index, torch.Generator().manual_seed(0)).equal(first)
    assert digits().training_view(index, generator).equal(plain)  # without augmentation


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"history": 0}, "history=0"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"warmup_penalty": -1.0}, "warmup_penalty=-1.0"),
        ({"accumulate": 2}, "accumulate_grad_batches=1"),
        ({"stack": ["mixup"]}, "stack"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        method(**options)


def test_it_refuses_data_and_processes_that_it_can_not_train_on(monkeypatch):
    made = on_digits()

    def start(data):
        made._trainer = SimpleNamespace(datamodule=data)
        made.on_fit_start()

    start(digits())
    with pytest.raises(UserError, match="ImageDataModule"):
        start(None)
    with pytest.raises(UserError, match=r"dataset\.labelled"):
        start(digits("dataset.labelled=20", "dataset.batch_size=10"))
    streamed = digits()
    streamed.sets.train.images = list(range(200))  # any source that is no tensor is decoded on demand
    with pytest.raises(UserError, match="streamed"):
        start(streamed)
    with pytest.raises(UserError, match="streamed"):
        streamed.training_view(torch.tensor([0]), torch.Generator())
    monkeypatch.setattr(dividemix, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"devices=1"):
        start(digits())


def test_losses_that_are_no_numbers_stop_the_run():
    made = on_digits(warmup_epochs=0)
    with torch.no_grad():
        next(made.first.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"Lower\s+optimizer\.lr"):
        fit(made, digits("dataset.batch_size=40"))
