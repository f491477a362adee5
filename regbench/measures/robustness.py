"""Accuracy under adversarial attack, by the library Foolbox (callback `robustness`)."""

from collections.abc import Sequence

import pytorch_lightning as pl
import torch

from regbench.errors import UserError, unknown
from regbench.regularizers.base import batch_fields

ATTACKS = {  # name → (class in foolbox.attacks, takes steps)
    "l2_pgd": ("L2PGD", True),
    "linf_pgd": ("LinfPGD", True),
    "l2_fgsm": ("L2FastGradientAttack", False),
    "linf_fgsm": ("LinfFastGradientAttack", False),
}


class Robustness(pl.Callback):
    """Logs at the test test/robust_<eps>: the share of test images that are classified rightly and stay so under the
    attack, for each eps. Every n-th test image is attacked, at most `samples`, so that all classes come. Images are
    attacked in pixels of [0, 1]: the data's normalisation is part of the attacked model.

    Args:
        attack: l2_pgd, linf_pgd (with random start), l2_fgsm or linf_fgsm, Foolbox's own (version 3).
        eps: radii, in pixels of [0, 1].
        steps: of PGD, each of 2.5 eps / steps (Madry et al. 2018).
        samples: test images that are attacked, at most.

    Raises:
        UserError: Foolbox is missing, or an option is out of range.
    """

    def __init__(
        self, attack: str = "l2_pgd", eps: Sequence[float] = (0.5, 1.0), steps: int = 20, samples: int = 1000
    ):
        if attack not in ATTACKS:
            raise unknown("attack of callbacks.robustness", attack, ATTACKS)
        if not eps or min(eps) <= 0 or steps < 1 or samples < 1:
            raise UserError(
                f"callbacks.robustness needs positive eps, steps and samples; it got eps={list(eps)}, steps={steps}, "
                f"samples={samples}."
            )
        try:
            from foolbox import attacks
        except ImportError:
            raise UserError(
                "callbacks=robustness needs Foolbox; install it with `pip install 'regbench[robustness]'`."
            ) from None
        name, takes_steps = ATTACKS[attack]
        self.attack = getattr(attacks, name)(
            **({"steps": steps, "rel_stepsize": 2.5 / steps} if takes_steps else {})
        )
        self.eps, self.samples = [float(e) for e in eps], samples

    def on_test_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        count = len(trainer.datamodule.sets.test)
        self._every = -(-count // self.samples)
        self._seen = self._attacked = 0
        self._right = torch.zeros(len(self.eps), device=module.device)

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        from foolbox import PyTorchModel

        image, label = batch_fields(batch, ("image", "label"))
        first = -self._seen % self._every
        self._seen += len(label)
        image, label = image[first :: self._every], label[first :: self._every]
        if not len(label):
            return
        mean, std = (torch.tensor(v, device=image.device) for v in trainer.datamodule.mean_std)
        # Its random start comes from the global generators, which are put back: nobody else's numbers move.
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
            torch.manual_seed(batch_idx)
            image, label = image.clone(), label.clone()
            shape = (-1, *[1] * (image.ndim - 2))
            pixels = (image * std.view(shape) + mean.view(shape)).clamp(0, 1)
            preprocessing = {"mean": mean.tolist(), "std": std.tolist(), "axis": -3}
            model = PyTorchModel(
                module.backbone, bounds=(0, 1), device=image.device, preprocessing=preprocessing
            )
            _, _, fooled = self.attack(model, pixels, label, epsilons=self.eps)
        self._right += (~fooled).sum(dim=1)
        self._attacked += len(label)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for eps, right in zip(self.eps, self._right / self._attacked, strict=True):
            module.log(f"test/robust_{eps:g}", right, sync_dist=True)
