"""Faces to measure parity on: many versions of the two sample faces."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from scemae.geometry import Crop, sample_view, similarity
from scemae.patches import cut_patch
from scemae.samples import sample_faces

TURN, ZOOM, SHIFT = 20.0, 0.15, 0.1  # degrees, natural logarithm, sides of the box: as inexact as a face detector's box


def trial_faces(count: int, side: int, margin: int) -> NDArray[np.uint8]:
    """RGB images (count, 3, S, S) of the sample faces: rotated, zoomed, shifted, mirrored, in other light.

    The box of each is the inner `side` px; S = side + 2 margin.
    """
    rng = np.random.default_rng(0)
    photos = [(Image.open(face.path).convert("RGB"), face.box) for face in sample_faces()]
    images = np.empty((count, 3, side + 2 * margin, side + 2 * margin), dtype=np.uint8)
    for index, image in enumerate(images):
        photo, box = photos[index % len(photos)]
        crop = Crop.from_box(box, side).refine(_random_similarity(side, rng))
        crop = (crop.mirror() if rng.random() < 0.5 else crop).pad(margin)
        view = sample_view(cut_patch(photo, crop), crop)
        lit = view * rng.uniform(0.7, 1.2) + rng.uniform(-0.1, 0.1)
        image[:] = (lit.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return images


def _random_similarity(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random similarity (2, 3) about the middle of a square of `side` px."""
    angle, zoom = np.radians(rng.uniform(-TURN, TURN)), np.exp(rng.uniform(-ZOOM, ZOOM))
    return similarity(angle, zoom, np.full(2, (side - 1) / 2), side * rng.uniform(-SHIFT, SHIFT, 2))
