"""Landmark errors: in pixels, and normalised by the inter-ocular distance (IOD) or another length.

The field's NME (normalised mean error), in percent, is 100 times the mean of `normalised_errors`. Landmarks are
(B, K, 2), nan where not annotated; the name of each argument ends in its unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scemae.errors import LandmarkInputError

Array = NDArray[Any]


def fill_masked(values: Any) -> Any:
    """The values; of a masked array an array with nan where it is masked. numpy drops the mask without a word."""
    return np.ma.filled(values.astype(np.float64), np.nan) if isinstance(values, np.ma.MaskedArray) else values


def pixel_errors(found_px: Array, truth_px: Array) -> Array:
    """Distance (B, K) of each landmark from the ground truth, in the pixels that both are given in."""
    return np.linalg.norm(fill_masked(found_px - truth_px), axis=-1)


def distance_between(landmarks_px: Array, first: int, second: int) -> Array:
    """Distance (B,) between two landmarks, pixels; between the eyes it is the inter-ocular distance (IOD)."""
    return np.linalg.norm(fill_masked(landmarks_px[:, first] - landmarks_px[:, second]), axis=-1)


def box_diagonal(landmarks_px: Array) -> Array:
    """Diagonal (B,) of the upright box around each face's annotated landmarks, pixels."""
    landmarks_px = fill_masked(landmarks_px)
    extent = np.nanmax(landmarks_px, axis=1) - np.nanmin(landmarks_px, axis=1)
    return np.linalg.norm(extent, axis=-1)


def normalised_errors(found_px: Array, truth_px: Array, normalizer_px: Array) -> Array:
    """Error (B, K) of each landmark as a fraction of `normalizer_px` (B,); 100 times their mean is the NME in %."""
    normalizer_px = fill_masked(normalizer_px)
    if not (normalizer_px > 0).all():
        raise LandmarkInputError(
            "The error cannot be normalised: the two landmarks of the normalizer coincide or are not annotated "
            f"on face {int(np.argmin(normalizer_px > 0))}."
        )
    return pixel_errors(found_px, truth_px) / normalizer_px[:, None]


def error_unit(normalizer: Sequence[str] | Sequence[int] | None, landmarks: int) -> str:
    """In words, the length that errors of a detector of K landmarks are divided by."""
    if normalizer is not None:
        return "the distance of landmarks {}, {}".format(*normalizer)
    return "the landmarks' diagonal" if landmarks > 1 else "the side of the square that the model saw"
