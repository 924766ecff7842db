"""Where to compute: any device of PyTorch that is there and can do what vitquant needs."""

from __future__ import annotations

import warnings

import torch

from vitquant.errors import ConfigError, DeviceError

EXPECTED = "a device of PyTorch, such as cpu, cuda, cuda:1 or xpu"


def parse_device(device: str | torch.device) -> torch.device:
    """A device by its name, without looking whether it is there. The CPU has no numbers: ``cpu:3`` is ``cpu``.

    Raises:
        ConfigError: PyTorch knows no such device, or one that holds no numbers.
    """
    if not isinstance(device, str | torch.device):
        raise ConfigError("not a device", where="device", got=type(device).__name__, expected=EXPECTED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some names are deprecated; whether they compute is seen below
            found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError("not a device", where="device", got=repr(device), expected=EXPECTED) from error
    if found.type == "meta":
        raise ConfigError("this device holds no numbers", where="device", got="meta", expected=EXPECTED)
    return torch.device("cpu") if found.type == "cpu" else found


def require_device(device: str | torch.device) -> torch.device:
    """A device that computes: a small sum in float64 and in integers, as statistics and programs need them, is tried.

    Raises:
        ConfigError: PyTorch knows no such device, or one that holds no numbers.
        DeviceError: it is not on this machine, this PyTorch was built without it, or it lacks these types.
    """
    found = parse_device(device)
    try:
        for dtype in (torch.float64, torch.int64):
            torch.ones(2, dtype=dtype, device=found).sum().item()
    except Exception as error:  # each of PyTorch's backends refuses in its own way
        reason = str(error).strip().partition("\n")[0].rstrip(".")[:200]
        raise DeviceError(
            f"this device cannot compute here: {reason}",
            where="device",
            got=str(found),
            expected="a device that is there and has float64 and int64",
            fix="take cpu",
        ) from error
    return found
