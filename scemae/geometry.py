"""The coordinate law: every conversion between image, input and cell coordinates happens here.

A point is (x, y), float, and (0, 0) is the centre of the top-left pixel. Three frames: *image* pixels (what the
user passed, upright), *input* pixels (the square that the model sees), *cells* (a feature map). Affines are 2 x 3
float64 matrices that act on column vectors (x, y, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[Any]
Box = tuple[float, float, float, float]
BLUR = 1.25


def apply_affine(affine: Array, xy: ArrayLike) -> Array:
    """Map points (..., 2) through a (2, 3) affine; float64 in and out."""
    return np.asarray(xy, dtype=np.float64) @ affine[:, :2].T + affine[:, 2]


def compose(outer: Array, inner: Array) -> Array:
    """The (2, 3) affine that applies `inner` first, then `outer`."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], apply_affine(outer, inner[:, 2])])


def invert(affine: Array) -> Array:
    """The (2, 3) affine that undoes `affine`."""
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def fit_affine(source: ArrayLike, target: ArrayLike) -> Array:
    """Least-squares (2, 3) affine that takes points `source` (K, 2) to `target` (K, 2)."""
    design = np.column_stack([np.asarray(source, dtype=np.float64), np.ones(len(np.asarray(source)))])
    affine: Array = np.linalg.lstsq(design, np.asarray(target, dtype=np.float64), rcond=None)[0].T
    return affine


def fit_similarity(source: ArrayLike, target: ArrayLike) -> Array:
    """Least-squares (2, 3) rotation, scale and shift that takes points `source` (K, 2) to `target` (K, 2)."""
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    before, after = source - source.mean(axis=0), target - target.mean(axis=0)
    along = (before * after).sum() / (before**2).sum()
    across = (before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]).sum() / (before**2).sum()
    linear = np.array([[along, -across], [across, along]])
    return np.column_stack([linear, target.mean(axis=0) - linear @ source.mean(axis=0)])


def half_sides_to_pixels(half_sides: ArrayLike, size: int) -> Array:
    """Places in half-sides of a square (-1..1, its pixel edges at the ends) as pixels of its `size`."""
    pixels: Array = (np.asarray(half_sides, dtype=np.float64) + 1) * (size / 2) - 0.5
    return pixels


def pixels_to_half_sides(pixels: ArrayLike, size: int) -> Array:
    """Undoes `half_sides_to_pixels`."""
    half_sides: Array = (np.asarray(pixels, dtype=np.float64) + 0.5) * (2 / size) - 1
    return half_sides


def central_box(width: int, height: int) -> Box:
    """The central 96/136 of the largest centred square: "resize to 136, crop the central 96" (protocol, Sec. 6)."""
    half = min(width, height) * 96 / 136 / 2
    return (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)


@dataclass(frozen=True, eq=False)
class Crop:
    """A square of `size` pixels and the affine (2, 3) that takes its pixels to image pixels, float64."""

    to_image_affine: Array
    size: int = 96

    @classmethod
    def from_box(cls, box: Box, size: int = 96) -> Crop:
        """The crop that shows `box` = (x0, y0, x1, y1), pixel edges in image pixels, grown to a square if it is not."""
        x0, y0, x1, y1 = box
        scale = max(x1 - x0, y1 - y0) / size
        centre = np.array([(x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5])
        linear = np.eye(2) * scale
        return cls(np.column_stack([linear, centre - scale * (size - 1) / 2]), size)

    @property
    def scale(self) -> float:
        """Image pixels per crop pixel (the root of the determinant)."""
        return float(np.sqrt(abs(np.linalg.det(self.to_image_affine[:, :2]))))

    @property
    def corners(self) -> Array:
        """The four corners of the crop's pixel edges, (4, 2), in crop pixels, clockwise from the top left."""
        low, high = -0.5, self.size - 0.5
        return np.array([(low, low), (high, low), (high, high), (low, high)])

    def to_image(self, xy: ArrayLike) -> Array:
        """Crop pixels (..., 2) to image pixels."""
        return apply_affine(self.to_image_affine, xy)

    def to_input(self, xy: ArrayLike) -> Array:
        """Image pixels (..., 2) to crop pixels."""
        return apply_affine(invert(self.to_image_affine), xy)

    def refine(self, affine: Array) -> Crop:
        """The crop whose pixels map through `affine` (2, 3) to pixels of this one."""
        return Crop(compose(self.to_image_affine, affine), self.size)

    def mirror(self) -> Crop:
        """The same place with left and right exchanged."""
        return self.refine(np.array([[-1.0, 0.0, self.size - 1.0], [0.0, 1.0, 0.0]]))

    def resample(self, size: int) -> Crop:
        """The same place with `size` pixels a side."""
        scale = self.size / size
        shift = scale / 2 - 0.5
        return Crop(self.refine(np.array([[scale, 0, shift], [0, scale, shift]])).to_image_affine, size)

    def pad(self, margin: int) -> Crop:
        """The same crop with `margin` more pixels on each side."""
        shift = np.array([[1.0, 0.0, -margin], [0.0, 1.0, -margin]])
        return Crop(compose(self.to_image_affine, shift), self.size + 2 * margin)


@dataclass(frozen=True)
class Alignment:
    """What alignment did to one face, relative to the crop it started from.

    `rotation`: by how much the face was turned in the picture, degrees, positive clockwise as seen. `scale`: side of
    the aligned square over that of the start. `shift`: (x, y) from the start's centre to the new one, in sides of the
    start. `confidence`: 0..1, from how far the last step still moved the face; 0 where the face was
    lost and the crop stayed behind.
    """

    rotation: float
    scale: float
    shift: tuple[float, float]
    confidence: float

    @classmethod
    def of(cls, affine: Array, size: int, confidence: float) -> Alignment:
        """What an affine (2, 3), pixels of the aligned crop to pixels of the start, both of `size` px, does."""
        linear = affine[:, :2]
        # The rotation nearest to the linear part (its polar factor): shear and aspect do not count as turning.
        angle = np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])
        middle = (size - 1) / 2
        shift = (apply_affine(affine, [middle, middle]) - middle) / size
        scale = np.sqrt(abs(np.linalg.det(linear)))
        return cls(float(np.degrees(angle)), float(scale), (float(shift[0]), float(shift[1])), float(confidence))


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


