"""Recognition of Vision Transformers of other libraries by their names, for more helpful errors."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

# Library -> pattern that occurs only in its parameter names.
PARAMETERS = {
    "Hugging Face transformers": r"(^|\.)embeddings\.(patch_embeddings|cls_token)\b|(^|\.)layer\.\d+\.attention\.",
    "torchvision": r"(^|\.)encoder_layer_\d+\.|(^|\.)conv_proj\.weight$",
    "mmpretrain": r"(^|\.)patch_embed\.projection\.|(^|\.)layers\.\d+\.ln1\.",
    "OpenAI CLIP or OpenCLIP": r"(^|\.)transformer\.resblocks\.\d+\.",
    "JAX (big_vision or Flax)": r"encoderblock_\d+|(^|[./])Transformer[./]",
    "vit-pytorch": r"(^|\.)to_patch_embedding\.|(^|\.)transformer\.layers\.\d+\.[01]\.",
    "torch.nn.TransformerEncoder": r"(^|\.)layers\.\d+\.self_attn\.in_proj_",
}

# Library -> the packages that define its classes.
PACKAGES = {
    "Hugging Face transformers": ("transformers",),
    "torchvision": ("torchvision",),
    "mmpretrain": ("mmpretrain", "mmcls", "mmcv", "mmengine"),
    "OpenAI CLIP or OpenCLIP": ("open_clip", "clip"),
    "vit-pytorch": ("vit_pytorch",),
    "the DINOv2 repository": ("dinov2",),
    "the DINOv3 repository": ("dinov3",),
    "the original repository (module vision_transformer)": ("vision_transformer",),
}


def library_of_names(names: Iterable[str]) -> str | None:
    """The library with these parameter names; ``None`` for timm or an unknown library."""
    listed = list(names)
    matches = (lib for lib, pattern in PARAMETERS.items() if any(re.search(pattern, name) for name in listed))
    return next(matches, None)


def library_of_model(model: nn.Module) -> str | None:
    """The other library of a model object, by the packages of its classes, then by its parameter names."""
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    known = (lib for lib, names in PACKAGES.items() if packages & set(names))
    return next(known, None) or library_of_names(name for name, _ in model.named_parameters())
