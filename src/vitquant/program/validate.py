"""Proof that a program is well formed: names, shapes, ranges, and accumulators that cannot overflow.

Both the compiler and the loader end here, so an executor may trust what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from vitquant.errors import DeployabilityError, ProgramError
from vitquant.numerics.limits import (
    ADDEND_LIMIT,
    EXPONENTIAL_BITS,
    INT32_MAX,
    LOG2_ROW_LIMIT,
    MAX_SHIFT,
    MULTIPLIER_BITS,
)
from vitquant.program import ops
from vitquant.program.program import IntegerProgram
from vitquant.program.values import Array, Value

MAX_ELEMENTS = 2**28
"""Of any one value of one image, and of any constant: a program that asks for more is refused."""

MAX_NAME = 200
"""Characters of a name."""

OPERAND_LIMIT = 2**23
"""Numbers that are multiplied with each other lie in ``[-2^23, 2^23)``, so that three bytes hold them."""

EXPONENTIAL_MAX = 2**EXPONENTIAL_BITS - 1
MULTIPLIERS = (2 ** (MULTIPLIER_BITS - 1), 2**MULTIPLIER_BITS - 1)


class Known(dict[str, Value]):
    """The values so far, and more about some: what the codes of a row of softmax sum to at most, where that is less
    than all at once, and which have rows that never sum to 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.row_limits: dict[str, int] = {}
        self.rows_above_zero: set[str] = set()


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
    known = Known()
    known[image.name] = image
    for operation in program.operations:
        name = operation.out.name
        if name in known:
            refuse(name, "two values have the same name")
        missing = [x for x in operation.inputs() if x not in known]
        if missing:
            refuse(name, "it reads a value that does not exist yet", got=ascii(missing[0]))
        check_value(operation.out)
        CHECKS[type(operation)](operation, known)
        known[name] = operation.out
    if program.output not in known or program.output == image.name:
        refuse("output", "not a value that an operation makes", got=ascii(program.output))
    if len(known[program.output].shape) != 2 or known[program.output].shape[0] != 1:
        refuse(program.output, "the output must have one row", got=known[program.output].shape)


def refuse(name: str, problem: str, *, got: object | None = None, expected: str | None = None) -> NoReturn:
    """Raise what is wrong with a value; of what was found, as much as fits a line or two."""
    raise ProgramError(problem, where=name, got=None if got is None else str(got)[:200], expected=expected)


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


