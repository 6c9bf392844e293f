"""export_graph: a model or a fitted regressor as one file for ONNX runtimes or torch.export, its parity measured."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from scemae.detector.regressor import LandmarkRegressor
from scemae.errors import ExportError, OptionError
from scemae.export.formats import format_of
from scemae.export.targets import ExportTarget, export_target
from scemae.model.sce_mae import SceMae
from scemae.output import atomic_write, new_path

__all__ = ["ExportReport", "export_graph"]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and the largest difference from torch on so many faces, in `unit`."""

    path: str
    inputs: dict[str, list[int | str]]
    outputs: tuple[str, ...]
    faces: int
    difference: float
    unit: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in self.inputs.items())
        return (
            f"{self.path}: {shapes} -> {', '.join(self.outputs)}\n"
            f"on {self.faces} faces at most {self.difference:.2g} {self.unit} from torch"
        )


def export_graph(
    source: SceMae | LandmarkRegressor,
    path: str | os.PathLike[str],
    *,
    expansion: int | None = None,
    faces: int = 100,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model or a fitted regressor as one file that runs without scemae.

    The file is run and compared with torch on the two sample faces, turned, zoomed, shifted, mirrored and lit in many
    ways; one that differs is not kept. What goes in and comes out, and how a patch is cut: docs/export.md.

    Args:
        source: a model: views (B, 3, 104, 104) to maps. Or a regressor: patches (B, 3, H, W), uint8, and boxes
            (B, 4) to landmarks (B, K, 2), in patch pixels, and scores (B, K); its alignment and head are in the graph.
        path: FILE.onnx, which needs the extra `onnx`, or FILE.pt2, for torch.export.
        expansion: of a model's maps; default: the model's.
        faces: how many to compare on; each takes as long as its features do, twice.
        tolerance: the difference that is too much; default 0.01 px for landmarks, 0.001 of the standard deviation
            for maps.
        overwrite: replace the file if it exists.

    Raises:
        ExportError: the file did not agree with torch.
        MissingExtraError: the packages for ONNX are not installed.
        OptionError: an ending that is neither, or an expansion for a regressor.
        OutputError: the file exists already or cannot be written.
        NotFittedError: a regressor that is not fitted.
    """
    path = new_path(path, overwrite)
    chosen = format_of(path)
    if faces < 1:
        raise OptionError(f"faces is {faces}; it must be at least 1.")
    target = export_target(source, expansion)
    limit = target.tolerance if tolerance is None else tolerance
    with atomic_write(path) as temporary:
        chosen.write(target, temporary)
        difference = target.distance(chosen.load(temporary), faces)
        if not difference <= limit:  # nan is too far as well
            raise ExportError(
                f"The exported graph is up to {difference:.2g} {target.unit} from torch on {faces} faces, more than "
                f"{limit:g}: {path} was not written. If that is near enough for you, pass tolerance= (--tolerance)."
            )
    return ExportReport(str(path), _shapes(target), target.outputs, faces, difference, target.unit)


def _shapes(target: ExportTarget) -> dict[str, list[int | str]]:
    return {
        name: [target.axes[name].get(axis, size) for axis, size in enumerate(example.shape)]
        for name, example in target.inputs.items()
    }
