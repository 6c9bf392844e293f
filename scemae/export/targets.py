"""What is exported of a model or a regressor: a graph, its inputs and outputs, metadata, and a measure of parity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scemae.detector.regressor import LandmarkRegressor
from scemae.errors import OptionError
from scemae.export.graphs import MapsGraph, RegressorGraph
from scemae.export.trial_faces import trial_faces
from scemae.extraction import extract_features, validate_model
from scemae.model.config import ModelId
from scemae.model.sce_mae import SceMae

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Sequence[NDArray[Any]]]  # an exported graph: arrays by name -> arrays in order
BATCH = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class ExportTarget:
    """A graph and all that an export needs to know of it.

    Attributes:
        graph: the module to export.
        inputs: example inputs by name.
        axes: for each input the names of its free axes.
        outputs: names of the outputs.
        about: metadata for the file, JSON-ready.
        distance: `distance(run, faces)` is how far `run` is from torch on that number of faces, in `unit`.
        unit: the unit of `distance`.
        tolerance: a larger distance is an error.
    """

    graph: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    about: dict[str, Any]
    distance: Callable[[Run, int], float]
    unit: str
    tolerance: float


def export_target(source: SceMae | LandmarkRegressor, expansion: int | None) -> ExportTarget:
    """The target for a model at an expansion (None: its default), or for a fitted regressor."""
    if not isinstance(source, LandmarkRegressor):
        validate_model(source)
        if not isinstance(source, SceMae):
            raise OptionError(f"{source.id} is not a scemae model; only one, or a detector fitted on one, is exported.")
        return _model_target(source, source.config.expansion if expansion is None else expansion)
    if expansion is not None:
        raise OptionError("A regressor keeps the expansion that it was fitted with; leave expansion out.")
    return _regressor_target(source)


def _model_target(model: SceMae, expansion: int) -> ExportTarget:
    grid, margin, size = model.grid(expansion), model.view_margin, model.view_size + 2 * model.view_margin
    graph = MapsGraph(model, expansion)
    about = _about("maps", model.id, model) | {"expansion": expansion, "grid": vars(grid), "margin": margin}

    def distance(run: Run, faces: int) -> float:
        views = trial_faces(faces, model.view_size, margin) / np.float32(255)
        return max(_map_distance(graph.model, expansion, batch, run({"views": batch})) for batch in _batches(views))

    return ExportTarget(
        graph=graph,
        inputs={"views": torch.zeros(2, 3, size, size)},
        axes={"views": {0: "batch"}},
        outputs=("backbone_map",) if model.projector is None else ("backbone_map", "projected_map"),
        about=about,
        distance=distance,
        unit="of a map's standard deviation",
        tolerance=1e-3,
    )


def _regressor_target(regressor: LandmarkRegressor) -> ExportTarget:
    graph = RegressorGraph(regressor)
    side, margin = graph.box_side, graph.box_side // 2
    box = np.array([margin, margin, margin + side, margin + side], dtype=np.float32)
    about = _about("landmarks", regressor.kind_.model, graph.model)
    on_cpu = copy.copy(regressor).set_params(model=graph.model)  # a GPU may round products to 10 bits (TF32)
    about |= {"landmarks": regressor.names_, "box_side": side}

    def distance(run: Run, faces: int) -> float:
        batches = _batches(trial_faces(faces, side, margin))
        return max(_landmark_distance(on_cpu, batch, np.tile(box, (len(batch), 1)), run) for batch in batches)

    return ExportTarget(
        graph=graph,
        inputs={
            "patches": torch.zeros(2, 3, 2 * side, 2 * side + 8, dtype=torch.uint8),
            "boxes": torch.from_numpy(np.stack([box, box])),
        },
        axes={"patches": {0: "batch", 2: "height", 3: "width"}, "boxes": {0: "batch"}},
        outputs=("landmarks", "scores", "face_scores", "radius"),
        about=about,
        distance=distance,
        unit="px",
        tolerance=0.01,
    )


def _about(kind: str, identity: ModelId, model: SceMae) -> dict[str, Any]:
    return {"output": kind, "model": identity._asdict(), "license": model.config.license}


def _batches(faces: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Batches of one and of up to `BATCH` faces: a graph has to take both."""
    return chain([faces[:1]], (faces[start : start + BATCH] for start in range(1, len(faces), BATCH)))


def _map_distance(model: SceMae, expansion: int, views: NDArray[Any], found: Sequence[NDArray[Any]]) -> float:
    with torch.inference_mode():
        backbone_map = model(model.normalise(torch.from_numpy(views)), expansion)
        maps = [backbone_map] if model.projector is None else [backbone_map, model.project(backbone_map)]
    truth = [expected.cpu().numpy() for expected in maps]
    return max(float(np.abs(a - b).max() / b.std()) for a, b in zip(found, truth, strict=True))


def _landmark_distance(regressor: LandmarkRegressor, patches: NDArray[Any], boxes: NDArray[Any], run: Run) -> float:
    xy, *_ = run({"patches": patches, "boxes": boxes})
    kind = regressor.kind_
    features = extract_features(  # as `predict` does, but for second tries, which the graph does not make
        regressor.model,
        patches.transpose(0, 2, 3, 1),
        boxes=boxes,
        align=kind.aligned,
        expansion=kind.expansion,
        margin=kind.margin,  # type: ignore[arg-type]
        search="none",
    )
    truth = regressor.predict(features)
    return float(np.linalg.norm(xy - truth.xy, axis=-1).max())
