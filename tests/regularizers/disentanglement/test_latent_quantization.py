"""QLAE: codebook, straight-through gradient, loss, decay and clipping against numbers worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regbench.backbones.autoencoder import mlp_autoencoder
from regbench.backbones.small import mlp
from regbench.errors import UserError
from regbench.functional.quantisation import first_codebook, quantise, straight_through
from regbench.regularizers.disentanglement.ae import PlainAutoencoder
from regbench.regularizers.disentanglement.latent_quantization import LatentQuantization
from support import history, read_result, weights

C = [0.03, -0.47, 0.9, -0.2]


def qlae(latents: int = 4, **options) -> LatentQuantization:
    torch.manual_seed(0)
    return LatentQuantization(mlp_autoencoder(1, (4, 4), hidden=(8,)), 0, latents=latents, **options)


def batch(n: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return {"image": image, "factors": torch.zeros(n, 2, dtype=torch.long), "index": torch.arange(n)}


# -- quantisation ------------------------------------------------------------------------------------------------------


def test_values_and_places():
    codebook = first_codebook(4, 10)
    expected = [-0.5, -0.3889, -0.2778, -0.1667, -0.0556, 0.0556, 0.1667, 0.2778, 0.3889, 0.5]
    torch.testing.assert_close(codebook, torch.tensor([expected] * 4), atol=5e-5, rtol=0)
    q, index = quantise(torch.tensor([C]), codebook)
    assert index.tolist() == [[5, 0, 9, 3]]
    torch.testing.assert_close(q, torch.tensor([[0.0556, -0.5, 0.5, -0.1667]]), atol=5e-5, rtol=0)


def test_rows_of_their_own_and_one_for_all():
    """c = (0.4, 0.4): row 0 has 0 and 1, row 1 has 3 and 0.3; one row for all has 0 and 1. A tie goes to the first."""
    rows = torch.tensor([[0.0, 1.0], [3.0, 0.3]])
    q, index = quantise(torch.tensor([[0.4, 0.4], [0.5, 9.0]]), rows)
    assert index.tolist() == [[0, 1], [0, 0]]
    torch.testing.assert_close(q, torch.tensor([[0.0, 0.3], [0.0, 3.0]]))
    q, index = quantise(torch.tensor([[0.4, 0.4]]), rows[:1])
    assert (q.tolist(), index.tolist()) == ([[0.0, 0.0]], [[0, 0]])


def test_the_gradient_passes_straight_through():
    c = torch.tensor([C], requires_grad=True)
    codebook = first_codebook(4, 10).requires_grad_()
    q, _ = quantise(c, codebook)
    z = straight_through(c, q)
    torch.testing.assert_close(z, q)
    (3 * z).sum().backward()
    assert c.grad.tolist() == [[3.0] * 4]
    assert codebook.grad is None or not codebook.grad.any()


def test_loss_terms_and_their_gradients():
    """mean (c − q)² = (0.02556² + 0.03² + 0.4² + 0.03333²) / 4 = 0.040666; 2 · 0.01 / 4 · (c − q) for c, and its
    negative for the four values that were taken."""
    method = qlae()
    c = torch.tensor([C], requires_grad=True)
    latent = method.latent(c)
    assert latent.measured.tolist() == [[5, 0, 9, 3]]
    loss = method.penalty(latent, torch.zeros(1, 1, 4, 4))
    assert loss.item() == pytest.approx(2 * 0.01 * 0.0406660, abs=1e-8)
    loss.backward()
    expected = [-0.00012778, 0.00015, 0.0020, -0.00016667]
    torch.testing.assert_close(c.grad, torch.tensor([expected]), atol=1e-7, rtol=1e-4)
    moved = torch.zeros(4, 10)
    for row, (place, value) in enumerate(zip([5, 0, 9, 3], expected, strict=True)):
        moved[row, place] = -value
    torch.testing.assert_close(method.codebook.grad, moved, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(("quantisation", "commitment"), [(0.5, 0.0), (0.0, 0.25)])
def test_each_weight_has_its_term(quantisation, commitment):
    method = qlae(quantisation=quantisation, commitment=commitment)
    c = torch.tensor([C], requires_grad=True)
    loss = method.penalty(method.latent(c), torch.zeros(1, 1, 4, 4))
    assert loss.item() == pytest.approx((quantisation + commitment) * 0.0406660, abs=1e-7)
    loss.backward()
    assert bool(method.codebook.grad.any()) == (quantisation > 0)
    assert bool(c.grad.any()) == (commitment > 0)


def test_the_whole_loss_by_hand():
    method, data = qlae(), batch()
    network = method.network
    image = data["image"].float() / 255
    c = network.head(F.relu(network.encoder[1](image.flatten(1))))
    index = (c[:, :, None] - method.codebook).abs().argmin(-1)
    q = torch.stack([method.codebook[j, index[:, j]] for j in range(4)], 1)
    logits = network.decoder[0](F.relu(network.stem(q)))
    p = logits.sigmoid()
    pixels = -(image.flatten(1) * p.log() + (1 - image.flatten(1)) * (1 - p).log()).mean()
    expected = pixels + 0.02 * ((c - q) ** 2).mean()
    torch.testing.assert_close(method.training_loss(data), expected)


def test_many_values_and_no_penalty_are_an_autoencoder():
    """1,001 values are 0.001 apart, so that no code inside moves by more than half of that."""
    method = qlae(values=1001, quantisation=0.0, commitment=0.0)
    torch.manual_seed(0)
    plain = PlainAutoencoder(mlp_autoencoder(1, (4, 4), hidden=(8,)), 0, latents=4)
    plain.load_state_dict(method.state_dict(), strict=False)
    c = torch.linspace(-0.499, 0.499, 40).view(10, 4)
    assert (method.latent(c).z - plain.latent(c).z).abs().max() <= 0.0005 + 1e-6
    torch.testing.assert_close(method.training_loss(batch()), plain.training_loss(batch()), atol=1e-3, rtol=0)


def test_a_global_codebook_is_one_row_that_all_latents_move():
    method = qlae(codebook="global", quantisation=1.0, commitment=0.0)
    assert method.codebook.shape == (1, 10)
    method.penalty(method.latent(torch.tensor([[0.52, 0.6, 0.0, 0.0]])), torch.zeros(1, 1, 4, 4)).backward()
    assert method.codebook.grad[0, 9].item() == pytest.approx(2 / 4 * (0.5 - 0.52 + 0.5 - 0.6), abs=1e-6)


def test_values_can_stay():
    method = qlae(learn_codebook=False)
    method.training_loss(batch()).backward()
    assert method.codebook.grad is None


# -- decay and clipping ------------------------------------------------------------------------------------------------


def step_without_gradient(**options) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name → (before, after) a step of AdamW with lr 1e-3 and gradients of zero."""
    method = qlae(optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.05), **options)
    optimizer = method.configure_optimizers()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    for p in method.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return {name: (before[name], p.detach()) for name, p in method.named_parameters()}


