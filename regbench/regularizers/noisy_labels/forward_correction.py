"""Forward correction with the true transition matrix (Patrini et al. 2017)."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from regbench.data.label_noise import check, transition_matrix
from regbench.errors import UserError
from regbench.functional.noise_losses import forward_loss, of_batch
from regbench.registry import Paper, register
from regbench.regularizers.classification.base import Batch, ClassificationMethod


def true_matrix(
    num_classes: int, kind: str, rate: float, keep_true: bool, class_map: Mapping[int, int] | int | str | None
) -> Tensor:
    """T (C, C), float64, of noise as `dataset.noise` describes it.

    Raises:
        UserError: noise without a known matrix of this size: instance-dependent noise, a random class map, a mistake.

    >>> true_matrix(3, "pairflip", 0.25, False, None).tolist()
    [[0.75, 0.25, 0.0], [0.0, 0.75, 0.25], [0.25, 0.0, 0.75]]
    """
    check({"kind": kind, "rate": rate, "keep_true": keep_true, "class_map": class_map, "exact": False})
    if kind == "instance" or class_map == "random":
        raise UserError(
            "forward_correction needs noise that depends on the class alone, in a known way; it can't take "
            f"kind={kind} with class_map={class_map}. regularizer=forward_estimated estimates the matrix."
        )
    return transition_matrix(kind, rate, num_classes, keep_true=keep_true, class_map=class_map)


@register(
    "forward_correction",
    task="noisy_labels",
    paper=Paper(
        title="Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
        authors="Giorgio Patrini, Alessandro Rozza, Aditya Krishna Menon, Richard Nock, Lizhen Qu",
        year=2017,
        venue="CVPR",
        arxiv="1609.03683",
        code="https://github.com/giorgiop/loss-correction",
    ),
)
class ForwardCorrection(ClassificationMethod):
    """Where the rates at which classes turn into each other are known, corrected predictions have the minimum that
    training on true labels has.

    Args:
        kind: of the noise, as in `dataset.noise`; None takes all four options from there (in a loop of one's own give
            them).
        rate: share of the labels that move.
        keep_true: symmetric noise: whether all C classes are drawn from.
        class_map: asymmetric noise: which class becomes which, or a size of blocks.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        kind: str | None = None,
        rate: float = 0.0,
        keep_true: bool = False,
        class_map: Mapping[int, int] | int | None = None,
        **base,
    ):
        super().__init__(backbone, num_classes, **base)
        self.register_buffer("log_matrix", torch.zeros(0, num_classes), persistent=False)
        if kind is not None:
            self._set_matrix(true_matrix(num_classes, kind, rate, keep_true, class_map))
        elif rate or keep_true or class_map is not None:
            raise UserError(
                "forward_correction has options of the noise but no regularizer.kind. Set it too, or none of them: "
                "they are then those of dataset.noise."
            )

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        if not len(self.log_matrix):
            self._set_matrix(self._matrix_of_data())
        return of_batch(partial(forward_loss, log_matrix=self.log_matrix), logits, batch)

    def _matrix_of_data(self) -> Tensor:
        data = None if self._trainer is None else self.trainer.datamodule
        noise = getattr(data, "node", {}).get("noise") or {}
        if noise.get("kind") is None:
            raise UserError(
                "forward_correction needs to know how labels go wrong: set regularizer.kind and regularizer.rate, or "
                "dataset.noise. Where nobody knows, regularizer=forward_estimated estimates it."
            )
        return true_matrix(
            self.num_classes, *(noise[name] for name in ("kind", "rate", "keep_true", "class_map"))
        )

    def _set_matrix(self, matrix: Tensor) -> None:
        self.log_matrix = matrix.log().to(self.log_matrix)
