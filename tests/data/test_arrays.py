import warnings
from typing import Any

import numpy as np
import pytest
import torch

from vitquant.data import Preprocessing, open_images
from vitquant.data.arrays import as_labels, as_tensor
from vitquant.errors import DataError

RGB = Preprocessing((2, 4), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5))
PIXELS = 2 * np.arange(5 * 3 * 2 * 4, dtype=np.uint8).reshape(5, 3, 2, 4)


def read(images: Any, labels: Any = None) -> torch.Tensor:
    given = images if labels is None else (images, labels)
    return torch.cat([batch.pixels for batch in open_images(given, RGB).batches(2)])


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_negative_strides(axis: int) -> None:
    flipped = np.flip(PIXELS, axis)  # as BGR is made RGB
    assert torch.equal(read(flipped), torch.from_numpy(flipped.copy()))
    assert torch.equal(read([flipped[:3], flipped[3:]]), torch.from_numpy(flipped.copy()))


def test_any_byte_order_and_float() -> None:
    values = RGB.normalize(torch.from_numpy(PIXELS)).numpy()
    for dtype in (">f4", ">f8", "<f8", "f2", np.longdouble):
        assert torch.equal(read(values.astype(dtype)), torch.from_numpy(PIXELS))
    assert torch.equal(read(PIXELS.astype(">u1")), torch.from_numpy(PIXELS))
    for kind in (torch.float64, torch.bfloat16):
        assert (read(torch.from_numpy(values).to(kind)).int() - torch.from_numpy(PIXELS).int()).abs().max() <= 1
    assert torch.equal(read(torch.from_numpy(values).requires_grad_()), torch.from_numpy(PIXELS))


def test_arrays_that_cannot_be_written_are_shared() -> None:
    array = PIXELS.copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_tensor(array, "x").data_ptr() == array.ctypes.data


def test_objects_that_are_arrays() -> None:
    objects = np.empty(5, object)
    objects[:] = list(PIXELS)
    assert torch.equal(read(objects), torch.from_numpy(PIXELS))
    objects[2] = PIXELS[2, :, :1]
    with pytest.raises(DataError, match=r"images: the array is not numeric\. Got object"):
        read(objects)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array(5, np.uint8), r"wrong shape. Got \[\], expected \[N, 3, 2, 4\]"),
        (torch.tensor(5), r"wrong shape. Got \[\]"),
        (PIXELS.astype(complex), r"wrong type. Got torch.complex128"),
        (PIXELS.astype(np.uint16), r"wrong type. Got torch.uint16"),
        (PIXELS > 3, r"wrong type. Got torch.bool"),
        (PIXELS.astype("U3"), "is not numeric. Got <U3"),
        (PIXELS.astype("M8[s]"), "is not numeric"),
        (np.ma.masked_equal(PIXELS, 8), "the array has masked elements. Got 1"),
        (torch.from_numpy(PIXELS).to_sparse(), "Got sparse, expected a dense tensor. Fix: call .to_dense"),
        (torch.empty(5, 3, 2, 4, device="meta"), "Got without data"),
        (torch.zeros(5, 3, 2, 4).to(torch.float8_e4m3fn), "wrong type. Got torch.float8_e4m3fn"),
        (PIXELS.transpose(0, 2, 3, 1), r"channels are last; move them with images.permute\(0, 3, 1, 2\)"),
        (PIXELS[0], r"Got \[3, 2, 4\].*pass a batch of one image, images\[None\]"),
        (PIXELS[0].transpose(1, 2, 0), r"images.permute\(2, 0, 1\)\[None\]"),
    ],
)
def test_what_cannot_be_images(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(given)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("images: ")


@pytest.mark.filterwarnings("ignore:.*are deprecated")
def test_quantized_tensors_are_refused() -> None:
    given = torch.quantize_per_tensor(torch.zeros(5, 3, 2, 4), 0.1, 0, torch.quint8)
    with pytest.raises(DataError, match=r"images: .*Got quantized, expected a dense tensor.*dequantize"):
        read(given)


@pytest.mark.parametrize(
    "given",
    [
        [2, 0, 1],
        (2, 0, 1),
        np.array([2, 0, 1], ">i8"),
        np.array([2, 0, 1], np.uint64),
        np.array([2, 0, 1], object),
        np.array([[2], [0], [1]]),
        torch.tensor([[2], [0], [1]], dtype=torch.int8),
        torch.eye(3)[[2, 0, 1]],
        np.eye(3, dtype=bool)[[2, 0, 1]],
        np.eye(3, dtype=np.uint16)[[2, 0, 1]],
        torch.eye(3, dtype=torch.bfloat16)[[2, 0, 1]],
        [torch.tensor(2), torch.tensor(0), 1],
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    ],
)
def test_labels_in_any_form(given: Any) -> None:
    labels = as_labels(given, 3, "labels")
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(("given", "label"), [(3, 3), (torch.tensor(3), 3), ([3], 3), (np.int8(3), 3), ([0, 1, 0], 1)])
def test_the_label_of_one_image(given: Any, label: int) -> None:
    assert as_labels(given, 1, "labels").tolist() == [label]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array(["cat", "dog"]), "the labels are not numbers. Got <U3"),
        (["cat", "dog"], "the labels are not numbers. Got list"),
        ([[1], [2, 3]], "the labels are not numbers"),
        ({"boxes": 1}, "the labels are not numbers. Got dict"),
        ([1.0, 2.0], r"do not match the images. Got float64 \[2\], expected integers \[2\]"),
        ([1, 2, 3], r"Got int64 \[3\]"),
        ([[0.5, 0.5], [0.0, 1.0]], "soft labels are not supported.*argmax"),
        ([[1, 1, 0], [0, 0, 1]], "soft labels are not supported"),
        (torch.tensor([1j, 2]), "complex64"),
    ],
)
def test_labels_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_labels(given, 2, "labels")
    images = torch.from_numpy(PIXELS[:2])
    (batch,) = open_images({"image": images, "label": given}, RGB, ignore_labels=True).batches(2)
    assert batch.labels is None
    (batch,) = open_images([(images, given)], RGB, ignore_labels=True).batches(2)
    assert batch.labels is None
