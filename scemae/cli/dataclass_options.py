"""Command-line options made from the fields of a dataclass: names and types from there, help from their comments."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints


def add_fields(parser: argparse.ArgumentParser, kind: type, presets: Mapping[str, Any]) -> None:
    """An option `--field-name` for each field of a dataclass; its help names the value in each preset.

    Without presets the values are those of a model.
    """
    group = parser.add_argument_group((inspect.getdoc(kind) or "").rstrip("."))
    wanted, comments = get_type_hints(kind), field_comments(kind)
    for field in dataclasses.fields(kind):
        values = {name: _shown(getattr(preset, field.name)) for name, preset in presets.items()}
        different = ", ".join(f"{name}: {value}" for name, value in values.items())
        default = different if len(set(values.values())) > 1 else next(iter(values.values()), "that of the model")
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=f"{comments.get(field.name, '')} [{default}]".strip().replace("%", "%%"),
            **_reading(wanted[field.name]),
        )


def given_fields(options: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of a dataclass that the command line gives."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in vars(options).items() if name in names}


def field_comments(kind: type) -> dict[str, str]:
    """The comment behind each field, in the source of the class and of those it inherits from."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        try:
            source = inspect.getsource(parent)
        except OSError:  # an installation without sources
            continue
        found |= dict(re.findall(r"^    (\w+): [^#\n]*# (.*)$", source, re.MULTILINE))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{number:.4g}" for number in value)
    return "none" if value is None else str(value)


def _reading(wanted: Any) -> dict[str, Any]:
    """What `add_argument` has to know to read a value of a type."""
    choices = get_args(wanted)
    if wanted in (bool, bool | None):
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(wanted) is Literal:
        return {"choices": choices}
    if get_origin(wanted) is tuple:
        count = None if choices[-1] is Ellipsis else len(choices)
        return {"action": _Numbers, "nargs": "+", "metavar": "NUMBER", "count": count, "read": choices[0]}
    if isinstance(wanted, types.UnionType):
        return {"type": _or_none(choices[0]), "metavar": f"{choices[0].__name__.upper()}|none"}
    return {"type": wanted, "metavar": wanted.__name__.upper()}


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def read_or_none(text: str) -> Any:
        return None if text == "none" else read(text)

    return read_or_none


class _Numbers(argparse.Action):
    """Several numbers, as one text with commas or as several; so many, or with None any number of them."""

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
