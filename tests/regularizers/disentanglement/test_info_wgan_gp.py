"""InfoWGAN-GP: both losses, the codebook's gradients and the rhythm of the steps against numbers worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from regbench.backbones.autoencoder import Autoencoder
from regbench.backbones.backbone import Backbone
from regbench.errors import UserError
from regbench.regularizers.disentanglement.info_wgan_gp import InfoWGANGP, gradient_penalty
from support import read_result, weights


def make(**options) -> InfoWGANGP:
    """A network whose features are the four pixels, and whose logits are relu(stem(z))."""
    torch.manual_seed(0)
    network = Autoencoder(nn.Flatten(), 4, nn.Unflatten(1, (1, 2, 2)), 4)
    return InfoWGANGP(Backbone(network, stages=()), 0, **({"latents": 2} | options))


def by_hand(**options) -> InfoWGANGP:
    """Generated are the pixels (1/2, 3/4, 1/2, 9/10) whatever z, the code is (0.2, 0.6) whatever the image, and the
    critic's value is x · (1, 2, 2, 4) + 0.3: 6.9 for what is generated."""
    method = make(**options)
    network = method.network
    with torch.no_grad():
        for p in (network.stem.weight, network.head.weight):
            p.zero_()
        network.stem.bias.copy_(torch.tensor([0.0, math.log(3), -5.0, math.log(9)]))
        network.head.bias.copy_(torch.tensor([0.2, 0.6]))
        method.critic.weight.copy_(torch.tensor([[1.0, 2.0, 2.0, 4.0]]))
        method.critic.bias.fill_(0.3)
    return method


def batch() -> dict[str, torch.Tensor]:
    """A white image and a black one: values 9.3 and 0.3."""
    image = torch.stack([torch.full((1, 2, 2), 255), torch.zeros(1, 2, 2)]).to(torch.uint8)
    return {"image": image, "factors": torch.zeros(2, 1, dtype=torch.long), "index": torch.arange(2)}


# -- the gradient penalty ----------------------------------------------------------------------------------------------


def test_the_slope_of_a_linear_critic():
    """|w| = 5, so (5 − 1)² = 16 wherever it is taken, and its gradient is 2 (5 − 1) w / 5."""
    w = torch.tensor([1.0, 2.0, 2.0, 4.0], requires_grad=True)
    penalty = gradient_penalty(lambda x: x.flatten(1) @ w, torch.rand(3, 1, 2, 2))
    assert penalty.item() == pytest.approx(16)
    penalty.backward()
    torch.testing.assert_close(w.grad, torch.tensor([1.6, 3.2, 3.2, 6.4]))


def test_each_image_has_its_own_slope():
    """|x|²/2 has the slope x, of sizes 3 and 1: (4 + 0) / 2."""
    image = torch.tensor([[2.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]).view(2, 1, 2, 2)
    assert gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, image).item() == pytest.approx(2)


def test_the_slope_is_taken_between_real_and_generated_images(monkeypatch):
    """Shares of 1/4 and 3/4: 1 − 3/4 of (1/2, 3/4, 1/2, 9/10) for the white image, 1/4 of it for the black."""
    method, seen = by_hand(), []
    monkeypatch.setattr(method, "draw", lambda n: torch.zeros(n, 2))
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.tensor([0.25, 0.75]).view(shape))
    monkeypatch.setattr(
        "regbench.regularizers.disentanglement.info_wgan_gp.gradient_penalty",
        lambda value, image: seen.append(image) or torch.zeros(()),
    )
    method.training_loss(batch())
    generated = torch.tensor([0.5, 0.75, 0.5, 0.9])
    expected = torch.stack([0.25 + 0.75 * generated, 0.25 * generated]).view(2, 1, 2, 2)
    torch.testing.assert_close(seen[0], expected)


# -- the losses --------------------------------------------------------------------------------------------------------


