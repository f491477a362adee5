"""The autoencoders that QLAE is compared with: their penalties on numbers worked out by hand."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from regbench.backbones.autoencoder import mlp_autoencoder
from regbench.errors import UserError
from regbench.regularizers.disentanglement import beta_tcvae
from regbench.regularizers.disentanglement.ae import PlainAutoencoder
from regbench.regularizers.disentanglement.base import Latent
from regbench.regularizers.disentanglement.beta_tcvae import BetaTCVAE, decomposed_divergence
from regbench.regularizers.disentanglement.beta_vae import BetaVAE, divergence
from regbench.regularizers.disentanglement.bio_ae import BioAE, biological_cost
from regbench.regularizers.disentanglement.info_wgan_gp import InfoWGANGP
from regbench.regularizers.disentanglement.latent_quantization import LatentQuantization
from regbench.regularizers.disentanglement.vq_vae import VQVAE, nearest
from support import ranks_of_two, read_result

IMAGES = torch.full((2, 1, 4, 4), 0.5)
SMALL = ["backbone=autoencoder_mlp", "backbone.hidden=[8]", "dataset.size=8", "dataset.evaluate=64",
         "trainer.limit_train_batches=2", "trainer.max_epochs=1", "logger=none", "progress=none"]  # fmt: skip


def make(cls, **options):
    torch.manual_seed(0)
    return cls(mlp_autoencoder(1, (4, 4), hidden=(8,)), 0, **({"latents": 2} | options))


def batch(n: int = 4) -> dict[str, torch.Tensor]:
    image = torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return {"image": image, "factors": torch.zeros(n, 1, dtype=torch.long), "index": torch.arange(n)}


def test_pixels_are_a_mean_and_numbers_in_0_to_1_pass_as_they_are():
    """A network of zeros says 1/2 everywhere: log 2 nats a pixel, whatever the image."""
    method = make(PlainAutoencoder)
    for p in method.parameters():
        torch.nn.init.zeros_(p)
    assert method.training_loss(batch()).item() == pytest.approx(math.log(2))
    data = batch()
    scaled = data | {"image": data["image"].float() / 255}
    torch.testing.assert_close(method.training_loss(scaled), method.training_loss(data))


@pytest.mark.parametrize(
    "cls", [PlainAutoencoder, BetaVAE, BetaTCVAE, BioAE, VQVAE, LatentQuantization, InfoWGANGP]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_of_other_types_train_and_are_measured(cls, dtype):
    method = make(cls).to(dtype)
    method.on_data(4)
    loss = method.training_loss(batch())
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad.dtype == dtype for p in method.parameters() if p.grad is not None)
    method.eval()._measure(batch(), method.test_psnr, method.test_infomec)
    assert method.test_psnr.compute().isfinite()


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_runs_in_other_precisions(train, precision):
    code, folder = train(
        "regularizer=latent_quantization", f"accelerator.precision={precision}", "accelerator=cpu", *SMALL
    )
    assert code == 0
    assert 0 < read_result(folder)["metrics"]["test/psnr"] < 40


def test_divergence_is_torchs():
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.randn(5, 3, generator=generator), torch.rand(5, 3, generator=generator) + 0.1
    expected = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, deviation), expected)


def test_beta_vae_divides_by_the_number_of_pixels():
    """KL of μ = 1, σ = 1 is 1/2 a latent; two latents, 16 pixels, β = 4."""
    latent = Latent(torch.ones(2, 2), torch.ones(2, 2), {"deviation": torch.ones(2, 2)})
    assert make(BetaVAE, beta=4.0).penalty(latent, IMAGES).item() == pytest.approx(4 * 1 / 16)


@pytest.mark.parametrize("cls", [BetaVAE, BetaTCVAE])
def test_gaussian_latents_are_drawn_in_training_only(cls):
    method = make(cls)
    code = torch.tensor([[1.0, 2.0, 0.0, 30.0]]).repeat(20_000, 1)
    latent = method.latent(code)
    # softplus(0) = log 2, softplus(30) = 30
    torch.testing.assert_close(latent.z.mean(0), torch.tensor([1.0, 2.0]), atol=0.7, rtol=0)
    torch.testing.assert_close(latent.z.std(0), torch.tensor([math.log(2), 30.0]), atol=0, rtol=0.02)
    assert latent.measured[0].tolist() == [1.0, 2.0]
    assert method.eval().latent(code).z[0].tolist() == [1.0, 2.0]
    again, first = make(cls), make(cls)
    assert torch.equal(again.latent(code).z, first.latent(code).z)


def test_processes_draw_their_rows_of_the_same_noise(monkeypatch):
    code, whole = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), make(BetaVAE)
    expected = whole.latent(code).z
    for rank in ranks_of_two(monkeypatch):
        assert torch.equal(make(BetaVAE).latent(code[rank::2]).z, expected[rank::2])


def test_total_correlation_is_that_of_the_batch_of_all_processes(monkeypatch):
    """What a process has are every second row; gathered, they give the penalty of the whole batch."""
    generator = torch.Generator().manual_seed(0)
    z, mean, deviation = torch.rand(3, 6, 2, generator=generator) + 0.1
    method = make(BetaTCVAE)
    method.on_data(100)
    expected = method.penalty(Latent(z, mean, {"deviation": deviation}), IMAGES)
    own = [rows[::2] for rows in (z, mean, deviation)]
    whole = dict(zip(map(id, own), (z, mean, deviation), strict=True))
    monkeypatch.setattr(beta_tcvae, "gather_rows", lambda rows: whole[id(rows)])
    torch.testing.assert_close(
        method.penalty(Latent(own[0], own[1], {"deviation": own[2]}), IMAGES), expected
    )


def test_parts_of_the_divergence():
    """One latent, σ = 1, two samples at their means ±a, N = 2. With n(d) = log N(d; 0, 1), c = n(0) and
    s = log(e^n(0) + e^n(2a)) − log 4: the information is c − s, one latent has no total correlation, and the rest is
    s − n(a)."""
    a = 0.7
    z = torch.tensor([[a], [-a]])

    def n(d):
        return -0.5 * math.log(2 * math.pi) - d**2 / 2

    s = math.log(math.exp(n(0)) + math.exp(n(2 * a))) - math.log(4)
    information, correlation, kl = decomposed_divergence(z, z, torch.ones(2, 1), train_size=2)
    assert information.item() == pytest.approx(n(0) - s, abs=1e-6)
    assert correlation.item() == pytest.approx(0, abs=1e-6)
    assert kl.item() == pytest.approx(s - n(a), abs=1e-6)


def test_the_parts_add_up_and_a_weight_of_one_is_a_vae():
    generator = torch.Generator().manual_seed(0)
    z, mean = torch.randn(6, 3, generator=generator), torch.randn(6, 3, generator=generator)
    deviation = torch.rand(6, 3, generator=generator) + 0.2
    parts = decomposed_divergence(z, mean, deviation, 100)
    sample = (Normal(mean, deviation).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1).mean()
    torch.testing.assert_close(sum(parts), sample)
    method = make(BetaTCVAE, latents=3, beta=5.0)
    method.on_data(100)
    latent = Latent(z, mean, {"deviation": deviation})
    expected = (sample + 4 * parts[1]) / 16
    torch.testing.assert_close(method.penalty(latent, IMAGES), expected)


def test_correlated_latents_have_a_larger_total_correlation():
    """The same marginals: z and z against z and its mirror image in another order."""
    z = torch.linspace(-2, 2, 64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    together, apart = torch.stack([z, z], 1), torch.stack([z, z[order]], 1)
    deviation = torch.full((64, 2), 0.5)
    tied = decomposed_divergence(together, together, deviation, 64)[1]
    loose = decomposed_divergence(apart, apart, deviation, 64)[1]
    assert tied > loose + 0.3


def test_biological_cost():
    z = torch.tensor([[-1.0, 2.0], [0.0, -3.0]])
    assert biological_cost(z, 1.0, 0.0).item() == 1.0  # 4 / 4
    assert biological_cost(z, 0.0, 0.1).item() == pytest.approx(0.35)  # 0.1 · 14 / 4
    assert make(BioAE).penalty(Latent(z, z), IMAGES).item() == pytest.approx(1.035)


def test_vectors():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 0.0]])
    c = torch.tensor([[[0.4, 0.4], [4.0, 1.0]]])
    q, index = nearest(c, vectors)
    assert index.tolist() == [[0, 2]]
    assert q.tolist() == [[[0.0, 0.0], [5.0, 0.0]]]


def test_vectors_are_nearest_in_half_precision_too():
    """c and the vectors have bfloat16 values; its product of them is too coarse to tell close ones apart."""
    generator = torch.Generator().manual_seed(0)
    c, vectors = torch.randn(64, 4, 32, generator=generator), torch.randn(256, 32, generator=generator)
    c, vectors = c.bfloat16(), vectors.bfloat16()
    expected = torch.cdist(c.double().flatten(0, 1), vectors.double()[None]).argmin(-1).view(64, 4)
    assert torch.equal(nearest(c, vectors)[1], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(c.float(), vectors.float())[1], expected)


def test_vq_vae():
    """Two slots of two numbers: mean (c − q)² = (0.16 + 0.16 + 1 + 1) / 4 = 0.58, times 1 + 0.25."""
    method = make(VQVAE, vectors=3, size=2)
    with torch.no_grad():
        method.vectors.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 0.0]]))
    code = torch.tensor([[0.4, 0.4, 4.0, 1.0]], requires_grad=True)
    latent = method.latent(code)
    assert latent.measured.tolist() == [[0, 2]]
    assert latent.z.tolist() == [[0.0, 0.0, 5.0, 0.0]]
    loss = method.penalty(latent, IMAGES)
    assert loss.item() == pytest.approx(1.25 * 0.58)
    loss.backward()
    torch.testing.assert_close(
        code.grad, torch.tensor([[0.05, 0.05, -0.125, 0.125]])
    )  # 0.25 · 2 / 4 · (c − q)
    torch.testing.assert_close(
        method.vectors.grad, torch.tensor([[-0.2, -0.2], [0.0, 0.0], [0.5, -0.5]])
    )  # 2 / 4 · (q − c)
    assert method.network.head.out_features == method.network.stem.in_features == 4
    lengths = make(VQVAE).vectors.square().sum(1)
    assert lengths.mean().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("cls", "options", "says"),
    [
        (BetaVAE, {"beta": -1.0}, "regularizer.beta=-1.0"),
        (BetaTCVAE, {"beta": -1.0}, "regularizer.beta=-1.0"),
        (BioAE, {"activity": -1.0}, "regularizer.activity=-1.0"),
        (VQVAE, {"vectors": 0}, "regularizer.vectors=0"),
    ],
)
def test_mistakes(cls, options, says):
    with pytest.raises(UserError, match=says):
        make(cls, **options)


def test_beta_tcvae_asks_for_the_number_of_images():
    with pytest.raises(UserError, match=r"call on_data\(number\) first"):
        make(BetaTCVAE).training_loss(batch())
