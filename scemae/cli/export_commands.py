"""The command export."""

from __future__ import annotations

import argparse
import os
from typing import Any

import scemae


def export(args: argparse.Namespace) -> tuple[Any, str]:
    """Export a model or a fitted detector to one file that runs without scemae, after comparing it with torch."""
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
    command.add_argument("source", metavar="NAME|DETECTOR", help="A model, or the file of a fitted detector.")
    command.add_argument("out", metavar="FILE", help="File to write: .onnx, or .pt2 for torch.export.")
    command.add_argument("--model", help="The model that the detector was fitted on. Default: found by its name.")
    command.add_argument(
        "--expansion",
        type=int,
        choices=(1, 2, 4, 8),
        help="Cells per patch side of a model's maps. Default: the model's choice.",
    )
    command.add_argument("--faces", type=int, default=100, help="Number of faces on which to compare with torch.")
    command.add_argument(
        "--tolerance",
        type=float,
        help="Largest accepted difference from torch. Default: 0.01 px for landmarks, 0.001 of the maps' std.",
    )
    command.add_argument("--overwrite", action="store_true", help="Replace FILE if it exists.")


def _load_source(args: argparse.Namespace) -> Any:
    from scemae.detector.regressor import LandmarkRegressor

    if not os.path.isfile(args.source):
        return scemae.load_model(args.source)
    model = None if args.model is None else scemae.load_model(args.model)
    return LandmarkRegressor.load(args.source, model)
