"""The configuration of a whole model, before and after it is resolved against the model's points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitquant.config.document import Document, read_document
from vitquant.config.emit import dump, model_sections
from vitquant.config.explain import show
from vitquant.config.locate import find_config
from vitquant.config.quant_config import QuantConfig
from vitquant.config.repair import StepSettings, repair_section
from vitquant.config.resolve import Resolution, require_matching, resolve_point
from vitquant.config.source import Location, Table, read_file, read_text, tree
from vitquant.errors import ConfigError


class ResolvedConfig(Mapping[str, QuantConfig | None]):
    """Point name -> settings, in model order; ``None`` for a point that stays in floating point.

    ``repair`` are the settings of the repair steps, in order. Two objects are equal if all settings are equal.
    """

    def __init__(self, resolutions: Mapping[str, Resolution], repair: tuple[StepSettings, ...] = ()) -> None:
        self._resolutions, self.repair = dict(resolutions), repair

    def __eq__(self, other: object) -> bool:
        same_steps = not isinstance(other, ResolvedConfig) or self.repair == other.repair
        return same_steps and super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as that of every mapping

    def __getitem__(self, point: str) -> QuantConfig | None:
        return self._resolutions[point].config

    def __iter__(self) -> Iterator[str]:
        return iter(self._resolutions)

    def __len__(self) -> int:
        return len(self._resolutions)

    def source(self, point: str) -> str:
        """Which rules gave the settings, as ``defaults.weight:4, overrides.*.weight:31 (bits)``.

        The number is the line of the rule; each rule after the first is followed by the fields that it set.
        """
        return self._resolutions[point].source

    def to_yaml(self) -> str:
        """YAML that resolves to the same table: layer sections, overrides for the points that differ, repair steps."""
        return dump(model_sections(self) | repair_section(self.repair))


@dataclass(frozen=True)
class ModelConfig:
    """A configuration that has been read and validated, but not yet applied to a model.

    >>> config = ModelConfig.from_dict({"weight": {"bit_type": {"bits": 4}}})
    >>> config.resolve(["head.weight", "head.output"])["head.weight"].bit_type.bits
    4
    """

    document: Document

    @classmethod
    def from_yaml(cls, path: str | Path) -> ModelConfig:
        """Read a file of any of the three forms; shipped files are found by name.

        Raises:
            ConfigError: the file or something in it is wrong; the message gives the line and the key.
        """
        found = find_config(path)
        return cls(read_document(read_file(found, str(found))))

    @classmethod
    def from_text(cls, text: str, name: str) -> ModelConfig:
        """Read the text of a file; errors refer to it as ``name``."""
        return cls(read_document(read_text(text, name)))

    @classmethod
    def from_dict(cls, mapping: Mapping[str, object]) -> ModelConfig:
        """Read nested mappings as in a file, in which a :class:`QuantConfig` may replace a section.

        The result of :func:`load_config_from_yaml` is accepted. A :class:`QuantConfig` sets all of its fields.
        """
        root = tree(mapping, Location("configuration"))
        if not isinstance(root, Table):
            raise ConfigError("not a configuration", where="configuration", got=show(mapping), expected="a mapping")
        return cls(read_document(root))

    def open(self) -> OpenConfig:
        """Settings for a model under construction, which requests the points one by one."""
        return OpenConfig(self.document)

    def resolve(self, point_names: Sequence[str]) -> ResolvedConfig:
        """Determine the settings of every point of a model.

        Args:
            point_names: the model's points, in order, such as :func:`vitquant.config.point_names` gives.

        Raises:
            ConfigError: an override matches no point, two equally specific overrides conflict, or merged settings are
                incompatible.
        """
        require_matching(self.document, tuple(point_names))
        found = {name: resolve_point(self.document, name) for name in point_names}
        return ResolvedConfig(found, self.document.repair)


class OpenConfig(Mapping[str, QuantConfig | None]):
    """Point name -> settings, resolved on request; iteration yields the points requested so far."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._found: dict[str, Resolution] = {}

    def __getitem__(self, point: str) -> QuantConfig | None:
        if point not in self._found:
            self._found[point] = resolve_point(self._document, point)
        return self._found[point].config

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def close(self) -> ResolvedConfig:
        """The settings of all requested points.

        Raises:
            ConfigError: an override matches none of them.
        """
        require_matching(self._document, tuple(self._found))
        return ResolvedConfig(self._found, self._document.repair)
