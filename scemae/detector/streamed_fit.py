"""The heat-map head on more faces than their maps fit in memory: maps are made batch by batch, where the model is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scemae.detector.head import HeadFit
from scemae.detector.heatmap import BATCH, HeatmapHead
from scemae.detector.map_reader import MapReader
from scemae.extraction import encode_faces, see_through
from scemae.features import FaceFeatures
from scemae.model.config import Use
from scemae.model.extractor import Extractor

HELD_BYTES = 2 * 2**30  # maps that take no more are made once and held on the model's device
SAMPLE = 1000  # faces, spread evenly over all, that the mean and deviation are taken from


def fit_streamed(
    model: Extractor,
    faces: FaceFeatures,
    xy: NDArray[np.float64],
    *,
    swap: list[int] | None,
    head: HeatmapHead,
    use: Use,
) -> tuple[MapReader, HeadFit]:
    """Fit a head on n faces without maps (`stream_faces`) and landmarks (n, K, 2), image px, on the model's device.

    `swap`: which landmarks change places in mirror images; None: without mirror images. No faces are held out. Up to
    `SAMPLE` faces, `HeatmapHead.fit` finds the same, up to rounding; of more, the mean and deviation are of a sample.
    """
    landmarks, seen = faces.to_input(xy), faces
    if swap is not None:
        mirrored = see_through(faces, [face.crop.mirror() for face in faces.faces])
        landmarks = np.concatenate([landmarks, mirrored.to_input(xy)[:, swap]])
        seen = FaceFeatures.concatenate([faces, mirrored])
    sample = np.linspace(0, len(faces) - 1, min(len(faces), SAMPLE)).round().astype(np.int64)
    reader = MapReader.fit_parts((encode_faces(model, part) for part in _split(faces[sample])), use)

    def read(part: FaceFeatures) -> Tensor:
        encoded = encode_faces(model, part)
        return reader.to(encoded.backbone_map.device)(encoded)

    maps = None
    if read(seen[:1]).nbytes * len(seen) <= HELD_BYTES:
        maps = torch.cat([read(part) for part in _split(seen)])

    def read_rows(rows: Tensor) -> Tensor:
        return read(seen[rows.numpy()]) if maps is None else maps[rows]

    head.fit_stream(read_rows, torch.from_numpy(landmarks), faces.grid)
    held_out = torch.full(xy.shape, torch.nan, dtype=torch.float64)
    return reader, HeadFit(held_out, mirrored=swap is not None)


def _split(faces: FaceFeatures) -> Iterator[FaceFeatures]:
    return (faces[start : start + BATCH] for start in range(0, len(faces), BATCH))
