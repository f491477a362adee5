"""The value of `stack`: which methods stand on top of the chosen one, with which options.

It is a plain value, `stack=[weight_compander,{orthogonal_conv:{weight:0.1}}]`, because composing the stacked methods'
own config files would let their dataset and backbone beat the chosen ones.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from regbench import catalogue, registry
from regbench.errors import UserError, unknown


def read_stack(stack: Sequence[str | Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """slug → the options that were given, in the order of the stack.

    Raises:
        UserError: a value of another shape, an unknown slug (nearest names), or one that comes twice.

    >>> read_stack(["weight_compander", {"orthogonal_conv": {"weight": 0.1}}])
    {'weight_compander': {}, 'orthogonal_conv': {'weight': 0.1}}
    """
    if isinstance(stack, str | Mapping) or not isinstance(stack, Sequence):
        raise UserError(
            f"stack={stack} must be a list: stack=[weight_compander,{{orthogonal_conv:{{weight:0.1}}}}]."
        )
    found: dict[str, dict[str, Any]] = {}
    for item in stack:
        entry = {item: {}} if isinstance(item, str) else item
        if not isinstance(entry, Mapping) or not all(isinstance(v, Mapping | None) for v in entry.values()):
            raise UserError(
                f"stack holds slugs, or a slug with its options as {{slug:{{option:value}}}}; not {item}."
            )
        for slug, options in entry.items():
            registry.find(slug)
            if slug in found:
                raise UserError(f"stack names {slug} twice.")
            found[slug] = dict(options or {})
    return found


def with_defaults(stack: Sequence[str | Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """slug → all its options: those given, the others as in the method's config.

    Raises:
        UserError: as `read_stack`, and for an option that the method does not have.
    """
    found = {}
    for slug, options in read_stack(stack).items():
        own = defaults_of(slug)
        for name in options:
            if name not in own:
                raise unknown(f"option of {slug} in stack named", name, own)
        found[slug] = {**own, **options}
    return found


@cache
def defaults_of(slug: str) -> dict[str, Any]:
    """The hyperparameters of a method's config with their values."""
    config = OmegaConf.to_container(OmegaConf.load(catalogue.config_path(slug)), resolve=True)
    return {name: value for name, value in config.items() if name not in ("defaults", "name")}
