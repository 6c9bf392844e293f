"""The pairs of the landmark-matching protocol: faces warped once and twice, with their landmarks (paper Sec. 4.1).

As in the code of DVE and CL: of two neighbours in the dataset the first is warped twice and is the source. Each of the
two, warped once, is a target: the same face, and a different face. All this happens in a frame of 136 px, whose central
96 px are the input. Each warp rounds the landmarks to whole pixels.
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
from scemae.images import iter_photos
from scemae.output import atomic_write
from scemae.patches import cut_square, validate_box
from scemae.warps import Warps, draw_warps

FRAME, INSET, INPUT = 136, 20, 96  # px: side of the warped frame, its border, side of the input within the border
BOX = (INSET, INSET, INSET + INPUT, INSET + INPUT)  # of the input in the frame, pixel edges
Source = Literal["twice", "original"]
BATCH = 16  # faces warped together


@dataclass(frozen=True, eq=False, kw_only=True)
class WarpedPairs:
    """N faces of a dataset, in pairs, and how they are warped.

    Attributes:
        dataset: the N faces.
        first_warps: the N warps that all faces go through.
        second_warps: the N warps that the sources go through afterwards.
        landmarks: (3, N, K, 2), unwarped, warped once and warped twice; frame px.
    """

    dataset: FaceDataset
    first_warps: Warps
    second_warps: Warps
    landmarks: Array

    def __len__(self) -> int:
        return len(self.dataset) // 2

    def warp_frames(self, faces: list[int], times: int) -> list[Array]:
        """Frames (136, 136, 3) uint8 of the faces with these indices, warped 0, 1 or 2 times."""
        frames = np.stack([_cut_frame(self.dataset.samples[i])[0] for i in faces])
        images = torch.from_numpy(frames).permute(0, 3, 1, 2).double()
        for warps in (self.first_warps, self.second_warps)[:times]:
            images = Warps(warps.weights[faces]).images(images)
        return list(images.round().byte().permute(0, 2, 3, 1).numpy())

    def find_correct_pixels(self, face: int, times: int) -> Array:
        """The whole pixels (K, 2) of a face warped once that show what its landmarks warped `times` times show.

        Their distance from the landmarks warped once, which are rounded, is the error of a perfect matcher. Frame px.
        """
        first, second = (Warps(warps.weights[[face]]) for warps in (self.first_warps, self.second_warps))
        labels = torch.from_numpy(self.landmarks[times, [face]])
        if times == 0:
            exact = first.landmarks(labels, FRAME)
        else:  # from a place in the image warped twice, -1..1, to its place in the image warped once
            exact = unit_to_pixels(second.source(pixels_to_unit(labels, FRAME)), FRAME)
        return exact[0].round().clamp(INSET, INSET + INPUT - 1).numpy()

    def save(self, path: Path) -> None:
        """Write warps and landmarks as float64, no pixels."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, once=self.first_warps.weights, twice=self.second_warps.weights, landmarks=self.landmarks)


def draw_pairs(dataset: FaceDataset, count: int, seed: int, rounded: bool = True) -> WarpedPairs:
    """Random warps of the first 2 `count` faces; those of face i depend on (seed, i) only.

    `rounded=False` keeps landmarks exact, unlike the protocol.
    """
    faces = dataset[: 2 * count]
    seeds = [2 * (1_000_003 * seed + i) for i in range(len(faces))]
    first_warps, second_warps = draw_warps(seeds), draw_warps([number + 1 for number in seeds])
    unwarped = np.stack([_cut_frame(sample)[1] for sample in faces.samples])
    once = _warp_landmarks(first_warps, torch.from_numpy(unwarped), rounded)
    twice = _warp_landmarks(second_warps, once, rounded)
    landmarks = np.stack([np.round(unwarped) if rounded else unwarped, once.numpy(), twice.numpy()])
    return WarpedPairs(dataset=faces, first_warps=first_warps, second_warps=second_warps, landmarks=landmarks)


def load_or_draw_pairs(path: Path, dataset: FaceDataset, count: int, seed: int, rounded: bool) -> WarpedPairs:
    """The pairs in a file; if there is no such file they are drawn and saved there."""
    if not path.exists():
        pairs = draw_pairs(dataset, count, seed, rounded)
        pairs.save(path)
        return pairs
    try:
        with np.load(path) as arrays:
            return WarpedPairs(
                dataset=dataset[: 2 * count],
                first_warps=Warps(torch.from_numpy(arrays["once"])),
                second_warps=Warps(torch.from_numpy(arrays["twice"])),
                landmarks=arrays["landmarks"],
            )
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}). Choose another --out, or pass --overwrite.") from error


def _warp_landmarks(warps: Warps, landmarks: Tensor, rounded: bool) -> Tensor:
    parts = [
        Warps(weights).landmarks(xy, FRAME, rounded=rounded)
        for weights, xy in zip(warps.weights.split(BATCH), landmarks.split(BATCH), strict=True)
    ]
    return torch.cat(parts)


def _cut_frame(sample: Sample) -> tuple[Array, Array]:
    """The 136 px square around the model's box, and the landmarks in it."""
    photo = next(iter_photos(sample.image()))
    crop = Crop.from_box(validate_box(sample.box, photo), INPUT)
    return cut_square(photo.image, crop, FRAME), crop.to_input(sample.landmarks) + INSET
