"""Builds the backbone that a config names, and checks that it takes the dataset's images."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from regbench.backbones.backbone import Backbone, as_backbone
from regbench.backbones.graph import GraphBackbone, as_graph_backbone
from regbench.errors import UserError, unknown


def build(config: Mapping[str, Any], *, shape: tuple[int, ...], num_classes: int) -> Backbone:
    """The backbone of a config node, in training mode, after one zero image, or two nodes, went through it.

    Args:
        config: `_target_` is the dotted name of a function or class that takes in_channels, image_size
            (height, width) and num_classes and gives a network; `name` is what errors call it; all else are
            its options.
        shape: (C, H, W) of the images, or of whatever a sample is; of a network for graphs (F,), the number of a node's
            features. Its first entry is in_channels.
        num_classes: number of logits; 0: the network need not give logits.

    Raises UserError for unknown options and for a network that does not map (1, *shape) to (1, num_classes).
    """
    options = {key: value for key, value in config.items() if key not in ("_target_", "name")}
    name = config.get("name") or config["_target_"]
    item = "image" if len(shape) == 3 else "sample"
    what = f"Backbone '{name}' with {'x'.join(map(str, shape))} {item}s and {num_classes} classes"
    advice = "Choose a backbone for such samples: the regularizer's config names one; for graphs gcn, gat or erase_gat."
    if item == "image":
        advice = (
            "Choose a backbone for this image size (small_cnn, resnet18_cifar and small_vit take 8x8 and more),"
            " options that fit it (e.g. patch_size), or another dataset.image_size."
        )
    try:
        network = call(config["_target_"], options, shape, num_classes, name)
    except IndexError as error:  # a network of images reads their size
        raise UserError(f"{what} can't be made: {_first_line(error)}. {advice}") from error
    if len(shape) == 1 and "edges" in inspect.signature(network.forward).parameters:
        return _try_on_graph(network, shape, num_classes, name)
    backbone = as_backbone(network)
    if isinstance(backbone.network, nn.Identity):  # of a method without a network
        return backbone
    backbone.eval()
    try:
        with torch.no_grad():
            logits = backbone(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise UserError(f"{what} fails in its forward pass: {_first_line(error)}. {advice}") from error
    got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if num_classes and got != (1, num_classes):
        raise UserError(f"{what} gives {got} for one {item}, not logits (1, {num_classes}). {advice}")
    return backbone.train()


def _try_on_graph(network: nn.Module, shape: tuple[int, ...], num_classes: int, name: str) -> GraphBackbone:
    what = f"Backbone '{name}' with nodes of {shape[0]} features and {num_classes} classes"
    advice = "Choose a backbone for graphs: gcn, gat, or erase_gat for regularizer=erase."
    try:
        backbone = as_graph_backbone(network).eval()
        with torch.no_grad():
            rows = backbone(torch.zeros(2, *shape), torch.tensor([[0, 1], [1, 0]]))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        raise UserError(f"{what} fails: {_first_line(error)}. {advice}") from error
    got = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
    wanted = (2, num_classes if backbone.codes is None else backbone.codes)
    if got != wanted:
        raise UserError(f"{what} gives {got} for two nodes, not {wanted}. {advice}")
    return backbone.train()


def custom(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    target: str,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A network of the user's own.

    Args:
        target: dotted name of a class or function that returns the network. It is called with `options`, and
            with in_channels, image_size (height, width) and num_classes as far as its signature names them.
        options: further keyword arguments; they win over the three above.
    """
    return call(target, dict(options or {}), (in_channels, *image_size), num_classes, target)


def call(target: str, options: Mapping[str, Any], shape: tuple[int, ...], num_classes: int, name: str) -> Any:
    """Imports `target` and calls it with the options and with what its signature names of the three sizes.

    Raises UserError where it can't be imported, and where the call does not fit its signature.
    """
    function = _locate(target)
    parameters = inspect.signature(function).parameters
    named = [p.name for p in parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    sizes = {"in_channels": shape[0], "image_size": tuple(shape[1:]), "num_classes": num_classes}
    # Of the three, only the number of classes is common enough to be passed on through **kwargs.
    passed = {*named, "num_classes"} if takes_more else set(named)
    for option in options:
        if option not in named and not takes_more:
            raise unknown(f"option of backbone '{name}'", option, set(named) - set(sizes))
    arguments = {key: size for key, size in sizes.items() if key in passed} | dict(options)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"Backbone '{name}' can't be built from {', '.join(arguments) or 'nothing'}: {error}. Give what"
            " is missing in its options."
        ) from error
    try:
        return function(**arguments)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(f"Backbone '{name}' does not take all of its options: {error}.") from error


def _locate(target: str) -> Callable[..., Any]:
    """The callable behind a dotted name, e.g. my_package.my_module.MyNet."""
    module_name, _, attribute = target.rpartition(".")
    if not module_name:
        raise UserError(f"'{target}' is no dotted name; give package.module.name of a class or function.")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise UserError(
            f"'{target}' can't be imported ({type(error).__name__}: {_first_line(error)}). Its folder must be"
            " on PYTHONPATH, or its package installed."
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"class or function in {module_name}", attribute, known)
    if not callable(function):
        raise UserError(f"'{target}' is no class or function but of type {type(function).__name__}.")
    return function


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
