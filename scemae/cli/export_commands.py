"""The command export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import scemae


def export(args: argparse.Namespace) -> tuple[Any, str]:
    """Write a model or a fitted detector as one file that runs without scemae; it is compared with torch first."""
    report = scemae.export_graph(
        _load_source(args),
        args.out,
        expansion=args.expansion,
        faces=args.faces,
        tolerance=args.tolerance,
        overwrite=args.overwrite,
    )
    return report.to_dict(), str(report)


def add_commands(add: Any) -> None:
    """Add the command to the parser; `add(run, *parents)` makes a sub-command of a function."""
    command = add(export)
    command.add_argument("source", metavar="NAME|REGRESSOR", help="a model, or the file of a fitted detector")
    command.add_argument("out", metavar="FILE", help=".onnx, or .pt2 for torch.export")
    command.add_argument("--model", help="model that the detector was fitted on; default: the one it names")
    command.add_argument(
        "--expansion",
        type=int,
        choices=(1, 2, 4, 8),
        help="cells per patch side of a model's maps; default: the model's",
    )
    command.add_argument("--faces", type=int, default=100, help="number of faces on which to compare with torch")
    command.add_argument(
        "--tolerance",
        type=float,
        help="largest accepted difference from torch; default: 0.01 px for landmarks, 0.001 std for maps",
    )
    command.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def _load_source(args: argparse.Namespace) -> Any:
    from scemae.detector.regressor import LandmarkRegressor

    if not Path(args.source).is_file():
        return scemae.load_model(args.source)
    model = None if args.model is None else scemae.load_model(args.model)
    return LandmarkRegressor.load(args.source, model)
