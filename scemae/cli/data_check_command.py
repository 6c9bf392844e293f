"""The command `scemae data check`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scemae.datasets import DATASETS, check_dataset
from scemae.errors import DataError


def check(args: argparse.Namespace) -> tuple[Any, str]:
    """Check that a folder holds a dataset: counts, missing and extra files, labels that cannot be right."""
    report = check_dataset(args.name, args.path, annotations=args.annotations)
    if report.problems:
        count = len(report.problems)
        source = DATASETS[args.name].source
        raise DataError(
            f"{report.name} in {report.path} has {count} {'problem' if count == 1 else 'problems'}: "
            f"{'; '.join(report.problems)} The files come from {source}."
        )
    return asdict(report), f"{report}\nOK: nothing is missing."


def add_data_check(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register `check NAME PATH` among the sub-commands of `scemae data`."""
    parser = commands.add_parser("check", help=check.__doc__, description=check.__doc__, parents=[common])
    parser.add_argument("name", choices=sorted(DATASETS), help="Name of the dataset.")
    parser.add_argument("path", type=Path, help="Folder that the dataset was unpacked to.")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="CSV",
        help="For aflw_r only: other labels of the test faces (path,name,x,y).",
    )
    parser.set_defaults(run=check)
