"""Conversion of arrays, tensors and labels from Python to plain tensors in main memory."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitquant.errors import DataError

IGNORE = "label each image with its class index, or evaluate without labels (ignore_labels=True)"


def as_tensor(given: Tensor | np.ndarray, where: str) -> Tensor:
    """A numeric array as a tensor of the same shape and, if torch supports it, the same type.

    Any byte order and strides are accepted, and arrays of Python objects that are numbers or arrays of equal shape.
    The memory is shared if possible.

    Raises:
        DataError: the array is not numeric or not supported: text, sparse or quantized tensors, tensors without data,
            masked elements.
    """
    if isinstance(given, Tensor):
        return _plain_tensor(given, where)
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        fix = "fill them, such as with array.filled(0)"
        raise DataError("the array has masked elements", where=where, got=int(np.ma.getmaskarray(given).sum()), fix=fix)
    array = np.asarray(given)
    if array.dtype.hasobject and array.dtype.kind == "O":
        array = _without_objects(array)
    if array.dtype.kind not in "biufc":
        fix = "convert the array with .astype()"
        raise DataError("the array is not numeric", where=where, got=f"{array.dtype}", fix=fix)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)  # nothing is written
            return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise DataError(f"the array cannot be read ({error})", where=where, got=f"{array.dtype}") from error


def _plain_tensor(tensor: Tensor, where: str) -> Tensor:
    kinds = {
        "without data (device meta)": tensor.is_meta,
        "nested": tensor.is_nested,
        "quantized": tensor.is_quantized,
        "sparse": tensor.layout != torch.strided,
    }
    for kind, found in kinds.items():
        if found:
            fix = {"quantized": "call .dequantize()", "sparse": "call .to_dense()"}.get(kind)
            raise DataError("unsupported kind of tensor", where=where, got=kind, expected="a dense tensor", fix=fix)
    return tensor.detach()


def _without_objects(array: np.ndarray) -> np.ndarray:
    """An array of Python objects as a numeric array; unchanged if that is not possible."""
    try:
        plain = np.array(array.tolist())
    except (TypeError, ValueError, OverflowError):
        return array
    return array if plain.dtype.hasobject else plain


def as_labels(given: Any, count: int, where: str) -> Tensor:
    """Labels of ``count`` images as ``int64 [count]``.

    They may be given as integers ``[count]`` or ``[count, 1]``, as a number for one image, or one-hot ``[count, K]``.

    Raises:
        DataError: the labels are not integers, or not one per image.
    """
    try:
        labels = as_tensor(given if isinstance(given, Tensor | np.ndarray) else _array(given), where).cpu()
    except DataError as error:
        got = error.got if isinstance(given, Tensor | np.ndarray) else type(given).__name__
        raise DataError(
            "the labels are not numbers", where=where, got=got, expected=f"integers [{count}]", fix=IGNORE
        ) from error
    shape = described(labels)
    if labels.ndim < 2 and count == 1 and labels.numel() > 1:
        labels = labels[None]
    if labels.ndim == 2 and len(labels) == count and labels.shape[1] > 1:
        labels = _from_one_hot(labels, where)
    elif labels.numel() == count and (labels.ndim == 0 or labels.shape == (count, 1)):
        labels = labels.reshape(-1)
    if tuple(labels.shape) != (count,) or labels.is_floating_point() or labels.is_complex():
        raise DataError(
            "the labels do not match the images", where=where, got=shape, expected=f"integers [{count}]", fix=IGNORE
        )
    return labels.long()


def _array(given: Any) -> np.ndarray:
    """Labels in a list, a table's column and the like, as an array."""
    try:
        if isinstance(given, list | tuple) and any(isinstance(item, Tensor) for item in given):
            return torch.stack([torch.as_tensor(item).detach().cpu() for item in given]).numpy()
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError("the labels are not numbers", got=type(given).__name__) from error


def _from_one_hot(labels: Tensor, where: str) -> Tensor:
    numbers = labels.numpy() if labels.dtype != torch.bfloat16 else labels.float().numpy()
    hot = torch.from_numpy(numbers != 0)
    if not (bool((hot.sum(1) == 1).all()) and bool((numbers[hot.numpy()] == 1).all())):
        raise DataError(
            "soft labels are not supported",
            where=where,
            got=described(labels),
            expected="one class per image, as an index or one-hot",
            fix="use labels.argmax(1)",
        )
    return hot.to(torch.uint8).argmax(1)


def described(tensor: Tensor) -> str:
    """Type and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
