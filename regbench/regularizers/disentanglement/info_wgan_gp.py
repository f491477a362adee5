"""InfoWGAN-GP: a generator whose latents the critic reads back from its images, continuous ones or quantised ones (Hsu
et al. 2023; InfoGAN: Chen et al. 2016; the gradient penalty: Gulrajani et al. 2017).

Source of every equation: Hsu et al.'s released code, https://github.com/kylehkhsu/latent_quantization
(models/info_gan.py, models/quantized_info_gan.py, encoders/critic.py, scripts/train_gan.py).
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError
from regbench.functional.distributed import world_size
from regbench.functional.quantisation import first_codebook, quantise, straight_through
from regbench.registry import Paper, register
from regbench.regularizers.disentanglement.base import AutoencoderMethod, Latent


def gradient_penalty(value: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Mean over the images of (|∇ value(x)| − 1)², with a gradient for the parameters of `value`.

    Args:
        value: images (B, C, H, W) → a number for each, (B,), that depends on its own image alone.
        image: (B, C, H, W), where the slope is taken; the norm is over all of an image's pixels.

    >>> gradient_penalty(lambda x: 3 * x.sum((1, 2, 3)), torch.zeros(1, 1, 2, 2))  # |∇| = 3 · 2
    tensor(25.)
    """
    image = image.detach().requires_grad_()
    (slope,) = torch.autograd.grad(value(image).sum(), image, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


@register(
    "info_wgan_gp",
    task="disentanglement",
    paper=Paper(
        title="InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets",
        authors="Xi Chen, Yan Duan, Rein Houthooft, John Schulman, Ilya Sutskever, Pieter Abbeel",
        year=2016,
        venue="NeurIPS",
        arxiv="1606.03657",
    ),
)
class InfoWGANGP(AutoencoderMethod):
    """A generative adversarial network whose critic also reads the latents back from the generated images learns
    latents that each follow a factor; quantised ones (QLInfoWGAN-GP, Hsu et al. 2023) are more modular and explicit.

    The decoder is the generator, from latents z drawn uniformly; the encoder's features give a code and, by one more
    layer, the critic's value D. Each step trains encoder and critic on −(D(x) − D(x̂)) + gradient_penalty · mean
    (|∇D| − 1)² at random points between real and generated images + reconstruction · mean (ẑ − z)²; every
    `generator_every`-th step then trains the generator on −D(x̂) + reconstruction · mean (ẑ − z)². With quantised
    latents z is drawn from the codebook's values and ẑ is quantised straight through; both losses have the term of
    `commitment`, the generator's has that of `quantisation` too, and its steps move the values.

    One optimiser does both: it skips parameters without a gradient, so that each has its own moments and steps.

    Args:
        latents: number of latents.
        quantised: true: QLInfoWGAN-GP; false: the latents are uniform in [0, 1].
        values: of each quantised latent.
        learn_codebook: false: the values stay evenly spaced from −1/2 to 1/2.
        reconstruction: weight of the latents' squared error; 0 with `quantised` false: a WGAN-GP.
        gradient_penalty: weight of the penalty on the critic's slope.
        quantisation: weight of the mean of (stopgrad(c) − q)², which moves the values to the codes.
        commitment: weight of the mean of (c − stopgrad(q))², which moves the codes to the values.
        generator_every: steps of the critic for each of the generator.
        weight_decay: of weights, decoupled.
        clip_value: largest size of an entry of the weights' gradients; None clips none.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        latents: int = 8,
        quantised: bool = False,
        values: int = 10,
        learn_codebook: bool = True,
        reconstruction: float = 200.0,
        gradient_penalty: float = 10.0,
        quantisation: float = 0.01,
        commitment: float = 0.01,
        generator_every: int = 5,
        weight_decay: float = 1e-4,
        clip_value: float | None = 1.0,
        **base,
    ):
        self.discrete = quantised
        super().__init__(
            backbone, num_classes, latents=latents, weight_decay=weight_decay, clip_value=clip_value, **base
        )
        if min(values - 1, generator_every) < 1:
            raise UserError(
                f"regularizer.values={values} must be at least 2, regularizer.generator_every={generator_every} at "
                "least 1."
            )
        if min(reconstruction, gradient_penalty, quantisation, commitment) < 0:
            raise UserError(
                f"regularizer.reconstruction={reconstruction}, regularizer.gradient_penalty={gradient_penalty}, "
                f"regularizer.quantisation={quantisation} and regularizer.commitment={commitment} must be at least 0."
            )
        if self.accumulate > 1:
            raise UserError(
                "info_wgan_gp can't accumulate gradients: critic and generator take steps of their own. Set "
                "trainer.accumulate_grad_batches=1."
            )
        self.reconstruction, self.gradient_penalty = reconstruction, gradient_penalty
        self.quantisation, self.commitment, self.generator_every = quantisation, commitment, generator_every
        self.critic = nn.Linear(self.network.features, 1)
        self.codebook = (
            nn.Parameter(first_codebook(latents, values), requires_grad=learn_codebook) if quantised else None
        )

    def latent(self, code: Tensor) -> Latent:
        if self.codebook is None:
            return Latent(code, code)
        q, index = quantise(code, self.codebook)
        return Latent(straight_through(code, q), index, {"continuous": code, "quantised": q})

    def is_weight(self, name: str) -> bool:
        return name.startswith(("backbone.", "critic.")) and not name.endswith("bias")

    # -- the two losses --------------------------------------------------------------------------------------------

    def draw(self, count: int) -> Tensor:
        """Latents z (count, latents): uniform in [0, 1], or each a value of its codebook, with a gradient for it."""
        shape, generator = (count, self.latents), self.generator("latent")
        if self.codebook is None:
            return torch.rand(shape, generator=generator).to(self.critic.weight)
        index = torch.randint(self.codebook.shape[1], shape, generator=generator)
        return self.codebook.T.gather(0, index.to(self.device))

    def generate(self, z: Tensor) -> Tensor:
        """z (B, latents) → images (B, C, H, W) in [0, 1]."""
        return self.network.decode(z).sigmoid()

    def value(self, image: Tensor) -> Tensor:
        """The critic's value of images (B, C, H, W), (B,)."""
        return self.critic(self.network.encoder(image)).squeeze(1)

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of encoder and critic, which has no gradient for generator and codebook. In a loop of one's own, a
        step of those is on `generator_loss`.
        """
        image = self._image(batch)
        with torch.no_grad():
            z = self.draw(len(image))
            fake = self.generate(z)
        features = self.network.encoder(torch.cat([fake, image]))
        of_fake, of_real = self.critic(features).squeeze(1).chunk(2)
        distance = (of_real - of_fake).mean()
        share = torch.rand((len(image), 1, 1, 1), generator=self.generator("between")).to(image)
        slope = gradient_penalty(self.value, share * image + (1 - share) * fake)
        latent = self.latent(self.network.head(features[: len(image)]))
        error = F.mse_loss(latent.z, z)
        self.watch("distance", distance)
        self.watch("gradient_penalty", slope)
        self.watch("latent_error", error)
        loss = -distance + self.gradient_penalty * slope + self.reconstruction * error
        if self.codebook is not None:  # the term of `quantisation` has no gradient for the encoder
            c, q = latent.parts["continuous"], latent.parts["quantised"]
            loss = loss + self.commitment * F.mse_loss(c, q.detach())
        return loss

    def generator_loss(self, count: int) -> Tensor:
        """The loss of generator and codebook on `count` generated images."""
        z = self.draw(count)
        features = self.network.encoder(self.generate(z))
        latent = self.latent(self.network.head(features))
        loss = -self.critic(features).mean() + self.reconstruction * F.mse_loss(latent.z, z)
        if self.codebook is not None:
            c, q = latent.parts["continuous"], latent.parts["quantised"]
            loss = loss + self.quantisation * F.mse_loss(q, c.detach())
            loss = loss + self.commitment * F.mse_loss(c, q.detach())
        return loss

    def generating(self) -> list[nn.Parameter]:
        """The parameters that the generator's steps train."""
        modules = (self.network.stem, self.network.decoder)
        parameters = [p for module in modules for p in module.parameters()]
        if self.codebook is not None and self.codebook.requires_grad:
            parameters.append(self.codebook)
        return parameters

    # -- Lightning -------------------------------------------------------------------------------------------------

    automatic_optimization = False  # critic and generator take steps of their own

    @property
    def networks(self) -> list[nn.Module]:
        # torch.compile has no second derivatives, which the slope of the critic needs.
        return [self.network.decoder]

    def on_fit_start(self) -> None:
        if world_size() > 1:
            raise UserError(
                "info_wgan_gp trains on one process; set accelerator.devices=1 (and accelerator=gpu or cpu)."
            )
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "info_wgan_gp has gradients that no loss scaling reaches; set accelerator.precision=bf16-mixed."
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.configure_gradient_clipping(optimizer)  # `optimize` has clipped the norm

    def training_step(self, batch, batch_idx: int) -> None:
        loss = self.training_loss(batch)
        self.track(loss, batch_idx)
        self.optimize(loss, batch_idx)
        # Counted from the run's start, so that a resumed run goes on in the rhythm.
        step = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        if (step + 1) % self.generator_every == 0:
            self._generator_step(len(self._image(batch)))

    def _generator_step(self, count: int) -> None:
        loss, parameters = self.generator_loss(count), self.generating()
        self.watch("generator_loss", loss)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        # Not Lightning's wrapper: it would count this as a step of training.
        optimizer = self.optimizers(use_pl_optimizer=False)
        self.configure_gradient_clipping(optimizer, self.clip, "norm")
        optimizer.step()
        optimizer.zero_grad()
