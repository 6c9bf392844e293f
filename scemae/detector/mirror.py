"""Which landmarks change places in a mirror image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scemae.errors import OptionError, warn_user
from scemae.landmark_input import landmark_pair
from scemae.symmetry import left_right_pairs, mirror_pairs

Pairs = Sequence[tuple[str, str]] | Sequence[tuple[int, int]]
Mirror = Literal["auto", "off"] | Pairs
ABOVE = 0.1  # of the input's side: how far above each other pairs must be not to be those of a profile


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
