"""RegBench without its command line: a method as a LightningModule on a network of one's own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regbench import registry
from regbench.errors import UserError, unknown


def create_method(slug: str, *, backbone: nn.Module, num_classes: int, **options: Any) -> nn.Module:
    """The method `slug` on a network of one's own.

    The result is a LightningModule: `pl.Trainer().fit(method, train_loader, val_loader)` trains it on batches
    (image, label), or mappings with these keys, and `method.training_loss(batch)` serves in a plain PyTorch loop.

    Args:
        slug: see `regbench list`.
        backbone: maps images (B, C, H, W) to logits (B, num_classes).
        num_classes: number of classes C.
        **options: the method's hyperparameters (`regbench info <slug>`), and `optimizer` (makes an optimiser from
            parameters), `scheduler` and `seed`, see `regbench.regularizers.base.Method`; `stack`, e.g.
            ["weight_compander", {"orthogonal_conv": {"weight": 0.1}}].

    Raises:
        UserError: an unknown slug or hyperparameter, with the nearest names.

    >>> from torch import nn, zeros
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    >>> method = create_method("label_smoothing", backbone=network, num_classes=3, smoothing=0.1)
    >>> loss = method.training_loss((zeros(2, 3, 2, 2), zeros(2).long()))
    """
    import inspect

    cls = registry.load(slug)
    known = set()
    for ancestor in cls.__mro__:
        if "__init__" in vars(ancestor):
            parameters = inspect.signature(ancestor.__init__).parameters.values()
            known |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    for name in options:
        if name not in known:
            raise unknown(f"option of {slug} named", name, known)
    return cls(backbone, num_classes, **options)


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raises UserError, naming the first differences, where `state` does not fit a model's `own` state."""
    differences = [f"{name} is missing" for name in own if name not in state]
    differences += [f"{name} is unknown" for name in state if name not in own]
    differences += [
        f"{name} is {tuple(state[name].shape)}, here {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if differences:
        shown = "; ".join(differences[:3])
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{source} is a checkpoint of another model: {shown}{more}. "
            "Give the regularizer, backbone and dataset that it was trained with; they stand in its run's config.yaml."
        )