def test_decay_is_of_weights_alone():
    """1 − 1e-3 · 0.1, and the optimiser's own 0.05 nowhere."""
    seen = set()
    for name, (before, after) in step_without_gradient().items():
        factor = 0.9999 if name.endswith("weight") else 1.0
        seen.add((factor, name.rpartition(".")[2]))
        torch.testing.assert_close(after, factor * before, atol=0, rtol=1e-6)
    assert seen == {(0.9999, "weight"), (1.0, "bias"), (1.0, "codebook")}


def test_decay_of_all_is_a_switch():
    for before, after in step_without_gradient(decay="all", weight_decay=1.0).values():
        torch.testing.assert_close(after, 0.999 * before, atol=0, rtol=1e-6)


def test_gradients_of_weights_are_clipped_entry_by_entry():
    method = qlae()
    for p in method.parameters():
        p.grad = torch.full_like(p, -3.0)
    method.network.head.weight.grad[0, 0] = 0.5
    method.configure_gradient_clipping(nn.Module(), None, None)
    assert method.network.head.weight.grad.unique().tolist() == [-1.0, 0.5]
    assert method.network.head.bias.grad.unique().tolist() == [-3.0]
    assert method.codebook.grad.unique().tolist() == [-3.0]


# -- the run -----------------------------------------------------------------------------------------------------------


def test_symbols_of_the_test_are_places(train, tmp_path):
    """A run learns, measures symbols, and keeps its codebook in the checkpoint."""
    code, folder = train(
        "regularizer=latent_quantization", "dataset.counts.x=2", "dataset.counts.y=2", "dataset.batch_size=24",
        "trainer.max_epochs=40", "trainer.check_val_every_n_epoch=40", "logger=none", "progress=none",
        "callbacks=[default,disentanglement]", "callbacks.disentanglement.regressor=lasso",
    )  # fmt: skip
    assert code == 0
    metrics = read_result(folder)["metrics"]
    assert {"test/infom", "test/infoe", "test/infoc", "test/active", "test/psnr", "test/mig"} < set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    rows = history(folder)
    losses = [float(row["train/pixels"]) for row in rows if row["train/pixels"]]
    assert losses[-1] < 0.5 * losses[0]
    state = weights(folder)
    assert state["codebook"].shape == (8, 10)
    assert not torch.equal(state["codebook"], first_codebook(8, 10))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"values": 1}, "regularizer.values=1 must be at least 2"),
        ({"commitment": -1.0}, "regularizer.commitment=-1.0 at least 0"),
        ({"codebook": "shared"}, "no regularizer.codebook 'shared'"),
        ({"decay": "biases"}, "no regularizer.decay 'biases'"),
        ({"latents": 1}, "regularizer.latents=1 must be at least 2"),
        ({"weight_decay": -0.1}, "regularizer.weight_decay=-0.1 must be at least 0"),
        ({"clip_value": 0.0}, "regularizer.clip_value=0.0 above 0 or null"),
    ],
)
def test_mistakes(options, says):
    with pytest.raises(UserError, match=says):
        qlae(**options)


def test_a_classifier_is_refused():
    with pytest.raises(UserError, match="needs an autoencoder: backbone=autoencoder_mlp"):
        LatentQuantization(mlp(1, (4, 4), 3), 3)
