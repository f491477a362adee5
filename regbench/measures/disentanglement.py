"""Older measures of disentanglement beside InfoMEC: MIG, DCI and modularity (callback `disentanglement`)."""

import pytorch_lightning as pl

from regbench.errors import UserError, unknown
from regbench.metrics.disentanglement import (
    REGRESSORS,
    dci,
    dci_importance,
    discretised,
    entropies,
    mig,
    modularity,
    mutual_information,
)
from regbench.regularizers.disentanglement.base import AutoencoderMethod


class OlderMeasures(pl.Callback):
    """Logs at the test, of the code of all test images: `test/mig` (Chen et al. 2018), `test/modularity` (Ridgeway &
    Mozer 2018) and `test/dci_disentanglement`, `test/dci_completeness`, `test/dci_informativeness` (Eastwood & Williams
    2018).

    For the first two, continuous latents are cut into intervals, as Locatello et al. 2019 do.

    Args:
        bins: intervals of a continuous latent.
        regressor: that importances come from: boosting, forest or lasso.
    """

    def __init__(self, *, bins: int = 20, regressor: str = "boosting"):
        if bins < 2:
            raise UserError(f"callbacks.disentanglement.bins={bins} must be at least 2.")
        if regressor not in REGRESSORS:
            raise unknown("callbacks.disentanglement.regressor", regressor, REGRESSORS)
        self.bins, self.regressor = bins, regressor

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if not isinstance(module, AutoencoderMethod):
            raise UserError(
                "callbacks=disentanglement measures the codes of autoencoders; leave it out for others."
            )

    def on_test_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        with module.test_infomec.sync_context():
            factors, latents = module.test_infomec.code()
        symbols = latents if module.discrete else discretised(latents, self.bins)
        information = mutual_information(factors, symbols, discrete=True)
        importance, informativeness = dci_importance(factors, latents, self.regressor)
        disentanglement, completeness = dci(importance)
        values = {
            "mig": mig(information, entropies(factors)),
            "modularity": modularity(information),
            "dci_disentanglement": disentanglement,
            "dci_completeness": completeness,
            "dci_informativeness": informativeness,
        }
        module.log_dict({f"test/{name}": value for name, value in values.items()})
