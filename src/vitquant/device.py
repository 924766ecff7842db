"""The compute device: any available PyTorch device with the types that vitquant needs."""

from __future__ import annotations

import warnings

import torch

from vitquant.errors import ConfigError, DeviceError

EXPECTED = "a PyTorch device, such as cpu, cuda, cuda:1 or xpu"


def parse_device(device: str | torch.device) -> torch.device:
    """A device by its name, without checking that it is available. The CPU has no index: ``cpu:3`` is ``cpu``.

    Raises:
        ConfigError: PyTorch does not know the device, or the device does not store data.
    """
    if not isinstance(device, str | torch.device):
        raise ConfigError("not a device", where="device", got=type(device).__name__, expected=EXPECTED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some names are deprecated; whether the device works is checked below
            found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError("not a device", where="device", got=repr(device), expected=EXPECTED) from error
    if found.type == "meta":
        raise ConfigError("this device does not store data", where="device", got="meta", expected=EXPECTED)
    return torch.device("cpu") if found.type == "cpu" else found


def require_device(device: str | torch.device) -> torch.device:
    """A device that works: a small sum is computed in float64 and in int64, which statistics and programs need.

    Raises:
        ConfigError: PyTorch does not know the device, or the device does not store data.
        DeviceError: this machine does not have it, this PyTorch was built without it, or it lacks these types.
    """
    found = parse_device(device)
    try:
        for dtype in (torch.float64, torch.int64):
            torch.ones(2, dtype=dtype, device=found).sum().item()
    except Exception as error:  # each PyTorch backend raises its own errors
        reason = str(error).strip().partition("\n")[0].rstrip(".")[:200]
        raise DeviceError(
            f"the device cannot be used: {reason}",
            where="device",
            got=str(found),
            expected="an available device with float64 and int64",
            fix="use cpu",
        ) from error
    return found
