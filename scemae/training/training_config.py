"""What the configurations of all trainings have: frozen values; each field's help is that of its option."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Self

from scemae.errors import OptionError


def option(default: Any, help: str) -> Any:
    """A field with a default and the help text of its command-line option."""
    return field(default=default, metadata={"help": help})


def field_help(kind: type) -> dict[str, str]:
    """The help text of each field of a dataclass; a field that only gets another default keeps its parent's."""
    return {
        name: described.metadata["help"]
        for parent in reversed(kind.__mro__)
        for name, described in getattr(parent, "__dataclass_fields__", {}).items()
        if "help" in described.metadata
    }


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Frozen values that can be written down, read again and compared."""

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; raises TypeError for fields that this class does not have."""
        return cls(**{name: _as_tuple(value) for name, value in json.loads(text).items()})

    def difference(self, other: TrainingConfig) -> list[str]:
        """A line for each field that differs: its name, this value, the other value."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [
            f"{name}: {mine.get(name)!r} -> {theirs.get(name)!r}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]

    def _check(self, name: str, wanted: str, holds: bool) -> None:
        if not holds:
            raise OptionError(f"{name} is {getattr(self, name)}; it must be {wanted}.")

    def _check_at_least_1(self, *names: str) -> None:
        for name in names:
            self._check(name, "at least 1", getattr(self, name) >= 1)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(part) for part in value) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class MotionConfig(TrainingConfig):
    """Known random motions of the training faces (augmentation): standard deviations at amplitude 1."""

    rotation: float = option(0.3, "Standard deviation of the random rotation of the faces, rad, at amplitude 1.")
    log_scale: float = option(0.15, "Standard deviation of the logarithm of their scale, at amplitude 1.")
    shear: float = option(0.06, "Standard deviation of their shear and of their logarithmic aspect, at amplitude 1.")
    shift: float = option(0.13, "Standard deviation of their shift, in half-sides of the view, at amplitude 1.")
    brightness: float = option(0.08, "Standard deviation of what is added to pixels of 0..1, at any amplitude.")
    log_contrast: float = option(0.15, "Standard deviation of the logarithm of the contrast, at any amplitude.")
