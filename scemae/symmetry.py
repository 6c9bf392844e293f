"""Which landmarks are the left and the right one of a pair: by their names, or by the symmetry of their shape."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

AXIS_SHIFT = 16.0  # input px, of the mirror axis from the middle, at most
MIRROR_REACH = 0.35  # how far a landmark may be from its counterpart's reflection, as a fraction of the shape's width
SIDE = re.compile("left|right|(?<![a-z])[lr](?![a-z])")  # of a name in lower case
OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


def left_right_pairs(names: Sequence[str]) -> dict[int, int]:
    """The landmarks whose names tell their side, each with the landmark of that name on the other side.

    A side is the word left or right, or the letter l or r on its own: left_eye, eyeRight, mouth-l.
    """
    lower = [name.lower() for name in names]
    others = [SIDE.sub(lambda side: OTHER_SIDE[side[0]], name) for name in lower]
    return {i: lower.index(other) for i, other in enumerate(others) if other != lower[i] and other in lower}


def mirror_pairs(shape: NDArray[np.float64], size: int, known: dict[int, int]) -> list[int] | None:
    """For each landmark of a shape (K, 2), input px, the one whose place its mirror image takes; None if not found.

    Pairs that are `known` may be anywhere, as on a face in profile. A single remaining landmark is its own mirror
    image. Several are reflected: each is paired with the landmark nearest to its reflection. The axis may be up to
    `AXIS_SHIFT` from the middle of the input, since a face may look sideways; a landmark and its counterpart must be
    mutually nearest, and within `MIRROR_REACH` of the shape's width. If no pair is known, a shape that does not
    straddle the middle is one side of a face, which has no mirror image to learn from.
    """
    every = range(len(shape))
    rest = np.array([k for k in every if k not in known], dtype=int)
    if known and len(rest) < 2:
        return [known.get(k, k) for k in every]
    if not known and not shape[:, 0].min() <= (size - 1) / 2 <= shape[:, 0].max():
        return None
    best, pairs = MIRROR_REACH * np.ptp(shape[:, 0]), None
    for shift in np.arange(-AXIS_SHIFT, AXIS_SHIFT + 1, 2.0):
        reflected = np.column_stack([size - 1 + 2 * shift - shape[rest, 0], shape[rest, 1]])
        distances = np.linalg.norm(reflected[:, None] - shape[rest], axis=-1)
        nearest, farthest = distances.argmin(axis=1), distances.min(axis=1).max()
        if farthest <= best and (nearest[nearest] == np.arange(len(rest))).all():
            best, pairs = farthest, dict(zip(rest.tolist(), rest[nearest].tolist(), strict=True))
    return None if pairs is None else [(pairs | known)[k] for k in every]