def test_critic_and_generator_by_hand(monkeypatch):
    """Real images have the mean value 4.8, generated ones 6.9. ẑ = (0.2, 0.6) misses z by a mean square of
    (0.04 + 0.16 + 0.09 + 0.01) / 4 = 0.075."""
    method = by_hand()
    monkeypatch.setattr(method, "draw", lambda n: torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    assert method.training_loss(batch()).item() == pytest.approx(-4.8 + 6.9 + 10 * 16 + 200 * 0.075, rel=1e-6)
    assert method.generator_loss(2).item() == pytest.approx(-6.9 + 200 * 0.075, rel=1e-6)


def test_quantised_by_hand(monkeypatch):
    """Values ±1/2. The code (0.2, 0.6) is (1/2, 1/2) quantised, at a mean square of (0.09 + 0.01) / 2 = 0.05 from it;
    of z = (1/2, −1/2) and (1/2, 1/2) one of four entries is missed by 1."""
    method = by_hand(quantised=True, values=2, quantisation=0.4, commitment=0.2)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([[1, 0], [1, 1]]))
    loss = method.training_loss(batch())
    assert loss.item() == pytest.approx(-4.8 + 6.9 + 160 + 200 * 0.25 + 0.2 * 0.05, rel=1e-6)
    loss.backward()
    assert method.codebook.grad is None  # the generator's steps move the values
    assert all(p.grad is None for p in method.network.stem.parameters())
    # the code's: 200 · 2/4 · (ẑ − z), which passes straight through, and 0.2 · 2/4 · (c − q), summed over the images
    torch.testing.assert_close(method.network.head.bias.grad, torch.tensor([0.2 * -0.3, 100 + 0.2 * 0.1]))

    loss = method.generator_loss(2)
    assert loss.item() == pytest.approx(-6.9 + 200 * 0.25 + 0.6 * 0.05, rel=1e-6)
    loss.backward()
    # z's entry −1/2 of the second latent is pulled to ẑ, and the two values that were taken for the code to the code
    expected = torch.tensor([[0.0, 0.4 * 0.3], [-100.0, 0.4 * -0.1]])
    torch.testing.assert_close(method.codebook.grad, expected)


def test_quantised_latents_are_measured_as_places():
    method = by_hand(quantised=True, values=3)
    latent = method.encode(torch.zeros(2, 1, 2, 2))  # 0.2 and 0.6 among −1/2, 0, 1/2
    assert latent.measured.tolist() == [[1, 2], [1, 2]]
    torch.testing.assert_close(latent.z, torch.tensor([[0.0, 0.5]] * 2))
    assert method.discrete
    plain = by_hand()
    assert not plain.discrete
    assert plain.encode(torch.zeros(1, 1, 2, 2)).measured.tolist() == [
        [pytest.approx(0.2), pytest.approx(0.6)]
    ]


# -- the latents that are drawn ----------------------------------------------------------------------------------------


def test_latents_are_uniform_over_the_values_of_their_own_codebook():
    method = make(quantised=True, values=4)
    with torch.no_grad():
        method.codebook.copy_(torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, -1.0, 7.0, 9.0]]))
    z = method.draw(20_000)
    for column, row in zip(z.T, method.codebook, strict=True):
        values, counts = column.detach().unique(return_counts=True)
        assert values.tolist() == sorted(row.tolist())
        assert (counts / len(z) - 0.25).abs().max() < 0.015  # five standard deviations
    z.sum().backward()  # each value has a gradient of as many as were drawn
    assert method.codebook.grad.sum(1).tolist() == [20_000, 20_000]


