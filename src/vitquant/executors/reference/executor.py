"""The executor itself: operations in order, on any device, any number of images at a time."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitquant.arguments import require_kind
from vitquant.device import require_device
from vitquant.errors import ProgramError
from vitquant.executors.reference import attention, elementwise, layernorm, linear, rotary, tokens
from vitquant.executors.reference.tensors import Execute, Inputs, Prepare, along
from vitquant.layers.memory import memory_named
from vitquant.layers.plain_torch import plain_torch
from vitquant.numerics.requantize import half
from vitquant.program import ops
from vitquant.program.program import IntegerProgram

FAMILIES = (tokens, linear, layernorm, elementwise, rotary, attention)

EXECUTE: Mapping[type[ops.Operation], Execute] = {
    kind: execute for family in FAMILIES for kind, execute in family.EXECUTE.items()
}

PREPARE: Mapping[type[ops.Operation], Prepare] = {**linear.PREPARE, **attention.PREPARE}


@dataclass(frozen=True)
class IntegerOutput:
    """An output of a program: ``codes`` int32, less their zero points, and the ``scale`` that makes them real numbers.

    Codes are ``[B, C]`` of a pooled output, such as logits, else ``[B, N, C]``; the scale is ``[1 or C]``.
    """

    codes: Tensor
    scale: Tensor

    def real(self) -> Tensor:
        """The output as floats."""
        return self.codes * self.scale


class Reference:
    """Executes a copy of a program. Constants are put on the device once; a call keeps nothing but what it is asked
    for, so several threads may call one executor.

    Args:
        program: checked already, as all are that were compiled or loaded.
        device: where to compute: any device of PyTorch that is there.
        outputs: names of the outputs to compute; the first one, if none is named.

    Raises:
        ConfigError, DeviceError: ``program`` is none, it has no such output, or the device is unknown or not there.
    """

    @plain_torch()
    def __init__(
        self, program: IntegerProgram, device: torch.device | str = "cpu", outputs: Sequence[str] = ()
    ) -> None:
        program = copy.deepcopy(require_kind(program, IntegerProgram, "program"))  # whose arrays are read in every call
        self.program, self.device = program, require_device(device)
        self.outputs = program.choose(outputs)
        self.values = program.values()
        self.constants = {op.out.name: self._constants(op) for op in program.operations}
        self.last_use = {name: op.out.name for op in program.operations for name in op.inputs()}
        self.needed = program.needed(output.value for output in self.outputs)
        given = {output.name: self.values[output.value] for output in self.outputs}
        self._zeros = {name: self._tensor(value.per_place(value.zero_point)) for name, value in given.items()}
        self._scales = {name: self._tensor(value.per_place(value.scale)).clone() for name, value in given.items()}

    def __call__(self, images: Tensor) -> IntegerOutput:
        """Images, uint8 ``[B, C, h, w]``, to the first of the chosen outputs.

        Raises:
            ProgramError: the images are of another type or shape.
            OutOfMemoryError: naming the value that memory did not suffice for.
        """
        return next(iter(self.all(images).values()))

    def all(self, images: Tensor) -> dict[str, IntegerOutput]:
        """All chosen outputs by name. Raises as a call."""
        found = self.run(images)
        return {name: IntegerOutput(found[name], scale.clone()) for name, scale in self._scales.items()}

    @plain_torch()
    def run(self, images: Tensor, keep: Collection[str] = ()) -> dict[str, Tensor]:
        """The codes ``[B, ...]`` of the values named in ``keep``; under their names, the chosen outputs' codes less
        their zero points.
        """
        require_pixels(self.program, images)
        wanted = {*keep, *(output.value for output in self.outputs)}
        held = {self.program.image.name: images.to(self.device)}
        for op in self.program.needed(wanted) if keep else self.needed:
            constants = self.constants[op.out.name]
            with memory_named(op.out.name, images):
                held[op.out.name] = EXECUTE[type(op)](op, constants, Inputs(held, self.values, len(images)))
            for name in op.inputs():
                if self.last_use[name] == op.out.name and name not in wanted:
                    held.pop(name, None)  # an operation may read one value twice
        found = {name: held[name] for name in keep}
        for output in self.outputs:
            codes = (held[output.value].long() - self._zeros[output.name]).to(torch.int32)
            found[output.name] = codes[:, 0] if output.pooled else codes
        return found

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _constants(self, op: ops.Operation) -> dict[str, Tensor]:
        """The operation's tensors, in the form in which they are used."""
        found = {name: self._tensor(array) for name, array in op.constants()}
        for name in list(found):
            if name.startswith(("multiplier", "shift")):
                found[name] = along(op.out, found[name].long())
        if "multiplier" in found:  # what rescaling begins with
            found["start"] = half(found["shift"])
        found["zero"] = along(op.out, self._tensor(op.out.per_place(op.out.zero_point)))
        prepare = PREPARE.get(type(op))
        return found if prepare is None else prepare(op, found)


def require_pixels(program: IntegerProgram, images: Tensor) -> Tensor:
    """The images, if they are what the program takes: uint8 ``[B, C, h, w]``.

    Raises:
        ProgramError: they are of another type or shape, or there are none.
    """
    shape = program.image.shape
    tensor = isinstance(images, Tensor)
    if not tensor or images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape or not len(images):
        raise ProgramError(
            "images that the program does not take",
            where="images",
            got=f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}" if tensor else type(images).__name__,
            expected=f"uint8 [N, {', '.join(map(str, shape))}]",
            fix="give the pixels as they are, resized and cropped to this size",
        )
    return images
