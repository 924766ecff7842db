"""Proof that a program is well formed: names, shapes, ranges, and accumulators that cannot overflow.

Both the compiler and the loader end here, so an executor may trust what it is given. What the records of operations
declare is checked here; what they cannot declare is in their ``check``.
"""

from __future__ import annotations

import numpy as np

from vitquant.numerics.limits import ADDEND_LIMIT, INT32_MAX
from vitquant.program.checks import KnownValues, expect_range, expect_shape, refuse
from vitquant.program.ops import Operation
from vitquant.program.ops.operation import Key, Operand, PerPlace, TensorField, length
from vitquant.program.program import IntegerProgram
from vitquant.program.values import Value

MAX_ELEMENTS = 2**28
"""Of any one value of one image, and of any constant: a program that asks for more is refused."""

MAX_NAME = 200
"""Characters of a name."""


def validate(program: IntegerProgram) -> None:
    """Check everything that an executor relies on.

    Raises:
        ProgramError: something does not fit; names the value.
        DeployabilityError: an accumulator could leave 32 bits.
    """
    check_value(program.image)
    image = program.image
    if len(image.shape) != 3 or (image.low, image.high) != (0, 255):
        refuse(image.name, "the image must be uint8 [channels, height, width]", got=f"{image.kind} {image.shape}")
    known = KnownValues()
    known[image.name] = image
    for operation in program.operations:
        name = operation.out.name
        if name in known:
            refuse(name, "two values have the same name")
        missing = [x for x in operation.inputs() if x not in known]
        if missing:
            refuse(name, "it reads a value that does not exist yet", got=ascii(missing[0]))
        check_value(operation.out)
        operation.check(check_declared(operation, known), known)
        known[name] = operation.out
    check_outputs(program, known)


def check_outputs(program: IntegerProgram, known: KnownValues) -> None:
    """At least one, with names of their own; each is tokens that an operation makes."""
    names = [output.name for output in program.outputs]
    if not names or len(set(names)) < len(names):
        refuse("outputs", "outputs need names of their own", got=ascii(names), expected="at least one, none twice")
    for output in program.outputs:
        check_name(output.name)
        if output.value not in known or output.value == program.image.name:
            refuse(f"output {output.name}", "not a value that an operation makes", got=ascii(output.value))
        shape = known[output.value].shape
        if len(shape) != 2 or (output.pooled and shape[0] != 1):
            wanted = "one row" if output.pooled else "tokens"
            refuse(f"output {output.name}", f"the output must have {wanted}", got=f"{output.value} {shape}")


def check_name(name: str) -> None:
    """A name that can be shown in one line."""
    if not 0 < len(name) <= MAX_NAME or not (name.isascii() and name.isprintable()):
        refuse("name", "not a name", got=ascii(name), expected=f"1 to {MAX_NAME} printable ASCII characters")


def check_value(value: Value) -> None:
    """Shape, range, and what the codes mean."""
    name, shape = value.name, value.shape
    check_name(name)
    if not 2 <= len(shape) <= 3 or any(n < 1 for n in shape) or int(np.prod(shape, dtype=np.float64)) > MAX_ELEMENTS:
        refuse(name, "not a shape that can be computed", got=shape, expected=f"at most {MAX_ELEMENTS} elements")
    if not -ADDEND_LIMIT <= value.low <= value.high <= ADDEND_LIMIT or value.low == value.high:
        refuse(name, "not a range of codes", got=f"{value.low} .. {value.high}")
    for field in ("scale", "zero_point"):
        array = getattr(value, field)
        if array.ndim != 1 or not len(array) or value.axis_length % len(array):
            refuse(
                name, f"{field} does not fit the shape", got=array.shape, expected=f"a divisor of {value.axis_length}"
            )
    if value.scale.dtype != np.float32 or not np.all(np.isfinite(value.scale) & (value.scale > 0)):
        refuse(name, "scales must be positive float32")
    if value.zero_point.dtype != np.int32:
        refuse(name, "zero points must be int32", got=value.zero_point.dtype)
    zero = value.zero_point.astype(np.int64)
    if len(zero) and not (value.low <= zero.min() and zero.max() <= value.high):
        refuse(name, "a zero point is not one of the codes", got=f"{zero.min()} .. {zero.max()}")
    if value.centred_limit > INT32_MAX:
        refuse(name, "codes less their zero point would leave 32 bits", got=f"{value.low} .. {value.high}")


