"""The pairs of the landmark-matching protocol: faces warped once and twice, with their landmarks (paper Sec. 4.1).

As in the code of DVE and CL: of two neighbours in the data set the first is warped twice and is the source, and each of
them is warped once and is a target, of the same face and of a different one. All happens in the 136 px frame of which
the central 96 px are the input; landmarks are rounded to whole pixels by each warp.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scemae.datasets import FaceDataset, Sample
from scemae.errors import RunError
from scemae.geometry import Array, Crop, pixels_to_unit, unit_to_pixels
from scemae.images import cut_square, iter_photos, validate_box
from scemae.output import atomic_write
from scemae.warps import Warps, draw_warps

FRAME, INSET, INPUT = 136, 20, 96  # px: the warped square, what is cut off on each side, what is left
BOX = (INSET, INSET, INSET + INPUT, INSET + INPUT)  # of the input in the frame, pixel edges
Source = Literal["twice", "original"]
BATCH = 16


@dataclass(frozen=True, eq=False)
class Pairs:
    """N faces of a data set, two by two. `landmarks` (3, N, K, 2): unwarped, warped once, warped twice; frame px."""

    dataset: FaceDataset
    once: Warps
    twice: Warps
    landmarks: Array

    def __len__(self) -> int:
        return len(self.dataset) // 2

    def pictures(self, indices: list[int], times: int) -> list[Array]:
        """Frames (136, 136, 3) uint8 of the faces with those numbers, warped that many times."""
        frames = np.stack([_frame(self.dataset.samples[i])[0] for i in indices])
        images = torch.from_numpy(frames).permute(0, 3, 1, 2).double()
        for warps in (self.once, self.twice)[:times]:
            images = Warps(warps.weights[indices]).images(images)
        return list(images.round().byte().permute(0, 2, 3, 1).numpy())

    def perfect(self, face: int, times: int) -> Array:
        """The whole pixels (K, 2), frame px, of a face warped once that show what its landmarks warped `times` do.

        Not quite the landmarks warped once: all of them are rounded. What is left is the least error of a match.
        """
        once, twice = (Warps(warps.weights[[face]]) for warps in (self.once, self.twice))
        labels = torch.from_numpy(self.landmarks[times, [face]])
        if times == 0:
            exact = once.landmarks(labels, FRAME)
        else:  # a place of the second warp's picture, in -1..1, comes from this place of the first one's
            exact = unit_to_pixels(twice.source(pixels_to_unit(labels, FRAME)), FRAME)
        return exact[0].round().clamp(INSET, INSET + INPUT - 1).numpy()

    def save(self, path: Path) -> None:
        """Freeze warps and landmarks, no pixels, as float64."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, once=self.once.weights, twice=self.twice.weights, landmarks=self.landmarks)


def draw_pairs(dataset: FaceDataset, count: int, seed: int, rounded: bool = True) -> Pairs:
    """The first 2 `count` faces. The warps of face i are a function of (seed, i) alone.

    `rounded=False` keeps landmarks exact, unlike the protocol.
    """
    faces = dataset[: 2 * count]
    base = [2 * (1_000_003 * seed + i) for i in range(len(faces))]
    once, twice = draw_warps(base), draw_warps([number + 1 for number in base])
    plain = np.stack([_frame(sample)[1] for sample in faces.samples])
    first = _moved(once, torch.from_numpy(plain), rounded)
    second = _moved(twice, first, rounded)
    return Pairs(faces, once, twice, np.stack([np.round(plain) if rounded else plain, first.numpy(), second.numpy()]))


def frozen_pairs(path: Path, dataset: FaceDataset, count: int, seed: int, rounded: bool) -> Pairs:
    """The pairs of a file; where there is none they are drawn, and frozen there."""
    if not path.exists():
        pairs = draw_pairs(dataset, count, seed, rounded)
        pairs.save(path)
        return pairs
    try:
        with np.load(path) as arrays:
            once, twice = (Warps(torch.from_numpy(arrays[name])) for name in ("once", "twice"))
            return Pairs(dataset[: 2 * count], once, twice, arrays["landmarks"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}). Choose another --out, or pass --overwrite.") from error


def _moved(warps: Warps, landmarks: Tensor, rounded: bool) -> Tensor:
    parts = [
        Warps(weights).landmarks(xy, FRAME, rounded=rounded)
        for weights, xy in zip(warps.weights.split(BATCH), landmarks.split(BATCH), strict=True)
    ]
    return torch.cat(parts)


def _frame(sample: Sample) -> tuple[Array, Array]:
    """The 136 px square around the model's box, and the landmarks in it."""
    photo = next(iter_photos(sample.image()))
    crop = Crop.from_box(validate_box(sample.box, photo), INPUT)
    return cut_square(photo.image, crop, FRAME), crop.to_input(sample.landmarks) + INSET
