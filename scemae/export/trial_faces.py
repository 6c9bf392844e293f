"""Faces to measure parity on: the two sample faces, seen in many ways."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from scemae.geometry import Crop, sample_view
from scemae.images import cut_patch
from scemae.samples import sample_faces

TURN, ZOOM, SHIFT = 20.0, 0.15, 0.1  # degrees, natural logarithm, sides of the box: as far off as a detector's box is


def trial_faces(count: int, side: int, margin: int) -> NDArray[np.uint8]:
    """`count` RGB pictures (count, 3, S, S) of the sample faces, turned, zoomed, shifted, mirrored, lit otherwise.

    The box of each is the inner `side` px; `margin` px more on each side make S.
    """
    random = np.random.default_rng(0)
    photos = [(Image.open(face.path).convert("RGB"), face.box) for face in sample_faces()]
    pictures = np.empty((count, 3, side + 2 * margin, side + 2 * margin), dtype=np.uint8)
    for index, picture in enumerate(pictures):
        photo, box = photos[index % len(photos)]
        crop = Crop.from_box(box, side).refine(_motion(side, random))
        crop = (crop.mirror() if random.random() < 0.5 else crop).pad(margin)
        view = sample_view(cut_patch(photo, crop), crop)
        lit = view * random.uniform(0.7, 1.2) + random.uniform(-0.1, 0.1)
        picture[:] = (lit.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return pictures


def _motion(side: int, random: np.random.Generator) -> NDArray[np.float64]:
    """A random similarity (2, 3) about the middle of a square of `side` px."""
    angle, zoom = np.radians(random.uniform(-TURN, TURN)), np.exp(random.uniform(-ZOOM, ZOOM))
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.full(2, (side - 1) / 2)
    return np.column_stack([linear, middle - linear @ middle + side * random.uniform(-SHIFT, SHIFT, 2)])