def check_declared(op: Operation, known: KnownValues) -> dict[str, int]:
    """Everything that the fields of an operation declare; gives the lengths and keys that were found."""
    sizes = Sizes(op)
    for name, key in op.declared(Key).items():
        number = getattr(op, name)
        if number < key.low or (key.high is not None and number > key.high):
            most = f"{key.low} .. {key.high}" if key.high is not None else f"at least {key.low}"
            refuse(op.out.name, f"`{name}` is out of range", got=number, expected=most)
        sizes[name] = number
    operands = {name: known[getattr(op, name)] for name in op.declared(Operand)}
    if "x" in operands:
        sizes["L"] = operands["x"].high - operands["x"].low + 1
    for name, value in operands.items():
        axes = op.declared(Operand)[name].axes
        if len(value.shape) != len(axes.split()):
            refuse(op.out.name, f"{op.kind} reads [{axes}] as {name}", got=f"{value.name} {value.shape}")
    sizes.meet([(op.declared(Operand)[name].axes, value.shape) for name, value in operands.items()])
    for name, tensor in op.declared(TensorField).items():
        check_tensor(op, name, tensor, sizes)
    if len(op.out.shape) != len(op.makes.split()):
        refuse(op.out.name, f"{op.kind} makes [{op.makes}]", got=op.out.shape)
    expect_shape(op.out, op.kind, sizes.lengths(op.makes, op.out.shape))
    check_per_place(op)
    if op.keeps_codes:
        expect_range(op.out, operands["x"].low, operands["x"].high)
    return sizes


class Sizes(dict[str, int]):
    """The lengths of an operation as they become known."""

    def __init__(self, op: Operation) -> None:
        super().__init__()
        self.op = op

    def lengths(self, axes: str, found: tuple[int, ...]) -> tuple[int, ...]:
        """What a shape must be. A letter that is new stands for what was found; so does an expression with one."""
        wanted = []
        for axis, length_found in zip(axes.split(), found, strict=True):
            if axis.isidentifier():
                self.setdefault(axis, length_found)
            new = set(axis.replace("*", " ").replace("/", " ").replace("+", " ").split()) - set(self) - {"1"}
            must = length_found if new else length(axis, self)
            wanted.append(-1 if must is None else must)
        return tuple(wanted)

    def meet(self, operands: list[tuple[str, tuple[int, ...]]]) -> None:
        """The shapes of the operands, which must fit each other."""
        for _ in range(2):  # a letter may stand by itself in a later operand only
            for axes, shape in operands:
                if self.lengths(axes, shape) != shape:
                    shapes = ", ".join(str(shape) for _, shape in operands)
                    wanted = " and ".join(f"[{axes}]" for axes, _ in operands)
                    refuse(self.op.out.name, "its operands do not fit each other", got=shapes, expected=wanted)


def check_tensor(op: Operation, name: str, tensor: TensorField, sizes: Sizes) -> None:
    """A constant of a type and shape that it may have."""
    array = getattr(op, name)
    types, axes = tensor.types or (op.out.dtype.name,), tensor.axes.split()
    fits = array.ndim == len(axes) and array.size <= MAX_ELEMENTS and array.dtype.name in types and array.size
    lengths = ["n" if axis.isidentifier() and axis not in sizes else str(length(axis, sizes)) for axis in axes]
    if not fits or sizes.lengths(tensor.axes, array.shape) != array.shape:
        wanted = f"{' or '.join(types)} [{', '.join(lengths)}]"
        refuse(f"{op.out.name}/{name}", "wrong constant", got=f"{array.dtype} {list(array.shape)}", expected=wanted)


def check_per_place(op: Operation) -> None:
    """Multipliers and shifts: one element, or one for each place, and as many of the one as of the other."""
    declared, places = op.declared(PerPlace), op.out.axis_length
    for name, per_place in declared.items():
        array, where = getattr(op, name), f"{op.out.name}/{name}"
        if array.dtype.name != per_place.type or array.shape not in ((1,), (places,)):
            wanted = f"{per_place.type} [1 or {places}]"
            refuse(where, "wrong constant", got=f"{array.dtype} {list(array.shape)}", expected=wanted)
        if array.min() < per_place.low or array.max() > per_place.high:
            refuse(where, "out of range", expected=f"{per_place.low} .. {per_place.high}")
    for name in declared:
        if len(getattr(op, name)) != len(getattr(op, name.replace("multiplier", "shift"))):
            refuse(op.out.name, "multiplier and shift differ in length")
