"""The two public-domain sample faces that come with the package, for the demo, the examples and the tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class SampleFace:
    """A photo of one face, with annotations in pixels of the photo.

    Attributes:
        path: the photo.
        box: (x0, y0, x1, y1), from brow to chin.
        landmarks: name -> (x, y), eight of them.
        credit: photographer, source and licence.
    """

    path: Path
    box: tuple[float, float, float, float]
    landmarks: dict[str, tuple[float, float]]
    credit: str


def sample_faces() -> list[SampleFace]:
    """Grace Hopper, whose face fills much of the photo, and Eileen Collins, whose face is small in it."""
    folder = Path(__file__).parent / "_data"
    rows = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return [
        SampleFace(
            path=folder / name,
            box=tuple(row["box"]),
            landmarks={landmark: (x, y) for landmark, (x, y) in row["landmarks"].items()},
            credit=row["credit"],
        )
        for name, row in rows.items()
    ]
