"""Augmentation: the annotated faces, their mirror images, and moved copies of both, as a head is fitted on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from scemae.detector.head import AnnotatedMaps, Head, reads_shapes
from scemae.detector.map_reader import MapReader
from scemae.extraction import features_through_crops
from scemae.features import FaceFeatures
from scemae.geometry import FaceShapes, random_affines
from scemae.model.extractor import Extractor
from scemae.progress import LONG_WORK, hide_progress

MOVES = {"rotation": 0.15, "log_scale": 0.075, "shear": 0.03, "shift": 0.065}  # half of what the aligner learned from
LEAVE_ONE_OUT = 10  # up to this many groups each is held out on its own, beyond it a fifth at a time


class Augmentation(NamedTuple):
    """What is done to all faces together."""

    mirrored: bool
    moved: bool


def augment_faces(
    model: Extractor,
    features: FaceFeatures,
    xy: NDArray[np.float64],
    *,
    groups: NDArray[np.int64],
    swap: list[int] | None,
    head: Head,
    reader: MapReader,
) -> AnnotatedMaps:
    """The faces with landmarks (n, K, 2), image px, as a head is fitted on them.

    `groups`: the group of each face (n,), from 0 (see `group_faces`); a group is held out as a whole.
    `swap`: which landmarks change places in mirror images; None: without mirror images.
    """
    faces = len(features)
    augmentations = _plan_augmentations(faces, mirror=swap is not None, moved_copies=head.moved_copies)
    maps, landmarks, face_shapes = [], [], list[FaceShapes]()
    for augmentation, seen in zip(augmentations, _extract_augmented(model, features, augmentations), strict=True):
        maps.append(reader(seen))
        if reads_shapes(head):
            face_shapes.append(seen.read_shapes())
        shapes = torch.from_numpy(seen.to_input(xy))
        landmarks.append(shapes[:, swap] if augmentation.mirrored else shapes)
    return AnnotatedMaps(
        maps=torch.cat(maps),
        grid=features.grid,
        landmarks=torch.cat(landmarks),
        blocks=np.tile(_draw_blocks(groups, head.max_folds), len(augmentations)),
        mirrored=np.repeat([augmentation.mirrored for augmentation in augmentations], faces),
        moved=np.repeat([augmentation.moved for augmentation in augmentations], faces),
        swap=swap,
        shapes=FaceShapes.concatenate(face_shapes) if face_shapes else None,
    )


def _plan_augmentations(faces: int, mirror: bool, moved_copies: bool) -> list[Augmentation]:
    """The faces as they are first, each augmentation without and, with `mirror`, in the mirror."""
    sides = (False, True) if mirror else (False,)
    copies = _copy_count(faces) // len(sides) if moved_copies else 0
    return [Augmentation(mirrored, moved) for moved in [False] + copies * [True] for mirrored in sides]


def _extract_augmented(
    model: Extractor, features: FaceFeatures, augmentations: list[Augmentation]
) -> Iterator[FaceFeatures]:
    """The features of all faces for each augmentation, from crops that are mirrored and moved."""
    rng = np.random.default_rng(0)
    for mirrored, moved in tqdm(augmentations, unit="augmentation", delay=LONG_WORK, disable=hide_progress()):
        if not (mirrored or moved):
            yield features
            continue
        crops = [face.crop.mirror() if mirrored else face.crop for face in features.faces]
        if moved:
            motions = random_affines(rng, len(features), crops[0].size, **MOVES)[:, :2]
            crops = [crop.refine(motion) for crop, motion in zip(crops, motions, strict=True)]
        yield features_through_crops(model, features, crops)


def _draw_blocks(groups: NDArray[np.int64], max_folds: int) -> NDArray[np.int64]:
    """Which faces are held out together, (n,): each group on its own up to `LEAVE_ONE_OUT`, beyond it five folds."""
    count = int(groups.max()) + 1
    folds = min(count if count <= LEAVE_ONE_OUT else 5, max_folds)
    blocks: NDArray[np.int64] = np.random.default_rng(0).permutation(count) % folds
    return blocks[groups]


def _copy_count(faces: int) -> int:
    """How many moved copies of each of n annotated faces: 4; more for one or two faces, fewer from a hundred on."""
    return min(max(4, 10 // faces), 400 // faces)
