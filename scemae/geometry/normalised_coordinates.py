"""Coordinates of a square of `size` px that do not depend on its size.

*Half-sides* are -1..1 between the outer edges of the outermost pixels, *unit* coordinates between their centres.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scemae.geometry.affine import Array


def half_sides_to_pixels(half_sides: ArrayLike, size: int) -> Array:
    """Places in half-sides of a square (-1..1, its pixel edges at the ends) as pixels of its `size`."""
    return (np.asarray(half_sides, dtype=np.float64) + 1) * (size / 2) - 0.5


def pixels_to_half_sides(pixels: ArrayLike, size: int) -> Array:
    """Undoes `half_sides_to_pixels`."""
    return (np.asarray(pixels, dtype=np.float64) + 0.5) * (2 / size) - 1


def half_side_to_pixel_affines(affines: Tensor, size: int, new_size: int) -> Tensor:
    """Affines (B, 2, 3) from half-sides of one square to those of another, as from pixels of `size` to `new_size`."""
    linear, shift = affines[..., :2], affines[..., 2]
    origin = (linear.sum(-1) * (1 / size - 1) + shift + 1) * (new_size / 2) - 0.5
    return torch.cat([linear * (new_size / size), origin[..., None]], dim=-1)


def pixels_to_unit(pixels: Tensor, size: int) -> Tensor:
    """Pixels of a square of `size` px as unit coordinates (-1..1, the centres of its outermost pixels at the ends)."""
    return 2 * pixels / (size - 1) - 1


def unit_to_pixels(unit: Tensor, size: int) -> Tensor:
    """Undoes `pixels_to_unit`."""
    return (unit + 1) * (size - 1) / 2
