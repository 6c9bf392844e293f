"""The command export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import scemae


def export(options: argparse.Namespace) -> tuple[Any, str]:
    """A model or a fitted detector as one file that runs without scemae; compared with torch before it is kept."""
    report = scemae.export_graph(
        _source(options),
        options.out,
        expansion=options.expansion,
        faces=options.faces,
        tolerance=options.tolerance,
        overwrite=options.overwrite,
    )
    return report.to_dict(), str(report)


def add_commands(add: Any) -> None:
    """Add the command to the parser. `add(run, *parents)` makes a sub-command of a function."""
    command = add(export)
    command.add_argument("source", metavar="NAME|REGRESSOR", help="a model, or the file of a fitted detector")
    command.add_argument("out", metavar="FILE", help=".onnx, or .pt2 for torch.export")
    command.add_argument("--model", help="the model that the detector was fitted on; default: the one of that name")
    command.add_argument("--expansion", type=int, choices=(1, 2, 4, 8), help="cells per patch side, of a model's maps")
    command.add_argument("--faces", type=int, default=100, help="how many faces to compare with torch on")
    command.add_argument("--tolerance", type=float, help="the difference from torch that is too much")
    command.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def _source(options: argparse.Namespace) -> Any:
    from scemae.detector.regressor import LandmarkRegressor

    if not Path(options.source).is_file():
        return scemae.load_model(options.source)
    model = None if options.model is None else scemae.load_model(options.model)
    return LandmarkRegressor.load(options.source, model)
