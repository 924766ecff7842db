"""torch's settings that would change what a simulation computes, put aside while it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Within the block: no autocast, no gradients, no inference mode, and tensors are made on the CPU by default.

    Settings that are as they should be are not touched, since a default device slows every call of torch.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():  # its tensors could not be used outside it
            stack.enter_context(torch.inference_mode(False))
        if torch.is_grad_enabled():
            stack.enter_context(torch.no_grad())
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
