"""The length that a face's errors are divided by, so that errors on large and small faces are comparable (NME)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scemae.errors import LandmarkInputError
from scemae.features import Face
from scemae.landmark_input import landmark_pair
from scemae.metrics import box_diagonal, distance_between

Normalizer = tuple[str, str] | tuple[int, int] | None
NOWHERE = "landmarks {} and {} of the normalizer coincide or are not annotated together on any face."


def normalizer_lengths(
    normalizer: Normalizer, xy: NDArray[np.float64], names: Sequence[str] | None, faces: Sequence[Face]
) -> NDArray[np.float64]:
    """The normalizer (n,) of faces with landmarks (n, K, 2), both image px; nan where it is not annotated.

    See `fit_regressor` for what it is. Raises LandmarkInputError if no face has it.
    """
    if normalizer is not None:
        first, second = landmark_pair(normalizer, names, xy.shape[1], "normalizer")
        lengths = distance_between(xy, first, second)
    elif xy.shape[1] == 1:
        lengths = np.array([face.crop.size * face.crop.scale for face in faces])
    else:
        lengths = box_diagonal(xy)
    if not (lengths > 0).any():
        raise LandmarkInputError(
            "The error cannot be normalised: "
            + ("no face has two annotated landmarks." if normalizer is None else NOWHERE.format(*normalizer))
        )
    return np.where(lengths > 0, lengths, np.nan)
