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
        """As in argparse."""
        self._given: set[str] = set()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """As in argparse, control characters escaped: words of the command line may hold any."""
        super().error(escape_controls(message))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """What argparse calls once for each time that an option is given."""
        if action.option_strings and not isinstance(action, REPEATABLE):
            if action.dest in self._given:
                raise argparse.ArgumentError(action, "is given twice; wanted it once")
            self._given.add(action.dest)
        return super()._get_values(action, arg_strings)