def check_array(op: ops.Operation, field: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> Array:
    """A constant of the type and shape it must have; ``None`` stands for any length above 0."""
    array: Array = getattr(op, field)
    fits = len(array.shape) == len(shape) and all(
        n > 0 and want in (None, n) for n, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype.name not in dtypes or not fits or array.size > MAX_ELEMENTS:
        wanted = f"{' or '.join(dtypes)} [{', '.join('n' if n is None else str(n) for n in shape)}]"
        refuse(f"{op.out.name}/{field}", "wrong constant", got=f"{array.dtype} {list(array.shape)}", expected=wanted)
    return array


def check_rescale(op: ops.Operation, length: int, suffix: str = "") -> None:
    """``multiplier`` and ``shift``: one element, or one for each place."""
    for field, dtype, (low, high) in (("multiplier", "int32", MULTIPLIERS), ("shift", "uint8", (0, MAX_SHIFT))):
        given: Array = getattr(op, field + suffix)
        array = check_array(op, field + suffix, (dtype,), (1 if given.shape == (1,) else length,))
        if array.min() < low or array.max() > high:
            refuse(f"{op.out.name}/{field + suffix}", "out of range", expected=f"{low} .. {high}")
    if len(getattr(op, "multiplier" + suffix)) != len(getattr(op, "shift" + suffix)):
        refuse(op.out.name, "multiplier and shift differ in length")


def expect_shape(op: ops.Operation, *shape: int) -> None:
    """The shape that the operation's value must have."""
    if op.out.shape != shape:
        refuse(op.out.name, f"not the shape that {op.kind} makes", got=op.out.shape, expected=str(shape))


def expect_range(op: ops.Operation, low: int, high: int) -> None:
    """The range that the operation's value must contain."""
    if op.out.low > low or op.out.high < high:
        refuse(op.out.name, "the range does not hold all codes", got=f"{op.out.low} .. {op.out.high}")


def tokens(op: ops.Operation, value: Value) -> tuple[int, int]:
    """Shape of a value that must be tokens ``[N, C]``."""
    if len(value.shape) != 2:
        refuse(op.out.name, f"{op.kind} reads tokens", got=f"{value.name} {value.shape}")
    return value.shape[0], value.shape[1]


def require_int32(name: str, limit: int) -> None:
    """Refuse accumulators that could leave 32 bits.

    Raises:
        DeployabilityError: with the value that they could reach.
    """
    if limit > INT32_MAX:
        raise DeployabilityError(
            "an accumulator could overflow",
            where=name,
            got=f"a sum of up to {limit:.4g}",
            expected=f"at most {INT32_MAX}, 32 bits",
            fix="give the weights or their input fewer bits",
        )


def check_operand(op: ops.Operation, low: int, high: int) -> None:
    """What is multiplied fits three bytes."""
    if low < -OPERAND_LIMIT or high >= OPERAND_LIMIT:
        refuse(op.out.name, "it multiplies numbers of more than 24 bits", got=f"{low} .. {high}")


def accumulator_limit(weight: Array, bias: Array, x: Value) -> Array:
    """Largest magnitude that ``bias + x W^T`` and its products can reach, int64 ``[out]``; a bound, from the weights.

    Every partial sum, in whatever order, stays below it too. What would leave 64 bits itself is told as ``2^62``.
    """
    largest = max(abs(x.low), abs(x.high))
    weights = np.abs(weight.astype(np.int64)).sum(1).astype(np.float64)
    total: Array = weights * largest + np.abs(bias.astype(np.float64))  # exact below 2^53
    return np.minimum(total, 2.0**62).astype(np.int64)


def _check_patches(op: ops.Patches, values: Known) -> None:
    image = values[op.x]
    if len(image.shape) != 3 or op.height < 1 or op.width < 1:
        refuse(op.out.name, "patches are cut from an image", got=image.shape)
    c, h, w = image.shape
    if h % op.height or w % op.width:
        refuse(op.out.name, "the patches do not tile the image", got=f"{op.height}x{op.width} of {h}x{w}")
    expect_shape(op, (h // op.height) * (w // op.width), c * op.height * op.width)
    expect_range(op, image.low, image.high)


def _check_linear(op: ops.Linear, values: Known) -> None:
    x = values[op.x]
    n, c = tokens(op, x)
    weight = check_array(op, "weight", ("int8", "int16", "int32"), (None, c))
    bias = check_array(op, "bias", ("int32",), (len(weight),))
    expect_shape(op, n, len(weight))
    check_rescale(op, len(weight))
    check_operand(op, x.low, x.high)
    check_operand(op, int(weight.min()), int(weight.max()))
    require_int32(op.out.name, int(accumulator_limit(weight, bias, x).max()))


def _check_embed(op: ops.Embed, values: Known) -> None:
    n, c = tokens(op, values[op.x])
    if op.prefix < 0:
        refuse(op.out.name, "a negative number of prefix tokens", got=op.prefix)
    expect_shape(op, n + op.prefix, c)
    table = check_array(op, "table", ("int8", "uint8", "int16", "int32"), (n + op.prefix, c))
    if int(table.min()) < -ADDEND_LIMIT or int(table.max()) > ADDEND_LIMIT:
        refuse(f"{op.out.name}/table", "out of range")
    check_rescale(op, c)


def _check_layernorm(op: ops.LayerNorm, values: Known) -> None:
    x = values[op.x]
    n, c = tokens(op, x)
    expect_shape(op, n, c)
    gain = check_array(op, "gain", ("int64",), (c,))
    offset = check_array(op, "offset", ("int64",), (c,))
    shift = check_array(op, "shift", ("uint8",), (c,))
    epsilon = int(check_array(op, "epsilon", ("int64",), (1,))[0])
    spread = x.high - x.low
    if spread >= 2**16 or not 0 <= op.headroom <= 60 or op.headroom % 2 or epsilon < 0:
        refuse(op.out.name, "not an integer LayerNorm", got=f"{x.kind}, headroom {op.headroom}, epsilon {epsilon}")
    power = (c**3 * (spread // 2 + 1) ** 2 << op.headroom) + epsilon
    if power >= 2**62 or c > 2**12:
        refuse(op.out.name, "integer LayerNorm would overflow", got=f"{c} channels, headroom {op.headroom}")
    inside = (gain.min() >= -(2**36)) and gain.max() <= 2**36 and offset.min() >= -(2**60) and offset.max() <= 2**60
    if not inside or shift.min() < 1 or shift.max() > 42:
        refuse(op.out.name, "gain, offset or shift out of range")


def _check_requantize(op: ops.Requantize, values: Known) -> None:
    n, c = tokens(op, values[op.x])
    _, width = tokens(op, op.out)
    expect_shape(op, n, width)
    if op.start < 0 or op.start + width > c:
        refuse(
            op.out.name, "there are not so many channels", got=f"{op.start} .. {op.start + width}", expected=f"of {c}"
        )
    check_rescale(op, width)


def _check_scores(op: ops.Scores, values: Known) -> None:
    q, k = values[op.q], values[op.k]
    n, c = tokens(op, q)
    heads = op.out.shape[0]
    if k.shape != q.shape or c % heads:
        refuse(op.out.name, "Q and K do not fit the heads", got=f"{q.shape}, {k.shape}, {heads} heads")
    expect_shape(op, heads, n, n)
    check_rescale(op, heads)
    check_operand(op, 0, max(q.centred_limit, k.centred_limit))
    require_int32(op.out.name, c // heads * q.centred_limit * k.centred_limit)


def _check_exponentials(op: Any, values: Known, largest: int) -> None:
    x: Value = values[op.x]
    if len(x.shape) != 3:
        refuse(op.out.name, "softmax reads scores", got=x.shape)
    expect_shape(op, *x.shape)
    table = check_array(op, "table", ("int32",), (None, x.high - x.low + 1))
    if x.shape[0] % len(table):
        refuse(f"{op.out.name}/table", "the heads cannot share so many tables", got=len(table))
    if table.min() < 0 or table.max() > largest or table[:, 0].min() < 1:
        refuse(f"{op.out.name}/table", "out of range", expected=f"0 .. {largest}, and above 0 at distance 0")
    if x.shape[-1] * largest > INT32_MAX:
        refuse(op.out.name, "the row's sum would overflow", got=f"{x.shape[-1]} tokens")


def _check_row(op: ops.SoftmaxRow, values: Known) -> None:
    _check_exponentials(op, values, min(op.out.high, 2**16))
    expect_range(op, 0, int(op.table.max()))
    values.rows_above_zero.add(op.out.name)  # the maximum of a row is looked up at distance 0


def _check_uniform(op: ops.SoftmaxUniform, values: Known) -> None:
    _check_exponentials(op, values, EXPONENTIAL_MAX)
    check_rescale(op, op.out.shape[0])


def _check_log2(op: ops.SoftmaxLog2, values: Known) -> None:
    _check_exponentials(op, values, EXPONENTIAL_MAX)
    expect_range(op, 0, 2**15)
    if not 0 <= op.last <= 15:
        refuse(op.out.name, "the last exponent is out of range", got=op.last)
    if not op.out.is_plain:
        refuse(op.out.name, "powers of two have no zero point")
    values.row_limits[op.out.name] = LOG2_ROW_LIMIT


def _check_mix(op: ops.Mix, values: Known) -> None:
    p, v = values[op.p], values[op.v]
    n, c = tokens(op, v)
    if len(p.shape) != 3 or p.shape[1:] != (n, n) or c % p.shape[0]:
        refuse(op.out.name, "weights and V do not fit", got=f"{p.shape}, {v.shape}")
    expect_shape(op, n, c)
    check_rescale(op, c)
    check_operand(op, 0, max(p.centred_limit, v.centred_limit))
    require_int32(op.out.name, values.row_limits.get(p.name, n * p.centred_limit) * v.centred_limit)
    if op.normalize:
        width = v.centred_limit.bit_length()
        if not (0 <= op.fraction_bits <= 30 - width and op.fraction_bits <= op.reciprocal_bits <= 52 - width):
            refuse(op.out.name, "fraction out of range", got=f"{op.reciprocal_bits}, {op.fraction_bits}")
        if p.name not in values.rows_above_zero or not p.is_plain:
            refuse(op.out.name, "only what softmax_row makes can be normalised", got=p.name)
    elif op.fraction_bits or op.reciprocal_bits:
        refuse(op.out.name, "without normalising there is no fraction")


def _check_add(op: ops.Add, values: Known) -> None:
    a, b = values[op.a], values[op.b]
    n, c = tokens(op, a)
    if b.shape != a.shape:
        refuse(op.out.name, "the addends differ in shape", got=f"{a.shape}, {b.shape}")
    expect_shape(op, n, c)
    check_rescale(op, c, "_a")
    check_rescale(op, c, "_b")


def _check_lookup(op: ops.Lookup, values: Known) -> None:
    x = values[op.x]
    n, c = tokens(op, x)
    expect_shape(op, n, c)
    tables = check_array(op, "tables", (op.out.dtype.name,), (None, x.high - x.low + 1))
    table_of = check_array(op, "table_of", ("int32",), (c,))
    if tables.min() < op.out.low or tables.max() > op.out.high:
        refuse(f"{op.out.name}/tables", "out of range", expected=f"{op.out.low} .. {op.out.high}")
    if table_of.min() < 0 or table_of.max() >= len(tables):
        refuse(f"{op.out.name}/table_of", "there are not so many tables", expected=f"0 .. {len(tables) - 1}")


def _check_take(op: ops.Take, values: Known) -> None:
    x = values[op.x]
    n, c = tokens(op, x)
    if not 0 <= op.token < n:
        refuse(op.out.name, "there is no such token", got=op.token, expected=f"0 .. {n - 1}")
    expect_shape(op, 1, c)
    expect_range(op, x.low, x.high)


def _check_pool(op: ops.Pool, values: Known) -> None:
    x = values[op.x]
    n, c = tokens(op, x)
    if not 0 <= op.first < n:
        refuse(op.out.name, "there is no such token", got=op.first, expected=f"0 .. {n - 1}")
    expect_shape(op, 1, c)
    expect_range(op, x.low, x.high)
    require_int32(op.out.name, n * max(abs(x.low), abs(x.high)))


CHECKS: Mapping[type[ops.Operation], Callable[[Any, Known], None]] = {
    ops.Patches: _check_patches,
    ops.Linear: _check_linear,
    ops.Embed: _check_embed,
    ops.LayerNorm: _check_layernorm,
    ops.Requantize: _check_requantize,
    ops.Scores: _check_scores,
    ops.SoftmaxRow: _check_row,
    ops.SoftmaxUniform: _check_uniform,
    ops.SoftmaxLog2: _check_log2,
    ops.Mix: _check_mix,
    ops.Add: _check_add,
    ops.Lookup: _check_lookup,
    ops.Take: _check_take,
    ops.Pool: _check_pool,
}
