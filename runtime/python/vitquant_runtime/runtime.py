"""A loaded program, and what becomes of its input before the engine sees it."""

from __future__ import annotations

import json
import operator
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitquant_runtime import _native

MAX_THREADS = 256


@dataclass(frozen=True, eq=False)
class Output:
    """An output of a program.

    Attributes:
        shape: per image, ``(C,)`` of a pooled output, else ``(N, C)``.
        scale: float32 ``[1 or C]``: the integers times it are real.
    """

    shape: tuple[int, ...]
    scale: NDArray[np.float32]


class Runtime:
    """An integer program, ready to run; any number of threads may call it at once.

    In the main thread signals are handled during a call too: Ctrl-C, or whatever exception a handler raises, ends it
    within a fraction of a second, and the object stays as it was. A process forked from this one may go on with it.

    Attributes:
        image_shape: ``(channels, height, width)`` of an image.
        output_names: of all outputs that the program has.
        outputs: those that are computed, by name, in the order in which they were chosen.
        scale: that of the first of them, float32 ``[1 or K]``: logits times it are real.
        threads: how many a call uses; one of several calls at the same time gets them, the others run on their own.
        isa: the instruction set in use.
        metadata: what the program was made from, and how a picture becomes an image.
    """

    def __init__(self, engine: _native.Engine) -> None:
        self._engine = engine
        self.image_shape: tuple[int, ...] = tuple(engine.image_shape)
        self.output_names: tuple[str, ...] = tuple(engine.output_names)
        self.outputs: dict[str, Output] = {
            name: Output(tuple(shape), np.array(scale, dtype=np.float32)) for name, shape, scale in engine.outputs
        }
        self.scale: NDArray[np.float32] = next(iter(self.outputs.values())).scale
        self.threads: int = engine.threads
        self.isa: str = engine.isa
        self.metadata: dict[str, Any] = json.loads(engine.metadata)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Images, uint8 ``[B, C, h, w]``, to the first output: logits, int32 ``[B, K]``, or tokens ``[B, N, C]``.

        Images that are not contiguous are copied.

        Raises:
            ValueError: the images are of another type or shape.
            MemoryError: there is not enough memory for these images.
            OSError: the system does not start the threads.
        """
        return self._run(images, list(self.outputs)[:1])[0]

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.int32]]:
        """Images, uint8 ``[B, C, h, w]``, to all chosen outputs by name, int32 ``[B, *shape]``.

        Raises:
            ValueError, MemoryError, OSError: as a call.
        """
        return dict(zip(self.outputs, self._run(images, list(self.outputs)), strict=True))

    def _run(self, images: NDArray[np.uint8], names: list[str]) -> list[NDArray[np.int32]]:
        """The outputs of these names, which are the first of those that were chosen."""
        pixels = self._checked(images)
        results = [np.empty((len(pixels), *self.outputs[name].shape), dtype=np.int32) for name in names]
        self._engine.run(pixels, results, in_main_thread())
        return results

    def profile(self, images: NDArray[np.uint8]) -> list[tuple[str, float]]:
        """What is executed, in order, such as ``linear+add``, and the seconds that it took, on one thread."""
        return self._engine.profile(self._checked(images), in_main_thread())

    def _checked(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or images.ndim != 4:
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"images: not what the program takes. Got {images.dtype} {list(images.shape)}, "
                f"expected uint8 [B, {wanted}]. Fix: give the pixels as they are, resized and cropped to this size."
            )
        return np.ascontiguousarray(images)

    def __repr__(self) -> str:
        return f"<vitquant_runtime.Runtime {self._name()}, {self.isa}, threads={self.threads}>"

    def _name(self) -> str:
        """The model's, as far as it fits in a line."""
        name = self.metadata.get("model")
        return clipped(name) if isinstance(name, str) else "integer program"


def load(
    path: str | bytes | os.PathLike[str], threads: int | None = None, outputs: str | Iterable[str] | None = None
) -> Runtime:
    """Load a program: its folder, or the path of its ``program.json``.

    Args:
        path: where it lies.
        threads: how many a call may use, by default one for each processor that this process may run on.
        outputs: the name or names of those that are computed, by default the program's first alone.

    Raises:
        ValueError: a file is missing, damaged, of another format or of a newer version; the program in it is not well
            formed, or has no output of such a name; or ``VITQUANT_ISA`` names what this machine does not have.
        MemoryError: there is not enough memory for the program.
    """
    return Runtime(
        _native.load(os.fsencode(path), names_of_outputs(outputs), number_of_threads(threads), in_main_thread())
    )


def loads(
    manifest: bytes, tensors: bytes, threads: int | None = None, outputs: str | Iterable[str] | None = None
) -> Runtime:
    """Load a program from memory, with the same checks as from files.

    Args:
        manifest: what ``program.json`` would hold.
        tensors: what ``program.safetensors`` would hold.
        threads: as for :func:`load`.
        outputs: as for :func:`load`.

    Raises:
        ValueError, MemoryError: as :func:`load`.
    """
    return Runtime(
        _native.loads(manifest, tensors, names_of_outputs(outputs), number_of_threads(threads), in_main_thread())
    )


def explain(path: str | os.PathLike[str], outputs: str | Iterable[str] | None = None) -> str:
    """How a program is executed on this machine, as text: steps, phases, memory, and what is left out.

    Args:
        path: where it lies.
        outputs: as for :func:`load`.

    Raises:
        ValueError, MemoryError: as :func:`load`.
    """
    return _native.explain(os.fsencode(path), names_of_outputs(outputs), in_main_thread())


def names_of_outputs(outputs: str | Iterable[str] | None) -> list[str]:
    """A list of names; an empty one, which stands for the first output, if None is given."""
    if outputs is None:
        return []
    names = [outputs] if isinstance(outputs, str) else list(outputs)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"outputs: not names of outputs. Got {clipped(repr(outputs))}, "
            f"expected a name or several, or None for the program's first output."
        )
    # Each once; half surrogates fit no string of C++.
    return [name.encode(errors="backslashreplace").decode() for name in dict.fromkeys(names)]


def number_of_threads(threads: object) -> int:
    """A whole number of any type, within bounds; 0, which stands for all processors, if None is given."""
    if threads is None:
        return 0
    try:
        number = None if isinstance(threads, bool | np.bool_) else operator.index(threads)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not 1 <= number <= MAX_THREADS:
        got = clipped(repr(threads)) if number is None or abs(number) < 10**40 else "a huge number"
        raise ValueError(
            f"threads: not a number of threads. Got {got}, expected 1 to {MAX_THREADS}, or None for all processors."
        )
    return number


def in_main_thread() -> bool:
    """Whether this is the thread in which Python handles signals."""
    return threading.get_ident() == threading.main_thread().ident


def clipped(text: str, length: int = 80) -> str:
    """One line of ASCII."""
    shown = ascii(text)[1:-1] if not (text.isascii() and text.isprintable()) else text
    return shown if len(shown) <= length else shown[:length] + "..."
