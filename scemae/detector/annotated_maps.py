"""What a head is fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scemae.geometry import CellGrid


@dataclass(frozen=True, eq=False)
class AnnotatedMaps:
    """n faces to fit on: standardised maps (n, C, h, w), landmarks (n, K, 2) in input px, nan where not annotated.

    `blocks` (n,) numbers what is held out together, from 0; `mirrored` (n,) marks mirror images of other faces here,
    `moved` (n,) copies of faces or of mirror images that are turned, scaled and shifted.
    """

    maps: Tensor
    grid: CellGrid
    landmarks: Tensor
    blocks: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    moved: NDArray[np.bool_]

    @property
    def originals(self) -> NDArray[np.bool_]:
        """(n,) which are the annotated faces as they are."""
        return ~(self.mirrored | self.moved)

    @property
    def parts(self) -> NDArray[np.int64]:
        """(n,) one number for each block of originals and each block of mirror images."""
        parts: NDArray[np.int64] = 2 * self.blocks + self.mirrored
        return parts
