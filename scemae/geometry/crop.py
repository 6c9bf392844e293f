"""Crops: image pixels to input pixels and back, where the model sees a face, and what alignment did to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scemae.geometry.affine import Array, apply_affine, compose, invert

Box = tuple[float, float, float, float]
FRAME, CENTRAL = 136, 96  # "resize to 136, crop the central 96": the protocol's framing (paper Sec. 4, after DVE)


def central_box(width: int, height: int, *, central: int = CENTRAL, frame: int = FRAME) -> Box:
    """The central 96/136 of the largest centred square of an image, or `central` / `frame` of it."""
    half = min(width, height) * central / frame / 2
    return (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)


def central_part(left: float, top: float, side: float) -> Box:
    """The central 96/136 of the square with that top left corner (pixel edges) and side."""
    inset = side * ((FRAME - CENTRAL) / 2) / FRAME
    return (left + inset, top + inset, left + side - inset, top + side - inset)


HELD = 1.3  # a square holds landmarks that lie in it enlarged so much: brows lie on its edge


def holding_box(boxes: ArrayLike, xy: ArrayLike) -> int | None:
    """The row of the box, of (N, 4), whose square holds most of the landmarks (K, 2), image px; None if none does.

    Of several it is the one whose middle is the nearest to theirs, in its sides. Landmarks that are nan do not count.
    """
    corners, points = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2), np.asarray(xy, dtype=np.float64)
    points = points[np.isfinite(points).all(axis=-1)]
    sides = np.ptp(corners, axis=1).max(axis=-1)
    # (N, K, 2) from the middle of each box, in its sides.
    places = (points - (corners.mean(axis=1) - 0.5)[:, None]) / sides[:, None, None]
    holds = (np.abs(places).max(axis=-1) <= HELD / 2).sum(axis=1) > len(points) / 2
    if not holds.any():
        return None
    distances = np.linalg.norm(places.mean(axis=1), axis=-1)
    return int(np.where(holds, distances, np.inf).argmin())


@dataclass(frozen=True, eq=False)
class Crop:
    """A square of `size` pixels and the affine (2, 3) that takes its pixels to image pixels, float64."""

    to_image_affine: Array
    size: int = CENTRAL

    @classmethod
    def from_box(cls, box: Box, size: int = CENTRAL) -> Crop:
        """The crop that shows `box` = (x0, y0, x1, y1), pixel edges in image pixels, extended to a square."""
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
    def centre(self) -> Array:
        """The middle of the crop, (x, y) in image pixels."""
        return self.to_image([(self.size - 1) / 2] * 2)

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
        """The same square with left and right exchanged."""
        return self.refine(np.array([[-1.0, 0.0, self.size - 1.0], [0.0, 1.0, 0.0]]))

    def resample(self, size: int) -> Crop:
        """The same square with `size` pixels a side."""
        scale = self.size / size
        shift = scale / 2 - 0.5
        return Crop(self.refine(np.array([[scale, 0, shift], [0, scale, shift]])).to_image_affine, size)

    def pad(self, margin: int) -> Crop:
        """The same crop with `margin` more pixels on each side."""
        shift = np.array([[1.0, 0.0, -margin], [0.0, 1.0, -margin]])
        return Crop(compose(self.to_image_affine, shift), self.size + 2 * margin)


def crops_from_boxes(boxes: Tensor, size: int) -> Tensor:
    """`Crop.from_box` of boxes (B, 4) in torch: affines (B, 2, 3) from the pixels of crops of `size` px."""
    scale = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)[:, None, None] / size
    centre = (boxes[:, :2] + boxes[:, 2:])[:, :, None] / 2 - 0.5
    return torch.cat([torch.eye(2, dtype=boxes.dtype) * scale, centre - scale * (size - 1) / 2], dim=2)


def pad_crops(crops: Tensor, margin: int) -> Tensor:
    """`Crop.pad` of affines (B, 2, 3) in torch."""
    origin = crops[..., 2] - margin * crops[..., 0] - margin * crops[..., 1]
    return torch.cat([crops[..., :2], origin[..., None]], dim=2)


def resample_crops(crops: Tensor, size: int, new_size: int) -> Tensor:
    """`Crop.resample` of affines (B, 2, 3) in torch: of crops of `size` px to `new_size` px."""
    scale = size / new_size
    origin = crops[..., 2] + (scale / 2 - 0.5) * (crops[..., 0] + crops[..., 1])
    return torch.cat([crops[..., :2] * scale, origin[..., None]], dim=2)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What alignment did to one face, relative to the crop it started from.

    Attributes:
        rotation: by how much the face was rotated in the image, degrees, positive clockwise as seen.
        scale: side of the aligned square over that of the start.
        shift: (x, y) from the start's centre to the new one, in sides of the start.
    """

    rotation: float
    scale: float
    shift: tuple[float, float]

    @classmethod
    def of(cls, affine: Array, size: int) -> Alignment:
        """What an affine (2, 3), pixels of the aligned crop to pixels of the start, both of `size` px, does."""
        linear = affine[:, :2]
        # The rotation nearest to the linear part (its polar factor): shear and aspect do not count as turning.
        angle = np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])
        middle = (size - 1) / 2
        x, y = (apply_affine(affine, [middle, middle]) - middle) / size
        return cls(
            rotation=float(np.degrees(angle)),
            scale=float(np.sqrt(abs(np.linalg.det(linear)))),
            shift=(float(x), float(y)),
        )
