"""One exception root. Every message says where, what, what was found, what was expected and how to mend it."""

from __future__ import annotations

MAX_PART = 1000
"""Characters of one part of a message, such as a name or a value that somebody gave."""


def printable(text: object, most: int | None = None) -> str:
    """Text from anywhere on one line of printable characters.

    Control characters, terminal escapes, line ends and bytes of file names that are not UTF-8 are escaped as Python
    escapes them. With ``most``, the middle of a longer text is left out.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    if most is None or len(shown) <= most:
        return shown
    return f"{shown[: most * 3 // 4]} ... ({len(shown)} characters) ... {shown[-most // 8 :]}"


class VitquantError(Exception):
    """Root of all errors that vitquant raises on purpose.

    ``str(error)`` reads ``WHERE: problem. Got X, expected Y. Fix: ...``; parts that were not given are left out.
    The text is one line of printable characters, whatever names and values it quotes; the attributes hold them as they
    are. ``exit_code`` is the command line's: 1 a limit not met, 2 user input, 3 data or numerics, 4 environment.
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

    def located(self, where: str) -> VitquantError:
        """The same error, saying where it came from."""
        kind = type(self)
        return kind(self.problem, where=where, got=self.got, expected=self.expected, fix=self.fix)

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


class ConfigError(VitquantError):
    """A configuration file, key, value or pattern is wrong."""

    exit_code = 2


class ModelError(VitquantError):
    """A model cannot be taken: an unknown name, an unsupported layer, a checkpoint that does not fit."""

    exit_code = 2


class ArtifactError(VitquantError):
    """A saved model is damaged, foreign or of a version this release does not read."""

    exit_code = 2


class DataError(VitquantError):
    """Images are missing, unreadable or not of the shape the model expects."""


class NumericsError(VitquantError):
    """NaN or Inf where a number was needed."""


class DeployabilityError(VitquantError):
    """Settings that can be simulated, but not executed by integers."""

    exit_code = 2


class ProgramError(VitquantError):
    """An integer program is damaged, or an executor was given what it does not take."""

    exit_code = 2


class AgreementError(VitquantError):
    """Two executions that must give the same do not."""


class LifecycleError(VitquantError):
    """A step was asked for before the one it stands on, such as quantizing a point that was never observed."""


class MissingDependencyError(VitquantError):
    """An optional package is needed for this and is not installed."""

    exit_code = 4


class DeviceError(VitquantError):
    """A device that PyTorch knows, and that cannot compute here."""

    exit_code = 4


class WriteError(VitquantError, OSError):
    """A file or a folder cannot be written; an ``OSError`` too, as callers expect of writing."""

    exit_code = 4


class QualityError(VitquantError):
    """A model is below the limit that was set for it."""

    exit_code = 1
