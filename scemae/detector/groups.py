"""Which annotated faces belong together: one person's, one video's, or the same picture given twice."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scemae.errors import OptionError
from scemae.features import Face
from scemae.geometry import sample_view

THUMBNAIL = 16  # px a side, of what the model saw of a face
SAME = 0.5 / 255  # root mean square difference of two thumbnails: below it they show the same picture
ROWS = 1024  # thumbnails that are compared with all others at a time


def group_faces(faces: Sequence[Face], groups: Any = None) -> NDArray[np.int64]:
    """The group of each of n faces, (n,), numbered from 0 in the order of the faces.

    Faces with the same label in `groups` are one group, and so are those that show the same pixels at the same crop.
    A face is on its own without `groups`, or if its label is None, nan or empty.
    Raises OptionError where `groups` is not one label per face.
    """
    numbers = _number_labels(groups, len(faces))
    for face, twin in enumerate(_find_first_twins(faces)):
        joined = numbers[[face, twin]]
        numbers[np.isin(numbers, joined)] = joined.min()
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def _number_labels(groups: Any, count: int) -> NDArray[np.int64]:
    """For each face the first one with its label."""
    if groups is None:
        return np.arange(count)
    labels = np.asarray(groups, dtype=object)
    if labels.shape != (count,):
        given = f"of shape {labels.shape}" if labels.ndim else repr(groups)
        raise OptionError(f"groups is {given}; wanted one label per face, here {count}, such as the person's name.")
    first: dict[Hashable, int] = {}
    try:
        return np.array([i if _is_missing(label) else first.setdefault(label, i) for i, label in enumerate(labels)])
    except TypeError as error:
        raise OptionError(f"groups cannot be compared ({error}); wanted a text or a number per face.") from error


def _is_missing(label: Any) -> bool:
    return label is None or label == "" or (isinstance(label, float) and np.isnan(label))


def _find_first_twins(faces: Sequence[Face]) -> list[int]:
    """For each face the first one, maybe itself, that shows the same picture."""
    views = torch.stack([sample_view(face.patch, face.crop.resample(THUMBNAIL)).flatten() for face in faces]).double()
    limit = SAME * views.shape[1] ** 0.5
    twins: list[int] = []
    for rows in views.split(ROWS):
        same = torch.cdist(rows, views) < limit
        twins += same.int().argmax(dim=1).tolist()  # the first True
    return twins
