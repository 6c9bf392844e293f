"""Which landmarks change places in a mirror image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scemae.errors import OptionError

Pairs = Sequence[tuple[str, str]] | Sequence[tuple[int, int]]
MIRROR_REACH = 10.0  # input px between a landmark and the mirror image of its counterpart, at most


def named_pairs(pairs: Pairs, names: Sequence[str] | None, count: int) -> list[int]:
    """For each of `count` landmarks the one whose place it takes, from pairs by name or number; others keep theirs."""
    swap = list(range(count))
    for pair in pairs:
        first, second = (_number(landmark, names, count) for landmark in pair)
        swap[first], swap[second] = second, first
    return swap


def mirror_pairs(shape: NDArray[np.float64], size: int) -> list[int] | None:
    """For each landmark of a shape (K, 2), input px, the one that its reflection about the middle falls on, or None.

    None unless each landmark and its counterpart are mutually nearest and within `MIRROR_REACH`: a shape without
    left and right has no mirror images to learn from.
    """
    reflected = np.column_stack([size - 1 - shape[:, 0], shape[:, 1]])
    distances = np.linalg.norm(reflected[:, None] - shape[None], axis=-1)
    nearest = distances.argmin(axis=1)
    mutual = (nearest[nearest] == np.arange(len(shape))).all()
    return nearest.tolist() if mutual and distances.min(axis=1).max() <= MIRROR_REACH else None


def _number(landmark: str | int, names: Sequence[str] | None, count: int) -> int:
    """The number of a landmark that a mirror pair names."""
    if isinstance(landmark, str):
        if names is None or landmark not in names:
            raise OptionError(f"mirror names {landmark!r}, which is no landmark; there are {names or 'no names'}.")
        return list(names).index(landmark)
    if not 0 <= landmark < count:
        raise OptionError(f"mirror names landmark {landmark}; there are {count}, from 0.")
    return landmark
