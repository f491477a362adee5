"""A classifier network that also gives its penultimate features and its activations by name.

The network's own code is left as it is: what is asked for inside it is read, or replaced, by forward hooks
that live for one call. A call that asks for logits only meets no hook.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from regbench.errors import UserError


class Outputs(NamedTuple):
    """What one forward pass gave.

    Attributes:
        logits: (B, num_classes).
        features: (B, D), the input of the classifier (after the network's dropout, where it has one there).
        activations: name of a submodule → its output (B, ...), for the names asked for.
    """

    logits: Tensor
    features: Tensor
    activations: dict[str, Tensor]


class Origin(NamedTuple):
    """Where a trained network comes from.

    Attributes:
        config: the resolved configuration of the run that trained it.
        lineage: fingerprints of the weights that it started from, the oldest first; empty where it started anew.
    """

    config: dict
    lineage: tuple[str, ...]


class Backbone(nn.Module):
    """Wraps a network that maps images (B, C, H, W) to logits (B, num_classes); its weights are `network.*`.

    Args:
        network: the classifier.
        stages: names of submodules, from input to output, after which activations can be mixed; found by
            `default_stages` unless given.
        classifier: name of the last linear layer (some timm models have a 1×1 convolution there); found by
            `default_classifier` unless given.
        channels_last: whether the network takes the channels-last memory format and is faster in it.

    Attributes:
        origin: of a trained network that a run starts from; None for any other.
    """

    origin: Origin | None = None

    def __init__(
        self,
        network: nn.Module,
        stages: Iterable[str] | None = None,
        classifier: str | None = None,
        channels_last: bool = False,
    ):
        super().__init__()
        self.network = network
        self.channels_last = channels_last
        self._classifier_name = default_classifier(network) if classifier is None else classifier
        if stages is None:
            stages = default_stages(network, self._classifier_name)
        self.stages: tuple[str, ...] = tuple(stages)
        for name in self.stages:
            self._find(name)

    def forward(
        self, image: Tensor, at: str | None = None, apply: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes).

        Args:
            image: the batch.
            at: name of a submodule of the network, e.g. one of `stages`.
            apply: replaces the output (B, ...) of that submodule on the way. Needed with `at`, only there.
        """
        if at is None and apply is None:
            return self.network(self._as_weights(image))
        return self._hooked(image, at, apply, (), features=False)[0]

    def outputs(
        self,
        image: Tensor,
        collect: Iterable[str] = (),
        at: str | None = None,
        apply: Callable[[Tensor], Tensor] | None = None,
    ) -> Outputs:
        """Logits, penultimate features and the outputs of the submodules named in `collect`, in one pass.

        `at` and `apply` as in `forward`; a submodule named in both gives its replaced output. Raises
        UserError for names that do not exist, and for submodules that don't give exactly one tensor a pass.
        """
        return Outputs(*self._hooked(image, at, apply, tuple(collect), features=True))

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer. Raises UserError where the network has none."""
        if self._classifier_name is None:
            raise UserError(
                f"{type(self.network).__name__} has no nn.Linear, so neither a classifier nor features;"
                " end it with one, or wrap it as Backbone(network, classifier='name of its last layer')."
            )
        return self._find(self._classifier_name)

    @property
    def num_features(self) -> int:
        """D, the size of the penultimate features."""
        layer = self.classifier
        return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels

    def _as_weights(self, image: Tensor) -> Tensor:
        """Pixels in the weights' type. With precision bf16-true or 64-true Lightning casts the batches of its own loops
        only, and methods and measures read others beside them. With mixed precision autocast does it.
        """
        weight = next(self.network.parameters(), image)
        if image.dtype == weight.dtype or not image.is_floating_point():
            return image
        kind = image.device.type
        autocast = kind != "meta" and torch.is_autocast_enabled(kind)
        return image if autocast else image.to(weight.dtype)

    def _find(self, name: str) -> nn.Module:
        try:
            return self.network.get_submodule(name)
        except AttributeError:
            names = [n for n, _ in self.network.named_modules() if n]
            close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise UserError(
                f"{type(self.network).__name__} has no layer '{name}'.{hint}"
                f" Its stages: {', '.join(self.stages) or 'none'}."
            ) from None

    @torch.compiler.disable  # a compiled graph does not see hooks that come after it
    def _hooked(
        self,
        image: Tensor,
        at: str | None,
        apply: Callable[[Tensor], Tensor] | None,
        collect: tuple[str, ...],
        features: bool,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """(logits, features or None, activations) of one pass."""
        if (at is None) != (apply is None):
            raise UserError("`at` (where) and `apply` (the function) go together; only one was given.")
        seen: dict[str, tuple[Tensor, int | None]] = {}  # name → (activation, its version when it was seen)
        penultimate: list[Tensor] = []
        replaced = False

        def replace(module, args, output):
            nonlocal replaced
            _check_output(at, output, replaced)
            replaced = True
            return apply(output)

        def remember(name):
            def hook(module, args, output):
                _check_output(name, output, name in seen)
                seen[name] = (output, _version(output))

            return hook

        # All names are looked up before any hook is set: a lookup may raise.
        modules = [(name, self._find(name)) for name in dict.fromkeys(collect)]
        mixed = None if at is None else self._find(at)
        classifier = self.classifier if features else None
        handles = []
        try:
            if mixed is not None:
                handles.append(mixed.register_forward_hook(replace))
            for name, module in modules:
                handles.append(module.register_forward_hook(remember(name)))
            if classifier is not None:
                handles.append(
                    classifier.register_forward_pre_hook(lambda module, args: penultimate.append(args[0]))
                )
            logits = self.network(self._as_weights(image))
        finally:
            for handle in handles:
                handle.remove()

        silent = [name for name, _ in modules if name not in seen]
        silent += [at] if mixed is not None and not replaced else []
        silent += [self._classifier_name] if features and not penultimate else []
        if silent:
            raise UserError(
                f"{type(self.network).__name__} never calls its layer '{silent[0]}' in its forward pass."
            )
        for name, (output, version) in seen.items():
            if _version(output) != version:
                raise UserError(
                    f"The output of layer '{name}' is overwritten in place later in the pass; ask for the"
                    " block around it, or build the network without inplace=True."
                )
        activations = {name: output for name, (output, _) in seen.items()}
        return logits, penultimate[-1].flatten(1) if features else None, activations


def as_backbone(module: nn.Module) -> Backbone:
    """The module itself if it is a `Backbone`, else the module wrapped, with classifier and stages found."""
    return module if isinstance(module, Backbone) else Backbone(module)


def default_classifier(network: nn.Module) -> str | None:
    """Name of the last linear layer: timm's `get_classifier()`, else the last nn.Linear; None without any.

    A network with two heads (timm's distilled ones) averages them into its logits; one of the two is named.
    """
    names = {module: name for name, module in network.named_modules() if name}
    if hasattr(network, "get_classifier"):
        found = network.get_classifier()
        found = found[0] if isinstance(found, tuple) else found
        if isinstance(found, nn.Linear | nn.Conv2d) and found in names:
            return names[found]
    linear = [name for module, name in names.items() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def default_stages(network: nn.Module, classifier: str | None) -> tuple[str, ...]:
    """Names of the network's stages.

    timm's networks say them (`feature_info`). Of any other network: its direct children before the one that
    holds the classifier (a ModuleList counts as its members), only those with weights, and only the
    containers among them if there are any: then single layers beside them are a stem.
    """
    modules = dict(network.named_modules())
    info = getattr(network, "feature_info", None)
    if info is not None:
        info = getattr(info, "info", info)  # timm's FeatureInfo object, or a plain list
        names = [entry["module"] for entry in info if entry.get("module") in modules]
        # Without weights: the activation after a ResNet's stem, which is no stage; but all of VGG's are such.
        return tuple([name for name in names if any(True for _ in modules[name].parameters())] or names)
    if classifier is None:
        return ()
    found = []
    for name, child in network.named_children():
        if name == classifier.partition(".")[0]:
            break
        members = child.named_children() if isinstance(child, nn.ModuleList) else ()
        found += [f"{name}.{key}" for key, _ in members] or [name]
    found = [name for name in found if any(True for _ in modules[name].parameters())]
    containers = [name for name in found if any(True for _ in modules[name].children())]
    return tuple(containers or found)


def reset_parameters(network: nn.Module) -> None:
    """Gives each layer PyTorch's own initialisation, drawn from torch's global generator.

    Parameters outside such layers (position embeddings) keep their values.
    """
    for module in network.modules():
        # nn.MultiheadAttention's is named with an underscore
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()


def _check_output(name: str, output: object, again: bool) -> None:
    if again:
        raise UserError(f"Layer '{name}' runs more than once in a pass; name one that runs once.")
    if not isinstance(output, Tensor):
        raise UserError(f"Layer '{name}' gives a {type(output).__name__}, not a tensor; name another layer.")


def _version(tensor: Tensor) -> int | None:
    """Counts the in-place changes of a tensor; inference tensors don't count them."""
    return None if tensor.is_inference() else tensor._version
