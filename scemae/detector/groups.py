"""Which annotated faces belong together: the same picture given twice, one person's pictures, one video's frames."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scemae.errors import OptionError
from scemae.features import Face, FaceFeatures
from scemae.geometry import sample_view

THUMBNAIL = 16  # px a side, of what the model saw of a face
SAME = 0.5 / 255  # root mean square difference of two thumbnails: below it they show the same picture
ROWS = 1024  # thumbnails that are compared with all others at a time


def number_pictures(faces: Sequence[Face]) -> NDArray[np.int64]:
    """The picture of each of n faces, (n,), from 0: faces that show the same pixels at the same crop have the same."""
    views = torch.stack([sample_view(face.patch, face.crop.resample(THUMBNAIL)).flatten() for face in faces]).double()
    limit = SAME * views.shape[1] ** 0.5
    # For each face the first one, maybe itself, that looks the same: `argmax` finds the first True.
    firsts = torch.cat([(torch.cdist(rows, views) < limit).int().argmax(dim=1) for rows in views.split(ROWS)])
    firsts = firsts[firsts]  # where a is like b, and b like c, but a not quite like c
    return _renumber(firsts.numpy())


def group_pictures(pictures: NDArray[np.int64], groups: Any = None) -> NDArray[np.int64]:
    """The group of each of m pictures, (m,), from 0, for n faces that show `pictures` and have labels `groups`.

    Pictures with the same label are one group. A picture is on its own without `groups`, or if its labels are None, nan
    or empty. Raises OptionError where `groups` is not one label per face.
    """
    found = _number_labels(groups, len(pictures))
    for number in np.unique(pictures):  # copies with several labels join these
        joined = found[pictures == number]
        found[np.isin(found, joined)] = joined.min()
    return _renumber(found[_first_rows(pictures)])


def merge_copies(
    features: FaceFeatures, xy: NDArray[np.float64], pictures: NDArray[np.int64]
) -> tuple[FaceFeatures, NDArray[np.float64]]:
    """Each of m pictures once: features, and the mean (m, K, 2) of the landmarks (n, K, 2) on its copies, image px."""
    rows = _first_rows(pictures)
    if len(rows) == len(pictures):
        return features, xy
    shapes, once = features.to_input(xy), features[rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no copy has that landmark: it stays nan
        means = np.stack([np.nanmean(shapes[pictures == number], axis=0) for number in range(len(rows))])
    return once, once.to_image(means)


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


def _first_rows(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each number comes first, (m,), by number."""
    return np.unique(numbers, return_index=True)[1]


def _renumber(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same numbers from 0, without gaps, in their order."""
    return np.unique(numbers, return_inverse=True)[1]
