"""export_graph: write a model or a fitted regressor as one ONNX or torch.export file, and measure its parity."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from scemae.detector.regressor import LandmarkRegressor
from scemae.errors import ExportError, OptionError
from scemae.export.formats import format_of
from scemae.export.targets import ExportTarget, export_target
from scemae.model.config import validate_switch
from scemae.model.sce_mae import SceMae
from scemae.output import atomic_write, new_path

__all__ = ["ExportReport", "export_graph"]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how well it agrees with torch.

    Attributes:
        path: the file.
        inputs: the shape of each input by name; a free axis is named.
        outputs: names of the outputs.
        faces: number of faces it was compared on.
        difference: the largest difference from torch on them, in `unit`.
        unit: the unit of `difference`.
    """

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

    The file is run and compared with torch on many versions of the two sample faces (rotated, zoomed, shifted,
    mirrored, in other light), and deleted if it differs. docs/export.md describes inputs, outputs and patches.

    Args:
        source: a model: views (B, 3, S, S) to maps. Or a regressor: patches (B, 3, H, W), uint8, and boxes (B, 4) to
            landmarks (B, K, 2), in patch pixels, scores (B, K) and face scores (B,), alignment and head in the graph.
        path: FILE.onnx, which needs the extra `onnx`, or FILE.pt2, for torch.export.
        expansion: of a model's maps; default: the model's.
        faces: number of faces to compare on; each takes twice as long as extracting its features.
        tolerance: the largest difference that is accepted; default 0.01 px for landmarks, 0.001 of the standard
            deviation for maps.
        overwrite: replace the file if it exists.

    Raises:
        ExportError: the file does not agree with torch.
        MissingExtraError: the packages for ONNX are not installed.
        OptionError: `path` has another suffix, or an expansion is given for a regressor.
        OutputError: the file exists already or cannot be written.
        NotFittedError: the regressor is not fitted.
    """
    validate_switch("overwrite", overwrite)
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
                f"{limit:g}: {path} was not written. If that is good enough, pass tolerance= (--tolerance)."
            )
    return ExportReport(
        path=str(path),
        inputs=_input_shapes(target),
        outputs=target.outputs,
        faces=faces,
        difference=difference,
        unit=target.unit,
    )


def _input_shapes(target: ExportTarget) -> dict[str, list[int | str]]:
    return {
        name: [target.axes[name].get(axis, size) for axis, size in enumerate(example.shape)]
        for name, example in target.inputs.items()
    }
