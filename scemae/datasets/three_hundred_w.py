"""300W: AFW, Helen, LFPW and iBUG with 68 points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scemae.datasets.annotated_face import Sample, read_matlab
from scemae.errors import DataError
from scemae.geometry import Array, central_part

PARTS = {
    "train": ("afw", "helen/trainset", "lfpw/trainset"),
    "test": ("helen/testset", "lfpw/testset", "ibug"),
}
FACE, WINDOW, RAISED = 52, 100, 2  # px: width of the tight box, side of the window around it, its shift upwards
POINTS = 68


def read_300w(root: Path, split: str) -> list[Sample]:
    """The tight ground-truth box of each face sets the window, as in the protocol."""
    return [sample for part in PARTS[split] for sample in _read_part(root, part)]


def _read_part(root: Path, part: str) -> list[Sample]:
    table = root / "Bounding Boxes" / f"bounding_boxes_{part.replace('/', '_')}.mat"
    entries: Any = read_matlab(table).get("bounding_boxes")
    if entries is None:
        raise DataError(f"{table} has no variable bounding_boxes.")
    samples = []
    for entry in [entries] if isinstance(entries, dict) else entries:
        name = str(entry["imgName"])
        if part != "ibug" or name.startswith("image"):  # the table of iBUG names images that were not released
            box = np.asarray(entry["bb_ground_truth"], dtype=np.float64).reshape(4)
            path = root / part / name
            landmarks = read_points(path.with_suffix(".pts"))
            samples.append(Sample(path=path, box=window_box(box), landmarks=landmarks))
    return samples


def window_box(tight: Array) -> tuple[float, float, float, float]:
    """The model's box (pixel edges) from the tight box (x0, y0, x1, y1), pixels counted from 1, both ends in it.

    The image is scaled so that the face is 52 px wide. A window of 100 px is centred 2 px above the box's centre
    (rounded to a whole pixel there), resized to 136, and its central 96 are kept.
    """
    scale = FACE / (tight[2] - tight[0] + 1)
    middle = np.floor(scale * (tight[:2] + (tight[2:] - tight[:2] + 2) / 2))
    left, top = (middle - WINDOW / 2 - (0, RAISED)) / scale
    return central_part(float(left), float(top), float(WINDOW / scale))


def read_points(path: Path) -> Array:
    """(68, 2) points of a .pts file, pixels counted from 0."""
    try:
        inside = path.read_text(encoding="utf-8").partition("{")[2].partition("}")[0]
        return np.array(inside.split(), dtype=np.float64).reshape(POINTS, 2) - 1
    except FileNotFoundError:
        return np.full((POINTS, 2), np.nan)  # reported by `check_files`
    except ValueError as error:
        raise DataError(f"{path} does not hold {POINTS} points x y between braces ({error}).") from error
