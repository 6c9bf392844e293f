"""Random thin-plate-spline and affine warps that move landmarks with the image, in DVE's parametrisation.

A warp is a backward map: for each pixel of the warped image, the position in the original that it shows. In unit
coordinates (-1..1 between the centres of the outermost pixels) it is

    source(u) = a + A u + sum_i w_i U(|u - c_i|^2),    U(r) = r log(r + 1e-5),

with control points c_i on a regular grid (Thewlis et al., "Unsupervised Learning of Landmarks by Descriptor Vector
Exchange", ICCV 2019; the landmark-matching protocol of the paper's Sec. 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scemae.geometry import pixels_to_unit, unit_to_pixels

EPSILON = 1e-5  # in U, so that its logarithm exists at a control point
NEWTON_STEPS = 30
CONVERGED = 1e-9  # in -1..1: some 5e-8 px of a 96 px image
COARSE, REACH = 41, 1.6  # the search for a landmark starts from the best of 41 x 41 places in -1.6..1.6


@dataclass(frozen=True, kw_only=True)
class WarpSettings:
    """Standard deviations of random warps, in unit coordinates of the image."""

    all_sd: float = 0.0005  # of the spline weights
    subset_sd: float = 0.005  # of half of the spline weights, instead (each with probability 1/2)
    shift_sd: float = 0.05  # of the shift of the affine part
    scale_sd: float = 0.05  # of its scale, about 1
    turn_sd: float = 2.5  # of its rotation, degrees
    control_points: int = 10  # along each side, not a deviation


MATCHING = WarpSettings()  # the pairs of the landmark-matching protocol


@dataclass(frozen=True, eq=False)
class Warps:
    """B warps: `weights` (B, P + 3, 2), float64, on the CPU: P spline weights, then the rows of 1, x and y."""

    weights: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def images(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S), each warped by its own warp; bilinear, mirrored beyond their edges."""
        grid = self.source(_pixel_places(images.shape[-1])).view(len(self), *images.shape[-2:], 2).to(images)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)

    def landmarks(self, xy: Any, size: int, *, rounded: bool = False) -> Tensor:
        """Where landmarks (B, K, 2), pixels of S x S images, lie in the warped images: (B, K, 2), float64, pixels.

        The backward map is inverted numerically. nan where a landmark is nan, or so far outside that no place of the
        warped image within `REACH` shows it. With `rounded` it is the whole pixel of the warped image whose source is
        nearest to the landmark, as in the protocol.
        """
        wanted = pixels_to_unit(torch.as_tensor(xy, dtype=torch.float64).cpu(), size)
        if not rounded:
            return unit_to_pixels(self._invert(wanted), size)
        places = _pixel_places(size)
        nearest = torch.cdist(wanted.nan_to_num(), self.source(places)).argmin(-1)
        found = unit_to_pixels(places[nearest], size).round()
        return torch.where(wanted.isnan(), torch.nan, found)

    def source(self, places: Tensor) -> Tensor:
        """Where in the originals places (P, 2) or (B, P, 2) of the warped images come from, (B, P, 2); both unit."""
        return _design(places, self._centres()) @ self.weights

    def _centres(self) -> Tensor:
        return _lattice(math.isqrt(self.weights.shape[1] - 3), 1.0)

    def _invert(self, wanted: Tensor) -> Tensor:
        """Newton's method from the best of a coarse lattice of places."""
        lattice = _lattice(COARSE, REACH)
        places = lattice[torch.cdist(wanted.nan_to_num(), self.source(lattice)).argmin(-1)]
        for _ in range(NEWTON_STEPS):
            missed = self.source(places) - wanted
            if float(missed.nan_to_num().abs().max()) < CONVERGED:
                break
            step = torch.linalg.solve(self._slopes(places), missed.unsqueeze(-1))[..., 0]
            places = places - step.clamp(-0.2, 0.2)
        reached = (self.source(places) - wanted).norm(dim=-1, keepdim=True) < 100 * CONVERGED
        return torch.where(reached, places, torch.nan)

    def _slopes(self, places: Tensor) -> Tensor:
        """Derivatives (B, K, 2, 2) of `source` at places (B, K, 2); [..., i, j] is of coordinate i along axis j."""
        apart = places[:, :, None] - self._centres()
        squared = apart.square().sum(-1, keepdim=True)
        kernel = 2 * apart * ((squared + EPSILON).log() + squared / (squared + EPSILON))
        spline = torch.einsum("bkpj,bpi->bkij", kernel, self.weights[:, :-3])
        return spline + self.weights[:, None, -2:].transpose(-1, -2)


def draw_warps(seeds: Iterable[int], settings: WarpSettings = MATCHING) -> Warps:
    """One random warp for each seed, a function of that seed and the settings alone."""
    return Warps(torch.stack([_draw_warp(torch.Generator().manual_seed(seed), settings) for seed in seeds]))


def _draw_warp(generator: torch.Generator, settings: WarpSettings) -> Tensor:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    count = settings.control_points**2
    strong = torch.rand(count, 2, generator=generator, dtype=torch.float64) > 0.5
    spline = torch.where(strong, settings.subset_sd * normal(count, 2), settings.all_sd * normal(count, 2))
    angle = math.radians(settings.turn_sd) * float(normal(1))
    scale = 1 + settings.scale_sd * float(normal(1))
    across, along = scale * math.sin(angle), scale * math.cos(angle)
    turn = torch.tensor([[along, -across], [across, along]], dtype=torch.float64)
    return torch.cat([spline, settings.shift_sd * normal(1, 2), turn])


def _design(places: Tensor, centres: Tensor) -> Tensor:
    """(..., P + 3) for places (..., 2): U of the distance from each centre, 1, x, y."""
    squared = (places[..., None, :] - centres).square().sum(-1)
    return torch.cat([squared * (squared + EPSILON).log(), torch.ones_like(places[..., :1]), places], dim=-1)


def _lattice(count: int, reach: float) -> Tensor:
    """(count * count, 2) places (x, y) from -reach to reach, row by row."""
    axis = torch.linspace(-reach, reach, count, dtype=torch.float64)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([columns, rows], dim=-1).view(-1, 2)


def _pixel_places(size: int) -> Tensor:
    return _lattice(size, 1.0)
