"""Which landmarks change places in a mirror image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scemae.errors import OptionError, warn_user
from scemae.landmark_input import landmark_pair

Pairs = Sequence[tuple[str, str]] | Sequence[tuple[int, int]]
Mirror = Literal["auto", "off"] | Pairs
AXIS_SHIFT = 16.0  # input px, of the mirror axis from the middle, at most
MIRROR_REACH = 0.35  # how far a landmark may be from its counterpart's reflection, as a fraction of the shape's width
ABOVE = 0.1  # of the input's side: how far above each other pairs must be not to be those of a profile
SIDE = re.compile("left|right|(?<![a-z])[lr](?![a-z])")  # of a name in lower case
OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


def mirror_permutation(
    mirror: Mirror, shape: NDArray[np.float64], names: Sequence[str] | None, size: int
) -> list[int] | None:
    """For each landmark of a shape (K, 2), input px, the one whose place its mirror image takes; None: no mirroring."""
    if lies_on_its_side(shape, names, size):
        warn_user(
            "The landmarks lie on their side: what is left and right of a face is above each other. Are they (x, y), "
            "not (y, x), and are the images upright?"
        )
    if isinstance(mirror, (Sequence, np.ndarray)) and not isinstance(mirror, str):
        return named_pairs(mirror, names, len(shape))
    if mirror not in ("auto", "off"):
        raise OptionError(f"mirror is {mirror!r}; it must be 'auto', 'off' or a list of pairs.")
    return mirror_pairs(shape, size, left_right_pairs(names or ())) if mirror == "auto" else None


def left_right_pairs(names: Sequence[str]) -> dict[int, int]:
    """The landmarks whose names tell their side, each with the landmark of that name on the other side.

    A side is the word left or right, or the letter l or r on its own: left_eye, eyeRight, mouth-l.
    """
    lower = [name.lower() for name in names]
    others = [SIDE.sub(lambda side: OTHER_SIDE[side[0]], name) for name in lower]
    return {i: lower.index(other) for i, other in enumerate(others) if other != lower[i] and other in lower}


def lies_on_its_side(shape: NDArray[np.float64], names: Sequence[str] | None, size: int) -> bool:
    """Whether landmarks (K, 2), input px, whose names say left and right are above each other, as in (y, x)."""
    pairs = left_right_pairs(names or ())
    if not pairs:
        return False
    across, down = np.abs(shape[list(pairs)] - shape[list(pairs.values())]).mean(axis=0)
    return bool(down > max(2 * across, ABOVE * size))


def named_pairs(pairs: Pairs, names: Sequence[str] | None, count: int) -> list[int]:
    """For each of `count` landmarks the one whose place its mirror image takes: of `pairs`, by name or number, the
    other one; otherwise itself."""
    swap, paired = list(range(count)), set[int]()
    for pair in pairs:
        first, second = landmark_pair(pair, names, count, "mirror")
        if not paired.isdisjoint((first, second)):
            raise OptionError(f"mirror has two pairs with a landmark of {tuple(pair)}; wanted each landmark once.")
        paired |= {first, second}
        swap[first], swap[second] = second, first
    return swap


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
