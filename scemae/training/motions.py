"""Known random motions of roughly aligned faces: what the aligner and the positional projection learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scemae.geometry import Array, random_affines, sample_views
from scemae.training.pack import INPUT, Pack
from scemae.training.run_config import MotionConfig


def random_motions(rng: np.random.Generator, count: int, config: MotionConfig, amplitude: float) -> Array:
    """Affines (count, 3, 3) about the view's centre, from pixels of a moved view to those of the unmoved one."""
    deviations = ("rotation", "log_scale", "shear", "shift")
    return random_affines(rng, count, INPUT, **{name: amplitude * getattr(config, name) for name in deviations})


def move_points(motions: Array, xy: Array) -> Array:
    """Points (P, 2) or (n, P, 2) through affines (n, 3, 3): (n, P, 2)."""
    moved: Array = xy @ motions[:, :2, :2].swapaxes(1, 2) + motions[:, None, :2, 2]
    return moved


@dataclass(frozen=True, eq=False)
class Moves:
    """What is done to n faces: motions (n, 3, 3), moved to unmoved pixels; which are mirrored first; their light."""

    motions: Array
    mirrored: NDArray[np.bool_]
    contrast: NDArray[np.float32]
    brightness: NDArray[np.float32]

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, config: MotionConfig, amplitude: float) -> Moves:
        """Random ones, half of them mirrored."""
        motions = random_motions(rng, count, config, amplitude)
        mirrored = rng.random(count) < 0.5
        contrast, brightness = rng.standard_normal((2, count)).astype(np.float32)
        return cls(motions, mirrored, np.exp(config.log_contrast * contrast), config.brightness * brightness)

    def part(self, chosen: slice) -> Moves:
        """Those of some of the faces."""
        return Moves(self.motions[chosen], self.mirrored[chosen], self.contrast[chosen], self.brightness[chosen])

    def views(self, pack: Pack, rows: NDArray[np.int64]) -> Tensor:
        """Views (n, 3, 96, 96), 0..1, of n faces of a pack."""
        flips = np.tile(np.eye(3), (len(rows), 1, 1))
        flips[self.mirrored, 0] = (-1, 0, INPUT - 1)
        to_square = torch.from_numpy((pack.central @ flips @ self.motions)[:, :2])
        contrast, brightness = (torch.from_numpy(light).view(-1, 1, 1, 1) for light in (self.contrast, self.brightness))
        return ((sample_views(pack.pixels(rows), to_square, INPUT) - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)

    def to_moved(self, xy: Array) -> Array:
        """Where points (P, 2) of the unmoved views lie in the moved ones, (n, P, 2)."""
        return move_points(np.linalg.inv(self.motions), xy)

    def to_unmoved(self, xy: Array) -> Array:
        """Where points (P, 2) of the moved views lie in the unmoved ones, (n, P, 2)."""
        return move_points(self.motions, xy)


def token_centres(grid: int) -> Array:
    """Centres (grid * grid, 2) of the patches of a view, input px, row by row."""
    axis = (np.arange(grid) + 0.5) * (INPUT / grid) - 0.5
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
