"""Any network of timm by name. timm, whose import takes about a second, is imported when one is built."""

import difflib
from collections.abc import Mapping
from typing import Any

from regbench.backbones.backbone import Backbone
from regbench.errors import UserError


def timm_model(
    in_channels: int,
    image_size: tuple[int, int],
    num_classes: int,
    *,
    model_name: str,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """`timm.create_model(model_name)` for the dataset's channels, classes and, where it is fixed, image size.

    Args:
        model_name: as in `timm.list_models()`; a tag names pretrained weights, e.g. resnet50.a1_in1k.
        pretrained: load timm's weights, which needs a network or a filled Hugging Face cache.
        options: further arguments of the network, e.g. {drop_rate: 0.1, drop_path_rate: 0.1, patch_size: 4}.

    Raises UserError for a name that timm does not have, for options that the network does not take, for a
    patch size that does not divide the image, and where weights can't be had.
    """
    import timm

    architecture = model_name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UserError(
            f"timm {timm.__version__} has no model '{model_name}'.{hint}"
            f" `python -c \"import timm; print(timm.list_models('*{architecture[:3]}*'))\"` lists such names."
        )
    arguments = {"in_chans": in_channels, "num_classes": num_classes}
    try:
        config = timm.models.get_pretrained_cfg(model_name)
        if config is not None and config.fixed_input_size:
            arguments["img_size"] = image_size
        arguments |= options or {}
        network = timm.create_model(model_name, pretrained=pretrained, **arguments)
    except Exception as error:  # timm's networks raise whatever their layers do
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        if pretrained:
            mend = "Weights need a network or a filled Hugging Face cache; or set backbone.pretrained=false."
        else:
            mend = "See backbone.options, and whether the model is made for images of this size."
        size = f"{in_channels}x{image_size[0]}x{image_size[1]}"
        raise UserError(f"timm can't build '{model_name}' for {size} images ({reason}). {mend}") from error

    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch is not None and any(pixels % side for pixels, side in zip(image_size, patch, strict=True)):
        raise UserError(
            f"'{model_name}' cuts images into patches of {patch} pixels, which don't divide {image_size}, so"
            " it would drop pixels at the border; set backbone.options={patch_size: …} or dataset.image_size."
        )
    return Backbone(network)
