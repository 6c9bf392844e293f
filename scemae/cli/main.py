"""The command `scemae`. Results go to standard output (--json for machines), problems to standard error.

Exit codes: 0 done, 2 bad usage or bad input (one clear line), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import scemae
from scemae.cli import export_commands, hub_commands, inference_commands
from scemae.cli.command_parser import CommandParser
from scemae.errors import ScemaeError

# Commands with commands of their own, whose module is imported only when one of them is called.
TRAINING = {  # command -> module, function there, what it is
    "train": ("scemae.cli.train_commands", "add_train_commands", "Train a model on your own faces."),
    "data": ("scemae.cli.train_commands", "add_data_commands", "Prepare faces for training."),
    "eval": ("scemae.cli.evaluate_commands", "evaluate", "Evaluate a model, or the features of another network."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    # PyTorch uses huge pages if this is set at its first allocation: features take a sixth less time on a Linux CPU.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of landmarks and files that a terminal cannot show
    try:
        args = build_parser(words).parse_args(words)
        result, text = args.run(args)
    except ScemaeError as error:
        report = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(report) if "--json" in words else f"scemae: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        if stopped.args:
            print(f"scemae: {stopped}", file=sys.stderr)
        return 130
    return _print_result(json.dumps(result, indent=2) if args.json else text)


def _print_result(text: str) -> int:
    try:
        print(text, flush=True)
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (Python flushes it once more at exit)
        if not isinstance(error, BrokenPipeError):  # which only means that the reader, `head` say, has seen enough
            print(f"scemae: the result cannot be printed: {error}.", file=sys.stderr)
            return 2
    return 0


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands. Of those in `TRAINING` it has the options only if `words` call them."""
    parser = CommandParser(
        prog="scemae", description=scemae.__doc__, epilog="scemae COMMAND --help describes a command."
    )
    parser.add_argument(
        "--version", action="version", version=f"scemae {scemae.__version__}", help="Print the version and exit."
    )
    commands: Any = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="Print the result as JSON.")

    def add(run: Any, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = commands.add_parser(
            run.__name__, help=run.__doc__, description=run.__doc__, parents=[common, *parents]
        )
        command.set_defaults(run=run)
        return command

    inference_commands.add_commands(add)
    export_commands.add_commands(add)
    hub_commands.add_commands(add)
    for name, (module, function, what) in TRAINING.items():
        command = commands.add_parser(name, help=what, description=what)
        if name in words[:1]:
            getattr(importlib.import_module(module), function)(command, common)
    return parser
