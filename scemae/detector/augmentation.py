"""What a landmark regressor learns from: the annotated faces, their mirror images, and moved copies of both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from scemae.detector.heads import AnnotatedMaps, Head
from scemae.extraction import Extractor, features_through_crops
from scemae.features import FaceFeatures
from scemae.geometry import random_affines
from scemae.progress import LONG_WORK, hide_progress

MOVES = {"rotation": 0.15, "log_scale": 0.075, "shear": 0.03, "shift": 0.065}  # half of what the aligner learned from
LEAVE_ONE_OUT = 10  # up to so many faces each is held out on its own, then a fifth at a time


def augment_faces(
    model: Extractor,
    features: FaceFeatures,
    xy: NDArray[np.float64],
    swap: list[int] | None,
    head: Head,
    read: Callable[[FaceFeatures], Tensor],
) -> AnnotatedMaps:
    """The faces with landmarks (n, K, 2), image px, as a head learns from them.

    `swap`: which landmarks change places in mirror images; None: there are none. `read`: the maps of features.
    """
    faces, sides = len(features), (False,) if swap is None else (False, True)
    copies = _copies(faces) // len(sides) if head.moved_copies else 0
    rng = np.random.default_rng(0)
    looks = [(mirrored, moved) for moved in [False] + copies * [True] for mirrored in sides]
    maps, landmarks = [], []
    for mirrored, moved in tqdm(looks, unit="look", delay=LONG_WORK, disable=hide_progress()):
        seen = features
        if mirrored or moved:
            crops = [face.crop.mirror() if mirrored else face.crop for face in features.faces]
            if moved:
                motions = random_affines(rng, faces, crops[0].size, **MOVES)[:, :2]
                crops = [crop.refine(motion) for crop, motion in zip(crops, motions, strict=True)]
            seen = features_through_crops(model, features, crops)
        maps.append(read(seen))
        shapes = torch.from_numpy(seen.to_input(xy))
        landmarks.append(shapes[:, swap] if mirrored else shapes)
    return AnnotatedMaps(
        torch.cat(maps),
        features.grid,
        torch.cat(landmarks),
        np.tile(_blocks(faces, head.max_folds), len(looks)),
        *(np.repeat(marks, faces) for marks in zip(*looks, strict=True)),
    )


def _blocks(faces: int, max_folds: int) -> NDArray[np.int64]:
    """Which faces are held out together, (n,): each on its own up to `LEAVE_ONE_OUT`, then five folds."""
    folds = min(faces if faces <= LEAVE_ONE_OUT else 5, max_folds)
    return np.random.default_rng(0).permutation(faces) % folds


def _copies(faces: int) -> int:
    """How many moved copies of each of n annotated faces: 4, more of one or two faces, fewer from a hundred on."""
    return min(max(4, 10 // faces), 400 // faces)
