"""Command-line options made from the fields of a dataclass: names, types and help texts come from there."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from scemae.training.training_config import field_help


def add_fields(
    parser: argparse.ArgumentParser,
    kind: type,
    title: str,
    defaults: Mapping[str, Any],
    sources: Mapping[str, str] | None = None,
) -> None:
    """Add an option `--field-name` for each field of a dataclass, in a group of that title.

    `defaults`: instances of it by the name of their preset, shown in the help; none: the model's values are kept.
    `sources`: where the value of the preset "paper" comes from, by field.
    """
    group = parser.add_argument_group(title)
    types_, helps = get_type_hints(kind), field_help(kind)
    for field in dataclasses.fields(kind):
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=f"{helps[field.name]} [{_format_default(field.name, defaults, sources or {})}]".replace("%", "%%"),
            **_argument_settings(types_[field.name]),
        )


def given_fields(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of a dataclass that the command line gives."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in vars(args).items() if name in names}


def _format_default(name: str, defaults: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """The value that a field has in each preset, or the one it has in all; where that of "paper" comes from."""
    source = f" ({sources[name]})" if name in sources else ""
    presets: dict[str, list[str]] = {}
    for preset, config in defaults.items():
        names = presets.setdefault(_format_value(getattr(config, name)), [])
        if preset.partition(" with ")[0] not in names:  # "paper with DeiT-S" only where it is not as "paper"
            names.append(preset)
    if len(presets) > 1:
        return "; ".join(
            f"{', '.join(names)}: {value}{source if names[0].startswith('paper') else ''}"
            for value, names in presets.items()
        )
    return next(iter(presets), "that of the model") + source


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{number:.4g}" for number in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None or value == "" else str(value)


def _argument_settings(type_: Any) -> dict[str, Any]:
    """What `add_argument` needs to read a value of a type."""
    choices = get_args(type_)
    if type_ in (bool, bool | None):
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(type_) is Literal:
        return {"choices": choices}
    if get_origin(type_) is tuple:
        count = None if choices[-1] is Ellipsis else len(choices)
        return {"action": _Numbers, "nargs": "+", "metavar": "NUMBER", "count": count, "read": choices[0]}
    if isinstance(type_, types.UnionType):
        return {"type": _or_none(choices[0]), "metavar": f"{choices[0].__name__.upper()}|none"}
    return {"type": type_, "metavar": type_.__name__.upper()}


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def read_or_none(text: str) -> Any:
        return None if text == "none" else read(text)

    return read_or_none


class _Numbers(argparse.Action):
    """Numbers, as one text with commas or as several words; `count` of them, or with None any number."""

    def __init__(self, *, count: int | None, read: Callable[[str], Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.count, self.read = count, read

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        try:
            numbers = tuple(self.read(number) for value in values for number in value.replace(",", " ").split())
        except ValueError:
            numbers = ()
        if not numbers or self.count not in (None, len(numbers)):
            parser.error(f"argument {option}: wanted {self.count or 'some'} numbers, got {' '.join(values)!r}")
        setattr(namespace, self.dest, numbers)
