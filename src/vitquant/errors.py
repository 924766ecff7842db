"""One exception root. Every message states where and what went wrong, what was found, what was expected, and a fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self


MAX_PART = 1000
"""Most characters of one part of a message, such as a name or a value from the user."""


def printable(text: object, most: int | None = None) -> str:
    """Any text as one line of printable characters.

    Control characters, terminal escapes, line ends and bytes of file names that are not UTF-8 are escaped as Python
    escapes them. With ``most``, the middle of a longer text is omitted.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    if most is None or len(shown) <= most:
        return shown
    return f"{shown[: most * 3 // 4]} ... ({len(shown)} characters) ... {shown[-most // 8 :]}"


class VitquantError(Exception):
    """Root of all errors that vitquant raises on purpose.

    ``str(error)`` reads ``WHERE: problem. Got X, expected Y. Fix: ...``; parts that are not given are omitted.
    The text is one line of printable characters, whatever names and values it quotes; the attributes keep them
    unchanged. ``exit_code`` is that of the command line: 1 limit not met, 2 user input, 3 data or numerics,
    4 environment.
    """

    exit_code = 3

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        got: object | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.problem, self.where, self.got, self.expected, self.fix = problem, where, got, expected, fix
        super().__init__(self._text())

    def located(self, where: str) -> Self:
        """A copy of the error with another ``where``; class, other fields, cause and notes are kept."""
        error = _rebuilt(type(self), {**self.__dict__, "where": where})
        error.__cause__, error.__suppress_context__ = self.__cause__, self.__suppress_context__
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), dict(self.__dict__))

    def _text(self) -> str:
        where, problem, got, expected, fix = (
            None if part is None else printable(part, MAX_PART)
            for part in (self.where, self.problem, self.got, self.expected, self.fix)
        )
        text = f"{where}: {problem}." if where else f"{problem}."
        facts = [f"got {got}"] if got is not None else []
        facts += [f"expected {expected}"] if expected is not None else []
        if facts:
            joined = ", ".join(facts)
            text += f" {joined[0].upper()}{joined[1:]}."
        return f"{text} Fix: {fix}." if fix else text


E = TypeVar("E", bound=VitquantError)


def _rebuilt(kind: type[E], fields: dict[str, Any]) -> E:
    """An error from its fields, whatever its constructor takes."""
    error = kind.__new__(kind)
    error.__dict__.update(fields)
    error.args = (error._text(),)
    return error


class ConfigError(VitquantError):
    """A configuration file, key, value or pattern is wrong."""

    exit_code = 2


class ModelError(VitquantError):
    """A model cannot be used: an unknown name, an unsupported layer, a checkpoint that does not match."""

    exit_code = 2


class ArtifactError(VitquantError):
    """A saved model or a finished run is damaged, in another format, or of a version that this release cannot read."""

    exit_code = 2


class DataError(VitquantError):
    """Images are missing, unreadable, or do not have the shape that the model expects."""


class NumericsError(VitquantError):
    """NaN or Inf where a finite number is required."""


class DeployabilityError(VitquantError):
    """Settings that can be simulated but not executed in integer arithmetic."""

    exit_code = 2


class ProgramError(VitquantError):
    """An integer program is damaged, or an executor was given invalid input."""

    exit_code = 2


class AgreementError(VitquantError):
    """Two executions that must give the same result differ."""


class LifecycleError(VitquantError):
    """A step was called before a step that it depends on, such as quantizing a point that was never observed."""


class MissingDependencyError(VitquantError):
    """A required optional package is not installed."""

    exit_code = 4


class DeviceError(VitquantError):
    """A valid PyTorch device that cannot be used on this machine."""

    exit_code = 4


class OutputError(VitquantError, OSError):
    """Results cannot be written: no permission, no space, no folder, a failing disk."""

    exit_code = 4


class OutOfMemoryError(VitquantError):
    """Memory ran out. The message gives the layer, the size of the request and the batch size."""

    exit_code = 4


class QualityError(VitquantError):
    """A model is below a limit set by the user."""

    exit_code = 1
