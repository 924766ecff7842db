"""Every name of a device is computed on, or refused."""

import pytest
import torch

from vitquant.device import parse_device, require_device
from vitquant.errors import ConfigError, DeviceError

ABSENT = sorted(
    name
    for name in (
        "cuda",
        "xpu",
        "mps",
        "hip",
        "vulkan",
        "xla",
        "opencl",
        "mkldnn",
        "privateuseone",
        "hpu",
        "mtia",
        "lazy",
    )
    if name != getattr(torch.accelerator.current_accelerator(), "type", None)
)


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "cpu:3", torch.device("cpu", 1)])
def test_the_cpu_has_no_numbers(name: str | torch.device) -> None:
    assert require_device(name) == torch.device("cpu")


@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_is_not_there(name: str) -> None:
    for device in (name, f"{name}:7"):
        with pytest.raises(DeviceError, match=r"^device: the device cannot be used: .*Fix: use cpu\.$") as caught:
            require_device(device)
        assert caught.value.exit_code == 4
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["gpu", "", "CPU", "cuda:-1", "cuda:x", "cpu cpu", "meta", "a\nb", "\0", None, 0, 3.5, b"cpu"]
)
def test_what_is_no_device(name: object) -> None:
    for check in (parse_device, require_device):
        with pytest.raises(ConfigError, match=r"^device: "):
            check(name)  # type: ignore[arg-type]
