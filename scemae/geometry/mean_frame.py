"""The frame of the mean face: a lattice of its places, and where each of them lies on a face (input pixels)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scemae.geometry.sampling import CellGrid, sample_at

INVERSION_STEPS = 30  # of the fixed point; a displacement with a slope of 0.9 is then inverted to 4 %
DAMPING = 0.5
UNFOLDING_STEPS = 8
UNFOLDING_SIGMA = 1.0  # cells


@dataclass(frozen=True)
class MeanFrame:
    """A square lattice of `count` x `count` places of the mean face, `grid.centres(count)` px along each axis.

    A *dense shape* (B, P, 2), of the P = count x count places row by row, says where each place lies on B faces, input
    px. Between the places displacements are bilinear, beyond them those of the nearest edge.
    """

    grid: CellGrid
    count: int

    @property
    def places(self) -> Tensor:
        """The places themselves, which are the shape of the mean face (P, 2), float64, input px."""
        axis = self.grid.centres(self.count)
        return torch.cartesian_prod(axis, axis).flip(1)

    def to_face(self, shapes: Tensor, places: Tensor) -> Tensor:
        """Where places (B, K, 2) of the mean face lie on faces of these shapes, (B, K, 2), input px."""
        return places + sample_at(self._displacements(shapes), self.grid, places)

    def to_mean(self, shapes: Tensor, xy: Tensor, steps: int = INVERSION_STEPS) -> Tensor:
        """Undoes `to_face` for shapes without folds: which places of the mean face lie at (B, K, 2), input px."""
        displacements, places = self._displacements(shapes), xy
        for _ in range(steps):
            places = places + DAMPING * (xy - places - sample_at(displacements, self.grid, places))
        return places

    def resample(self, maps: Tensor, grid: CellGrid, shapes: Tensor) -> Tensor:
        """Maps (B, C, h, w) as the places of the mean face see them: (B, C, count, count), cells at `self.grid`."""
        read = sample_at(maps, grid, shapes)
        return read.transpose(1, 2).unflatten(2, (self.count, self.count))

    def mirror(self, shapes: Tensor, input_size: int) -> Tensor:
        """Shapes of the mirror images of faces, which the model sees in inputs of `input_size` px."""
        rows = shapes.unflatten(1, (self.count, self.count)).flip(2).flatten(1, 2)
        return torch.stack([input_size - 1 - rows[..., 0], rows[..., 1]], dim=-1)

    def areas(self, shapes: Tensor) -> Tensor:
        """Jacobian determinants (B, count - 1, count - 1) between neighbouring places; at most 0 is a fold."""
        rows = shapes.unflatten(1, (self.count, self.count))
        right, down = rows[:, :-1, 1:] - rows[:, :-1, :-1], rows[:, 1:, :-1] - rows[:, :-1, :-1]
        return (right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]) / self.grid.step**2

    def unfold(self, shapes: Tensor) -> Tensor:
        """Shapes without folds: those that have some are smoothed until they have none, a few times at most."""
        for _ in range(UNFOLDING_STEPS):
            folded = (self.areas(shapes) <= 0).flatten(1).any(1)
            if not torch.compiler.is_compiling() and not folded.any():
                break
            shapes = torch.where(folded[:, None, None], self.smooth(shapes, UNFOLDING_SIGMA), shapes)
        return shapes

    def smooth(self, shapes: Tensor, sigma: float, weights: Tensor | None = None) -> Tensor:
        """Shapes whose displacements are averaged over a Gaussian of `sigma` cells, each with its weight (B, P)."""
        displacements = self._displacements(shapes)
        if weights is None:
            averaged = blur(displacements, sigma)
        else:
            shares = weights.unflatten(1, (1, self.count, self.count))
            averaged = blur(displacements * shares, sigma) / blur(shares, sigma)
        return self.places.to(shapes) + averaged.flatten(2).transpose(1, 2)

    def _displacements(self, shapes: Tensor) -> Tensor:
        """(B, 2, count, count), px."""
        return (shapes - self.places.to(shapes)).transpose(1, 2).unflatten(2, (self.count, self.count))


@dataclass(frozen=True, eq=False)
class FaceShapes:
    """The dense shapes of B faces: `xy` (B, P, 2), where the places of the mean face lie on them, input px."""

    frame: MeanFrame
    xy: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> FaceShapes:
        return FaceShapes(self.frame, self.xy[chosen])

    @classmethod
    def concatenate(cls, parts: Sequence[FaceShapes]) -> FaceShapes:
        """The shapes of all faces of the parts."""
        return cls(parts[0].frame, torch.cat([part.xy for part in parts]))

    def to_face(self, places: Tensor) -> Tensor:
        """See `MeanFrame.to_face`."""
        return self.frame.to_face(self.xy, places)

    def to_mean(self, xy: Tensor) -> Tensor:
        """See `MeanFrame.to_mean`."""
        return self.frame.to_mean(self.xy, xy)

    def resample(self, maps: Tensor, grid: CellGrid) -> Tensor:
        """See `MeanFrame.resample`."""
        return self.frame.resample(maps, grid, self.xy)

    def widths(self, places: Tensor) -> Tensor:
        """How wide (B, K) the surroundings of places (B, K, 2) are on the face, over their width on the mean face."""
        aside = places.new_tensor([self.frame.grid.step / 2, 0.0])
        right, left = self.to_face(places + aside), self.to_face(places - aside)
        return (right - left).norm(dim=-1) / self.frame.grid.step


def symmetrise(shapes: FaceShapes, places: Tensor, swap: Sequence[int], amount: float) -> Tensor:
    """Places (B, K, 2) of the mean face, moved by `amount`, 0..1, towards what both sides of the face say.

    `swap`: for each landmark the one whose place its mirror image takes. What both say is the mean of a place and its
    partner's reflection. A place on the side that is turned away is known worse: each weighs with the fourth power of
    how wide its surroundings are on the face.
    """
    weights = shapes.widths(places).clamp(0.05, 2.0)[..., None] ** 4
    reflected = places[:, swap].clone()
    extent = 2 * shapes.frame.grid.origin + (shapes.frame.count - 1) * shapes.frame.grid.step
    reflected[..., 0] = extent - reflected[..., 0]
    agreed = (weights * places + weights[:, swap] * reflected) / (weights + weights[:, swap])
    return torch.where(agreed.isnan(), places, places + amount * (agreed - places))


def blur(maps: Tensor, sigma: float) -> Tensor:
    """Maps (B, C, h, w) averaged over a Gaussian of `sigma` cells; beyond the edges the outermost cells go on."""
    reach = int(3 * sigma) + 1
    kernel = torch.exp(-((torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, 1, -1)
    padded = F.pad(maps, (reach, reach, 0, 0), mode="replicate")
    across = F.conv2d(padded, kernel, groups=maps.shape[1])
    padded = F.pad(across, (0, 0, reach, reach), mode="replicate")
    return F.conv2d(padded, kernel.transpose(2, 3), groups=maps.shape[1])
