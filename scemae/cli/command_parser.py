"""The parser of the command line: an option that is given twice adds up, or is an error."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from scemae.errors import escape_controls

REPEATABLE = (argparse._AppendAction, argparse._ExtendAction, argparse._StoreTrueAction)


class CommandParser(argparse.ArgumentParser):
    """Refuses an option that is given twice unless its values add up: argparse keeps the last without a word.

    The parsers of sub-commands are of the same class.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; the parser of a command refuses unknown words itself, and so names the command."""
        self._given: set[str] = set()
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """One line, without the usage. Control characters are escaped: words of the command line may hold any."""
        self.exit(2, f"{self.prog}: {escape_controls(message)}; see {self.prog} --help\n")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """What argparse calls once for each time that an option is given."""
        if action.option_strings and not isinstance(action, REPEATABLE):
            if action.dest in self._given:
                raise argparse.ArgumentError(action, "is given twice; wanted it once")
            self._given.add(action.dest)
        return super()._get_values(action, arg_strings)
