"""The command `scemae`. Results go to standard output (--json for machines), problems to standard error.

Exit codes: 0 done, 2 bad usage or bad input (one clear line; the input that was good is done), 130 interrupted.
Control characters of names are escaped in whatever is printed as text.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import scemae
from scemae.cli import export_commands, hub_commands, inference_commands
from scemae.cli.command_parser import CommandParser
from scemae.errors import ScemaeError, escape_controls, escape_lines

# Commands with commands of their own, whose module is imported only when one of them is called.
TRAINING = {  # command -> module, function there, what it is
    "train": ("scemae.cli.train_commands", "add_train_commands", "Train a model on your own faces."),
    "data": ("scemae.cli.data_commands", "add_data_commands", "Prepare faces for training."),
    "eval": ("scemae.cli.evaluate_commands", "evaluate", "Evaluate a model, or the features of another network."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    # PyTorch uses huge pages if this is set at its first allocation: features take a sixth less time on a Linux CPU.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of landmarks and files that a terminal cannot show
    as_json = "--json" in words
    try:
        with _end_on_signals(), _one_line_warnings(as_json):
            args = build_parser(words).parse_args(words)
            result, text, *later = args.run(args)
            code = _print_result(json.dumps(result, indent=2) if args.json else text)
            for line in chain(*later):  # what a command does once its numbers are safe: the picture
                code = max(code, 0 if args.json else _print_result(line))
            return code
    except ScemaeError as error:
        print(_format_problem("error", error, as_json), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        if stopped.args:
            print(f"scemae: {escape_controls(str(stopped))}", file=sys.stderr)
        return 130


def _format_problem(kind: str, problem: Exception, as_json: bool) -> str:
    if as_json:
        return json.dumps({kind: type(problem).__name__, "message": str(problem)})
    return f"scemae: {'warning: ' if kind == 'warning' else ''}{escape_controls(str(problem))}"


@contextmanager
def _end_on_signals() -> Iterator[None]:
    """Let SIGTERM and the loss of the terminal end the command as Ctrl-C does, so that it deletes temporary files."""
    names = {"SIGTERM", "SIGHUP"} if threading.current_thread() is threading.main_thread() else set()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    caught = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in caught:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _one_line_warnings(as_json: bool) -> Iterator[None]:
    """Warnings and what the Hub's client logs, which a server may have written, with control characters escaped."""
    before, new_record = warnings.formatwarning, logging.getLogRecordFactory()

    def escaped_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = new_record(*args, **kwargs)
        record.msg, record.args = escape_controls(record.getMessage()), ()
        return record

    warnings.formatwarning = lambda message, *_: _format_problem("warning", message, as_json) + "\n"
    logging.setLogRecordFactory(escaped_record)
    try:
        yield
    finally:
        warnings.formatwarning = before
        logging.setLogRecordFactory(new_record)


def _print_result(text: str) -> int:
    try:
        print(escape_lines(text), flush=True)
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
