"""The file formats: how each is written, and how it is run for comparison with torch."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scemae.errors import MissingExtraError, OptionError
from scemae.export.targets import Arrays, ExportTarget, Run

OPSET = 18  # the first in which every operator behaves as torch's; runtimes since 2023 support it
ABOUT = "scemae"  # the key of a file's metadata, JSON
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Format(NamedTuple):
    """`write(target, path)` writes a file, `load(path)` returns a function that runs it; both need `packages`."""

    write: Callable[[ExportTarget, Path], None]
    load: Callable[[Path], Run]
    packages: tuple[str, ...] = ()


def format_of(path: Path) -> Format:
    """The format for the suffix of a path; raises OptionError, or MissingExtraError without its packages."""
    if path.suffix not in FORMATS:
        raise OptionError(f"{path} ends in none of {', '.join(FORMATS)}; the suffix selects ONNX or torch.export.")
    found = FORMATS[path.suffix]
    missing = [name for name in found.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'{path.suffix} files need {", ".join(missing)}: pip install "scemae[onnx]".')
    return found


@torch.no_grad()  # a quarter of the time
def _write_onnx(target: ExportTarget, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about two inputs that share the name of an axis, which is intended
        program = torch.onnx.export(
            target.graph.eval(),
            tuple(target.inputs.values()),
            input_names=list(target.inputs),
            output_names=list(target.outputs),
            dynamic_shapes=_free_axes(target),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    _simplify(program.model)
    program.model.metadata_props[ABOUT] = json.dumps(target.about)
    program.save(path, external_data=False)


def _simplify(model: Any) -> None:
    """Fold constants, drop unused and repeated nodes.

    It takes seconds; the exporter's own optimizer, with its many rewriting rules, takes minutes over the ten encoder
    passes of a regressor.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    fold_constants(model, onnx_shape_inference=True)
    for simplification in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    ):
        simplification(model)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, dict(arrays))


@torch.no_grad()
def _write_torch(target: ExportTarget, path: Path) -> None:
    inputs = tuple(target.inputs.values())
    program = torch.export.export(target.graph.eval(), inputs, dynamic_shapes=_free_axes(target), strict=False)
    torch.export.save(program, path, extra_files={ABOUT: json.dumps(target.about)})


def _load_torch(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(arrays: Arrays) -> list[Any]:
        with torch.inference_mode():
            return [output.numpy() for output in module(*(torch.from_numpy(array) for array in arrays.values()))]

    return run


def _free_axes(target: ExportTarget) -> dict[str, dict[int, Any]]:
    names = {name for axes in target.axes.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name, min=1) for name in names}
    return {name: {axis: dims[free] for axis, free in axes.items()} for name, axes in target.axes.items()}


FORMATS = {".onnx": Format(_write_onnx, _load_onnx, ONNX_PACKAGES), ".pt2": Format(_write_torch, _load_torch)}
