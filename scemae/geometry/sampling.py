"""Patches of photos, grids of cells, and how both are read between their pixels and cells."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from scemae.geometry.affine import Array, apply_affine, compose, determinants, invert
from scemae.geometry.crop import Crop

BLUR = 1.25  # pixels of a view: largest half-width of the tent that keeps it from aliasing


@dataclass(frozen=True, eq=False)
class Patch:
    """Pixels around one face, cut once from its photo: (H, W, 3) RGB uint8 (or float), and where they lie in it."""

    pixels: Array
    to_image_affine: Array

    def to_patch(self, xy: ArrayLike) -> Array:
        """Image pixels (..., 2) to patch pixels."""
        return apply_affine(invert(self.to_image_affine), xy)

    def serves(self, crop: Crop) -> bool:
        """Whether `crop` lies within the patch, and the patch is as fine as the crop or as fine as the photo."""
        corners = self.to_patch(crop.to_image(crop.corners))
        height, width = self.pixels.shape[:2]
        inside = bool((corners >= -0.5).all() and (corners <= np.array([width, height]) - 0.5).all())
        photo_pixels_per_patch_pixel = float(self.to_image_affine[0, 0])
        return inside and photo_pixels_per_patch_pixel <= max(crop.scale, 1.0) + 1e-9


def sample_view(patch: Patch, crop: Crop) -> Tensor:
    """The pixels (3, size, size) that `crop` sees, sampled from the patch (see `sample_smoothly`); uint8 comes as 0..1.

    Positions are computed in float64. Beyond the patch its pixels are mirrored.
    """
    to_patch = torch.from_numpy(compose(invert(patch.to_image_affine), crop.to_image_affine))[None]
    scale = crop.scale / float(patch.to_image_affine[0, 0])
    pixels = torch.from_numpy(np.ascontiguousarray(patch.pixels)).permute(2, 0, 1)[None]
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    if scale <= 1:
        return sample_views(pixels, to_patch, crop.size)[0]
    return sample_smoothly(pixels, to_patch, to_patch.new_tensor([scale]), crop.size, max(3, ceil(scale)))[0]


def sample_smoothly(pixels: Tensor, to_pixels: Tensor, scale: Tensor, size: int, taps: int = 3) -> Tensor:
    """What `sample_views` gives, without aliasing where a view has `scale` (B,) > 1 pixels of its picture per pixel.

    Each pixel is a weighted mean of `taps` x `taps` samples over a tent, whose half-width, in pixels of the view, is 0
    up to a scale of 1 and grows to `BLUR`. Were that 1, tent and bilinear sampling together would spread as Pillow's
    reducing filter does; a little more, and tokens jump far less where a photo is sharp.
    """
    width = BLUR * (1 - scale.clamp(min=1) ** -2).sqrt()
    places = torch.tensor([(2 * tap + 1 - taps) / taps for tap in range(taps)], dtype=width.dtype, device=width.device)
    pixel = torch.arange(size, dtype=width.dtype, device=width.device)
    fine = _sample_lattice(pixels, to_pixels, (pixel[:, None] + width[:, None, None] * places).flatten(1))
    weights = ((1 - places.abs()) / (1 - places.abs()).sum()).to(fine.dtype)
    columns = fine.unflatten(3, (size, taps)) @ weights
    return torch.einsum("bcytx,t->bcyx", columns.unflatten(2, (size, taps)), weights)


def sample_crops(pixels: Tensor, crops: Tensor, size: int) -> Tensor:
    """What crops (B, 2, 3) of `size` px see of pixels (B, C, H, W), as `sample_view` does it: (B, C, size, size)."""
    return sample_smoothly(pixels, crops, determinants(crops).abs().sqrt(), size)


def sample_views(pixels: Tensor, to_pixels: Tensor, size: int) -> Tensor:
    """Views (B, C, size, size) of pixels (B, C, H, W), bilinear, mirrored beyond their edges.

    `to_pixels` (B, 2, 3) takes pixels of each view to those of its picture; positions are computed in its precision.
    """
    return _sample_lattice(pixels, to_pixels, torch.arange(size, dtype=to_pixels.dtype, device=to_pixels.device)[None])


def sample_pixels(pixels: Tensor, xy: Tensor) -> Tensor:
    """Pixels (B, C, H, W) read at points (B, h, w, 2), bilinear, mirrored beyond their edges: (B, C, h, w)."""
    extent = torch.tensor([pixels.shape[3], pixels.shape[2]], dtype=xy.dtype, device=xy.device)
    grid = ((2 * xy + 1) / extent - 1).to(pixels.dtype)  # -1 and 1 at the edges of the outermost pixels
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _sample_lattice(pixels: Tensor, to_pixels: Tensor, axis: Tensor) -> Tensor:
    """`sample_views` (B, C, n, n) at view coordinates `axis` (B or 1, n), the same along x and y."""
    grid = _lattice(to_pixels, axis, pixels.shape[-2:]).to(pixels.dtype)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _lattice(to_pixels: Tensor, axis: Tensor, shape: torch.Size) -> Tensor:
    """Where the points of the view read a picture of (H, W) = `shape`, (B, n, n, 2), as grid_sample takes it."""
    extent = torch.tensor([shape[1], shape[0]], dtype=to_pixels.dtype, device=to_pixels.device)
    to_grid = to_pixels * (2 / extent)[:, None]  # grid_sample has -1 and 1 at the edges of the outermost pixels
    offset = to_grid[:, None, :, 2] + (1 / extent - 1)
    across, down = axis[..., None] * to_grid[:, None, :, 0] + offset, axis[..., None] * to_grid[:, None, :, 1]
    return across[:, None] + down[:, :, None]


@dataclass(frozen=True)
class CellGrid:
    """Where the cells of a map lie: cell m has its centre at `origin + step * m` input pixels, in x and in y."""

    origin: float
    step: float

    def to_cells(self, xy_input: Tensor) -> Tensor:
        """Input pixels (..., 2) to cell coordinates."""
        return (xy_input - self.origin) / self.step

    def to_input(self, xy_cells: Tensor) -> Tensor:
        """Cell coordinates (..., 2) to input pixels."""
        return xy_cells * self.step + self.origin

    def centres(self, count: int) -> Tensor:
        """Input coordinate (count,) of the first `count` cells along one axis."""
        return torch.arange(count, dtype=torch.float64) * self.step + self.origin

    def extent(self, count: int) -> int:
        """Side of the square, input pixels, that `count` cells along each axis tile."""
        return round(count * self.step)

    def interpolation(self, count: int, size: int) -> Tensor:
        """Weights (size, count), float32: each of `size` input pixels along one axis as a mix of `count` >= 2 cells.

        Linear between neighbouring centres, the outermost cell beyond them: the "half-pixel" resize, at any origin.
        """
        cells = self.to_cells(torch.arange(size, dtype=torch.float64)).clamp(0, count - 1)
        return (1 - (cells[:, None] - torch.arange(count)).abs()).clamp(min=0).float()


def sample_at(maps: Tensor, grid: CellGrid, xy_input: Tensor) -> Tensor:
    """Read maps (B, C, h, w) at points (B, K, 2) in input pixels, bilinearly: (B, K, C).

    Points beyond the outermost cell centres read the nearest position on their hull.
    """
    height, width = maps.shape[-2:]
    extent = torch.tensor([width - 1, height - 1], dtype=xy_input.dtype, device=xy_input.device).clamp(min=1)
    positions = (grid.to_cells(xy_input) * (2 / extent) - 1).to(maps.dtype)
    read = F.grid_sample(maps, positions[:, :, None], mode="bilinear", padding_mode="border", align_corners=True)
    return read[..., 0].transpose(1, 2)


def soft_argmax(heatmaps: Tensor, grid: CellGrid) -> Tensor:
    """Expected position (B, K, 2), input pixels, of heat maps (B, K, h, w) that each sum to one."""
    columns = grid.centres(heatmaps.shape[-1]).to(heatmaps)
    rows = grid.centres(heatmaps.shape[-2]).to(heatmaps)
    return torch.stack([heatmaps.sum(-2) @ columns, heatmaps.sum(-1) @ rows], dim=-1)


def build_pyramid(pixels: Tensor, smallest: int = 64) -> list[Tensor]:
    """A picture (1, C, H, W) and its halves (anti-aliased), down to a shorter side of about `smallest` px."""
    levels = [pixels]
    while min(levels[-1].shape[-2:]) >= 2 * smallest:
        height, width = (side - side % 2 for side in levels[-1].shape[-2:])
        pixels = levels[-1][..., :height, :width]
        pixels = pixels[..., ::2, :] + pixels[..., 1::2, :]  # a sixth of the time of avg_pool2d on a CPU
        levels.append((pixels[..., ::2] + pixels[..., 1::2]) / 4)
    return levels


def sample_pyramid(levels: list[Tensor], crops: Tensor, size: int) -> Tensor:
    """What crops (B, 2, 3) of `size` px see of one picture: (B, C, size, size).

    For many crops of a large picture: each reads, bilinearly, the level whose pixels are about its own, or a little
    finer. Beyond the picture its pixels are mirrored.
    """
    scales = determinants(crops).abs().sqrt()
    chosen = scales.clamp(min=1).log2().add(0.3).floor().clamp(max=len(levels) - 1).long()
    views = levels[0].new_empty(len(crops), levels[0].shape[1], size, size)
    for level in chosen.unique().tolist():
        rows = (chosen == level).nonzero()[:, 0]
        shrink = 0.5**level  # a pixel x of the picture lies at (x + 1/2) shrink - 1/2 of the level
        here = crops[rows] * shrink
        here[..., 2] += (shrink - 1) / 2
        axis = torch.arange(size, dtype=crops.dtype)[None]
        grid = _lattice(here, axis, levels[level].shape[-2:]).to(levels[level].dtype)
        flat = F.grid_sample(levels[level], grid.flatten(0, 1)[None], padding_mode="reflection", align_corners=False)
        views[rows] = flat[0].unflatten(1, (len(rows), size)).transpose(0, 1)
    return views
