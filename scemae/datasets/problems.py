"""What may be wrong with a data set, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from scemae.datasets.sample import FaceDataset, Sample

SHOWN = 3  # examples in a message
OUTSIDE = 0.01  # part of the faces that may have a label outside their picture; more is a mistake
CLOSE_EYES = 1.0  # px: nearer to each other they are no normalizer


def count(samples: Sequence[Sample], expected: int) -> list[str]:
    """A split of another size than it has."""
    return [] if len(samples) == expected else [f"its lists name {len(samples):,} faces, wanted {expected:,}"]


def missing(samples: Sequence[Sample]) -> list[str]:
    """Pictures and labels that are not there, and pictures of another size (the first one stands for all)."""
    problems = []
    absent = [str(sample.path) for sample in samples if not sample.path.exists()]
    if absent:
        problems.append(f"{len(absent):,} of {len(samples):,} pictures are missing: {shown(absent)}")
    unlabelled = [str(sample.path) for sample in samples if not _labelled(sample)]
    if unlabelled:
        problems.append(f"{len(unlabelled):,} of {len(samples):,} pictures have no labels: {shown(unlabelled)}")
    first = next((sample for sample in samples if sample.path.exists()), None)
    return problems + (wrong_size(first) if first is not None else [])


def wrong_size(sample: Sample) -> list[str]:
    """What is wrong with a picture, by its header."""
    try:
        with Image.open(sample.path) as image:
            size = image.size
    except (OSError, SyntaxError, ValueError) as error:
        return [f"{sample.path} is no picture that can be read ({error})"]
    if sample.size is not None and size != sample.size:
        return [f"{sample.path} has {size[0]} x {size[1]} px, wanted {sample.size[0]} x {sample.size[1]}"]
    return []


def labels_outside(samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """Labels outside their picture, where its size is known: a problem if they are many, else a note."""
    outside = [str(sample.path) for sample in samples if _outside(sample)]
    text = f"{len(outside):,} of {len(samples):,} faces have labels outside their picture: {shown(outside)}"
    if len(outside) > OUTSIDE * len(samples):
        return [f"{text}. Are they pixels of these pictures?"], []
    return [], [f"{text}. These labels are not fitted on."] if outside else []


def implausible(dataset: FaceDataset) -> list[str]:
    """Labels that cannot be right, as far as they tell without the pictures."""
    if not dataset.samples:
        return []
    xy, (left, right) = dataset.landmarks, dataset.eyes
    flat = [str(dataset.samples[i].path) for i in np.flatnonzero(dataset.eye_distances < CLOSE_EYES)]
    problems = [f"the eyes of {len(flat):,} faces coincide: {shown(flat)}"] if flat else []
    swapped = float((xy[:, left, 0] > xy[:, right, 0]).mean())
    if swapped > 0.5:
        problems.append(f"the left eye (as seen) is right of the right one on {swapped:.0%} of the faces")
    return problems


def usable(dataset: FaceDataset) -> list[int]:
    """The faces whose picture is there and whose labels can be measured with."""
    if not dataset.samples:
        return []
    apart = dataset.eye_distances >= CLOSE_EYES
    return [i for i, s in enumerate(dataset.samples) if apart[i] and s.path.exists() and _labelled(s)]


def shown(items: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else "")


def _labelled(sample: Sample) -> bool:
    return bool(np.isfinite(sample.landmarks).all())


def _outside(sample: Sample) -> bool:
    size = sample.size if sample.resized is None else (sample.resized, sample.resized)
    return size is not None and bool(((sample.landmarks < -0.5) | (sample.landmarks > np.array(size) - 0.5)).any())