def test_continuous_latents_are_uniform_in_0_to_1():
    z = make().draw(20_000)
    assert 0 <= z.min() < 0.001 < 0.999 < z.max() < 1
    torch.testing.assert_close(z.mean(0), torch.full((2,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(z.var(0), torch.full((2,), 1 / 12), atol=0.003, rtol=0)


# -- the steps ---------------------------------------------------------------------------------------------------------


class Record(pl.Callback):
    """Which parameters each batch changed, and by how much at most."""

    def __init__(self):
        self.changed, self.moves = [], []

    def on_train_batch_start(self, trainer, module, *_):
        self.before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def on_train_batch_end(self, trainer, module, *_):
        moves = {n: (p.detach() - self.before[n]).abs().max().item() for n, p in module.named_parameters()}
        self.changed.append({name for name, move in moves.items() if move})
        self.moves.append(moves)


def run(method: InfoWGANGP, epochs: int = 2) -> Record:
    """Epochs of four batches."""
    record = Record()
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[record],
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(method, train_dataloaders=DataLoader([batch()] * 4, batch_size=None))
    return record


GENERATING = {"backbone.network.stem.weight", "backbone.network.stem.bias", "codebook"}


@pytest.mark.filterwarnings("ignore")
def test_the_generator_takes_every_fifth_step():
    """Counted over epochs. The optimiser keeps a count of steps for each parameter."""
    method = make(
        quantised=True, optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.0, 0.9))
    )
    record = run(method)
    reading = {name for name, _ in method.named_parameters()} - GENERATING
    assert [bool(changed & GENERATING) for changed in record.changed] == [False] * 4 + [True] + [False] * 3
    assert record.changed[4] >= GENERATING
    assert all(
        changed >= reading - {"critic.bias"} for changed in record.changed
    )  # values' differences need no bias
    state = method.trainer.optimizers[0].state
    assert state[method.network.stem.weight]["step"] == state[method.codebook]["step"] == 1
    assert state[method.network.head.weight]["step"] == state[method.critic.weight]["step"] == 8
    assert method.trainer.global_step == 8


@pytest.mark.filterwarnings("ignore")
def test_both_kinds_of_step_clip_weights_entry_by_entry():
    """By plain descent with a rate of 1 no weight moves by more than the bound, and biases and values by far more."""
    method = make(
        quantised=True, values=2, weight_decay=0.0, clip_value=1e-3, generator_every=1,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
    )  # fmt: skip
    moves = run(method, epochs=1).moves[0]
    assert all((move <= 1.001e-3) == name.endswith("weight") for name, move in moves.items() if move)
    assert {"backbone.network.stem.weight", "critic.weight", "codebook"} <= {
        n for n, move in moves.items() if move
    }


def test_what_is_decayed():
    method = make(quantised=True)
    decayed, others = method.parameter_options()
    assert decayed["weight_decay"] == 1e-4
    assert others["weight_decay"] == 0
    names = {id(p): name for name, p in method.named_parameters()}
    layers = ("backbone.network.head", "backbone.network.stem", "critic")
    assert sorted(names[id(p)] for p in decayed["params"]) == [f"{layer}.weight" for layer in layers]
    assert sorted(names[id(p)] for p in others["params"]) == sorted(
        ["codebook", *(f"{la}.bias" for la in layers)]
    )


def test_values_can_stay():
    method = make(quantised=True, learn_codebook=False)
    assert not any(p is method.codebook for p in method.generating())
    torch.autograd.grad(method.generator_loss(4), method.generating())


def test_a_run_with_quantised_latents(train):
    code, folder = train(
        "regularizer=info_wgan_gp", "regularizer.quantised=true", "dataset.counts.x=2", "dataset.counts.y=2",
        "dataset.batch_size=24", "backbone.hidden=[16]", "trainer.max_epochs=5", "logger=none", "progress=none",
    )  # fmt: skip
    assert code == 0
    metrics = read_result(folder)["metrics"]
    assert {"test/infom", "test/infoe", "test/infoc", "test/active", "test/psnr"} == set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    state = weights(folder)
    assert state["codebook"].shape == (8, 10)
    assert state["critic.weight"].shape == (1, 16)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"values": 1}, "regularizer.values=1 must be at least 2"),
        ({"generator_every": 0}, "regularizer.generator_every=0 at least"),
        ({"reconstruction": -1.0}, "regularizer.reconstruction=-1.0"),
        ({"accumulate": 2}, "info_wgan_gp can't accumulate gradients"),
    ],
)
def test_mistakes(options, says):
    with pytest.raises(UserError, match=says):
        make(**options)


def test_half_precision_with_loss_scaling_is_refused():
    method = make()
    method._trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(UserError, match=r"set accelerator\.precision=bf16-mixed"):
        method.on_fit_start()