def sample_views(pixels: Tensor, to_pixels: Tensor, size: int) -> Tensor:
    """Views (B, C, size, size) of pixels (B, C, H, W), bilinear, mirrored beyond their edges.

    `to_pixels` (B, 2, 3) takes pixels of each view to those of its picture; positions are computed in its precision.
    """
    return _sample_lattice(pixels, to_pixels, torch.arange(size, dtype=to_pixels.dtype, device=to_pixels.device)[None])


def _sample_lattice(pixels: Tensor, to_pixels: Tensor, axis: Tensor) -> Tensor:
    """`sample_views` (B, C, n, n) at view coordinates `axis` (B or 1, n), the same along x and y."""
    extent = torch.tensor([pixels.shape[-1], pixels.shape[-2]], dtype=to_pixels.dtype, device=to_pixels.device)
    to_grid = to_pixels * (2 / extent)[:, None]  # grid_sample has -1 and 1 at the edges of the outermost pixels
    offset = to_grid[:, None, :, 2] + (1 / extent - 1)
    across, down = axis[..., None] * to_grid[:, None, :, 0] + offset, axis[..., None] * to_grid[:, None, :, 1]
    grid = (across[:, None] + down[:, :, None]).to(pixels.dtype)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def random_affines(
    rng: np.random.Generator,
    count: int,
    size: int,
    *,
    rotation: float,
    log_scale: float,
    shear: float,
    shift: float,
) -> Array:
    """Affines (count, 3, 3) about the centre of views of `size` px, from pixels of a moved view to the unmoved one's.

    The rest are standard deviations: rotation in radians, `shear` also of the logarithm of the aspect, `shift` in
    half-sides.
    """
    angle, zoom, aspect, slant = (
        deviation * rng.standard_normal(count) for deviation in (rotation, log_scale, shear, shear)
    )
    offset = shift * size / 2 * rng.standard_normal((count, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.exp(zoom) * np.array([[np.exp(aspect), slant], [slant, np.exp(-aspect)]])
    affines = np.tile(np.eye(3), (count, 1, 1))
    affines[:, :2, :2] = np.einsum("ijn,jkn->nik", turn, stretch)
    centre = np.full(2, (size - 1) / 2)
    affines[:, :2, 2] = centre + offset - affines[:, :2, :2] @ centre
    return affines


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

    def interpolation(self, count: int, size: int) -> Tensor:
        """Weights (size, count), float32: each of `size` input pixels along one axis as a mix of `count` >= 2 cells.

        Linear between neighbouring centres, the outermost cell beyond them: the "half-pixel" resize, at any origin.
        """
        cells = self.to_cells(torch.arange(size, dtype=torch.float64)).clamp(0, count - 1)
        return (1 - (cells[:, None] - torch.arange(count)).abs()).clamp(min=0).float()


def sample_at(maps: Tensor, grid: CellGrid, xy_input: Tensor) -> Tensor:
    """Read maps (B, C, h, w) at points (B, K, 2) in input pixels, bilinearly: (B, K, C).

    Points beyond the outermost cell centres read the nearest place on their hull.
    """
    height, width = maps.shape[-2:]
    extent = torch.tensor([width - 1, height - 1], dtype=xy_input.dtype, device=xy_input.device).clamp(min=1)
    positions = (grid.to_cells(xy_input) * (2 / extent) - 1).to(maps.dtype)
    read = F.grid_sample(maps, positions[:, :, None], mode="bilinear", padding_mode="border", align_corners=True)
    return read[..., 0].transpose(1, 2)


def soft_argmax(heatmaps: Tensor, grid: CellGrid) -> Tensor:
    """Expected place (B, K, 2), input pixels, of heat maps (B, K, h, w) that each sum to one."""
    columns = grid.centres(heatmaps.shape[-1]).to(heatmaps)
    rows = grid.centres(heatmaps.shape[-2]).to(heatmaps)
    return torch.stack([heatmaps.sum(-2) @ columns, heatmaps.sum(-1) @ rows], dim=-1)
