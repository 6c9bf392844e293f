"""Affines: (2, 3) float64 matrices that act on column vectors (x, y, 1); the batched ones of torch are (B, 2, 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[Any]
IDENTITY = np.eye(3)[:2]


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
    return np.linalg.lstsq(design, np.asarray(target, dtype=np.float64), rcond=None)[0].T


def fit_similarity(source: ArrayLike, target: ArrayLike) -> Array:
    """Least-squares (2, 3) rotation, scale and shift that takes points `source` (K, 2) to `target` (K, 2)."""
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    before, after = source - source.mean(axis=0), target - target.mean(axis=0)
    along = (before * after).sum() / (before**2).sum()
    across = (before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]).sum() / (before**2).sum()
    linear = np.array([[along, -across], [across, along]])
    return np.column_stack([linear, target.mean(axis=0) - linear @ source.mean(axis=0)])


def similarity(rotation: float, scale: float, centre: Array, shift: Array) -> Array:
    """The (2, 3) affine that rotates by `rotation` radians and scales about `centre` (x, y), then moves by `shift`."""
    linear = scale * np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    return np.column_stack([linear, centre - linear @ centre + shift])


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
    """Random affines (count, 3, 3) about the centre of views of `size` px, from moved to unmoved pixels.

    The other arguments are standard deviations: `rotation` in radians, `log_scale` of the logarithm of the scale,
    `shear` also of the logarithm of the aspect, `shift` in half-sides.
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


def apply_affines(affines: Tensor, xy: Tensor) -> Tensor:
    """Map points (B, K, 2) through affines (B, 2, 3): (B, K, 2)."""
    return xy @ affines[..., :2].transpose(1, 2) + affines[..., 2][:, None]


def compose_affines(outer: Tensor, inner: Tensor) -> Tensor:
    """The affines (B, 2, 3) that apply `inner` first, then `outer`."""
    return outer[..., :2] @ inner + outer * outer.new_tensor([0.0, 0.0, 1.0])


def invert_affines(affines: Tensor) -> Tensor:
    """The affines (B, 2, 3) that undo these."""
    linear = torch.linalg.inv(affines[..., :2])
    return torch.cat([linear, -linear @ affines[..., 2:]], dim=-1)


def determinants(affines: Tensor) -> Tensor:
    """Determinants (B,) of the linear parts of affines (B, 2, 3)."""
    return affines[:, 0, 0] * affines[:, 1, 1] - affines[:, 0, 1] * affines[:, 1, 0]
