"""Unwrapping model objects that training or compilation has wrapped."""

from __future__ import annotations

from torch import nn

# Class -> the attribute with the model. The wrapper's forward is that of the model.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",  # torch.compile
    "AveragedModel": "module",  # torch.optim.swa_utils
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",  # timm.utils
}
PACKAGES = ("torch", "timm")


def unwrap(model: object) -> object:
    """The model inside any number of wrappers, such as ``DataParallel`` around the result of ``torch.compile``.

    Wrappers are recognised by class, so a user module with its own forward is returned unchanged.
    """
    while isinstance(model, nn.Module) and (attribute := _attribute(model)):
        model = getattr(model, attribute)
    return model


def _attribute(model: nn.Module) -> str | None:
    known = (
        WRAPPERS[base.__name__]
        for base in type(model).__mro__
        if base.__name__ in WRAPPERS and base.__module__.partition(".")[0] in PACKAGES
    )
    return next((name for name in known if isinstance(getattr(model, name, None), nn.Module)), None)
