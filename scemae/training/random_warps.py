"""Random smooth warps of views, whose displacement is known everywhere and can be undone.

A warp is bilinear between the points of a lattice that covers the view: a `MeanFrame`, whose shapes say where each
point of the warped view comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scemae.geometry import CellGrid, MeanFrame

LATTICE = 27  # points along an axis: 4 px apart in a view of 96 px with its margin
WAVES = ((4, 3.5), (7, 2.0))  # random numbers along an axis, smoothly filled up, and their standard deviation, px of 96
BUMP = (5.0, 2.5)  # px of 96: standard deviation, in x and y, of the displacement of the middle of the face
BUMP_PLACE = ((48.0, 3.0), (50.0, 4.0))  # its middle, mean and standard deviation of x and of y, px of 96
BUMP_WIDTH = (11.0, 0.1)  # its width, px of 96, and the standard deviation of the width's logarithm
NUMBERS = sum(2 * count**2 for count, _ in WAVES) + 5  # that a warp is made of
LEAST_AREA = 0.25  # of a lattice cell, in the warp, over its own
INVERSION_STEPS = 50  # where a warp nearly folds, those that `MeanFrame.to_mean` takes otherwise leave 0.2 px
TAMING, TRIES = 0.8, 12  # what warps with smaller cells are multiplied by, and how often at most


@dataclass(frozen=True, eq=False)
class SmoothWarps:
    """Warps of n views.

    Attributes:
        lattice: the points at which they are known.
        shapes: (n, P, 2), float32: which point of the unwarped view each of them shows, input px.
    """

    lattice: MeanFrame
    shapes: Tensor

    def __getitem__(self, chosen: slice) -> SmoothWarps:
        """Some of the warps."""
        return SmoothWarps(self.lattice, self.shapes[chosen])

    def to_unwarped(self, xy: Tensor) -> Tensor:
        """Which points of the unwarped views lie at (n, K, 2) in the warped ones, input px."""
        return self.lattice.to_face(self.shapes, xy)

    def to_warped(self, xy: Tensor) -> Tensor:
        """Where points (n, K, 2) of the unwarped views lie in the warped ones, input px."""
        return self.lattice.to_mean(self.shapes, xy, INVERSION_STEPS)


def draw_smooth_warps(
    rngs: Sequence[np.random.Generator], *, amplitude: float, input_size: int, margin: int
) -> SmoothWarps:
    """A warp for each generator, of views of `input_size` px with `margin` px on each side.

    `amplitude` multiplies all displacements; warps that would fold, or nearly so, are weakened until they do not.
    """
    lattice = MeanFrame(CellGrid(-margin, (input_size + 2 * margin - 1) / (LATTICE - 1)), LATTICE)
    numbers = np.stack([rng.standard_normal(NUMBERS) for rng in rngs]).astype(np.float32)
    places = lattice.places.float()
    displacements = amplitude * input_size / 96 * _displace(torch.from_numpy(numbers), places * (96 / input_size))
    for _ in range(TRIES):
        folded = (lattice.areas(places + displacements) < LEAST_AREA).flatten(1).any(1)
        displacements[folded] *= TAMING
    return SmoothWarps(lattice, places + displacements)


def _displace(numbers: Tensor, places: Tensor) -> Tensor:
    """Displacements (n, P, 2) of lattice points (P, 2) that random numbers (n, NUMBERS) make, all in px of 96."""
    *waves, bump = numbers.split([2 * count**2 for count, _ in WAVES] + [5], dim=1)
    fields = [
        F.interpolate(
            deviation * wave.view(-1, 2, count, count), (LATTICE, LATTICE), mode="bicubic", align_corners=True
        )
        for wave, (count, deviation) in zip(waves, WAVES, strict=True)
    ]
    middle, spread = numbers.new_tensor(BUMP_PLACE).unbind(1)
    centres, width = middle + spread * bump[:, :2], BUMP_WIDTH[0] * (BUMP_WIDTH[1] * bump[:, 4:]).exp()
    shares = (-((places - centres[:, None]).square().sum(2)) / (2 * width**2)).exp()
    return torch.stack(fields).sum(0).flatten(2).mT + shares[..., None] * (bump[:, None, 2:4] * bump.new_tensor(BUMP))
