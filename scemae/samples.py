"""The two public-domain sample faces that come with the package, for the demo, the examples and the tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SampleFace:
    """A picture, the box around its face (image px), eight landmarks (name -> (x, y), image px), its credit."""

    path: Path
    box: tuple[float, float, float, float]
    landmarks: dict[str, tuple[float, float]]
    credit: str


def sample_faces() -> list[SampleFace]:
    """Grace Hopper, whose face fills much of her picture, and Eileen Collins, whose face is small in hers."""
    folder = Path(__file__).parent / "_data"
    rows = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return [
        SampleFace(
            folder / name,
            tuple(row["box"]),
            {landmark: (x, y) for landmark, (x, y) in row["landmarks"].items()},
            row["credit"],
        )
        for name, row in rows.items()
    ]
