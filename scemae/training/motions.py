"""Known random motions of roughly aligned faces: what the aligner and the positional projection learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scemae.geometry import Array, sample_views
from scemae.training.config import MotionConfig
from scemae.training.data import INPUT, Pack


def random_motions(numbers: np.random.Generator, count: int, config: MotionConfig, amplitude: float) -> Array:
    """Affines (count, 3, 3) about the view's centre, from pixels of a moved view to those of the unmoved one."""
    angle, log_scale, aspect, shear = (
        amplitude * deviation * numbers.standard_normal(count)
        for deviation in (config.rotation, config.log_scale, config.shear, config.shear)
    )
    shift = amplitude * config.shift * INPUT / 2 * numbers.standard_normal((count, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.exp(log_scale) * np.array([[np.exp(aspect), shear], [shear, np.exp(-aspect)]])
    motions = np.tile(np.eye(3), (count, 1, 1))
    motions[:, :2, :2] = np.einsum("ijn,jkn->nik", turn, stretch)
    centre = np.full(2, (INPUT - 1) / 2)
    motions[:, :2, 2] = centre + shift - motions[:, :2, :2] @ centre
    return motions


def move_points(motions: Array, xy: Array) -> Array:
    """Points (P, 2) or (n, P, 2) through affines (n, 3, 3): (n, P, 2)."""
    moved: Array = xy @ motions[:, :2, :2].swapaxes(1, 2) + motions[:, None, :2, 2]
    return moved


@dataclass(frozen=True, eq=False)
class MovedViews:
    """Views (n, 3, 96, 96), 0..1, of faces whose motions (n, 3, 3), moved to unmoved pixels, are known."""

    views: Tensor
    motions: Array

    def seen_at(self, xy: Array) -> Array:
        """Where points (P, 2) of the unmoved view lie in each moved one, (n, P, 2)."""
        return move_points(np.linalg.inv(self.motions), xy)


def moved_views(
    pack: Pack, rows: NDArray[np.int64], numbers: np.random.Generator, config: MotionConfig, amplitude: float
) -> MovedViews:
    """The faces of these rows, each moved, half of them mirrored first, in another light."""
    motions = random_motions(numbers, len(rows), config, amplitude)
    flips = np.tile(np.eye(3), (len(rows), 1, 1))
    flips[numbers.random(len(rows)) < 0.5, 0] = (-1, 0, INPUT - 1)
    to_square = torch.from_numpy((pack.central @ flips @ motions)[:, :2])
    contrast, brightness = numbers.standard_normal((2, len(rows), 1, 1, 1)).astype(np.float32)
    views = sample_views(pack.pixels(rows), to_square, INPUT)
    light = (views - 0.5) * torch.from_numpy(np.exp(config.log_contrast * contrast)) + 0.5
    return MovedViews((light + torch.from_numpy(config.brightness * brightness)).clamp(0, 1), motions)
