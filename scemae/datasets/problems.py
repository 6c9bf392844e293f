"""Checks of a dataset; each returns its problems as clauses of a message, an empty list if there are none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scemae.datasets.annotated_face import FaceDataset, Sample
from scemae.errors import ImageInputError
from scemae.photo import open_file

EXAMPLES = 3  # named in a message
OUTSIDE = 0.01  # fraction of the faces that may have a label outside the image; more is a mistake
CLOSE_EYES = 1.0  # px; a smaller distance cannot normalise an error


def check_count(samples: Sequence[Sample], expected: int) -> list[str]:
    """Does a split have as many faces as it should?"""
    return [] if len(samples) == expected else [f"its lists name {len(samples):,} faces, wanted {expected:,}"]


def check_files(samples: Sequence[Sample]) -> list[str]:
    """Are all images and labels there, and does the first image have the right size?"""
    problems = []
    absent = [str(sample.path) for sample in samples if not sample.path.exists()]
    if absent:
        problems.append(f"{len(absent):,} of {len(samples):,} images are missing: {list_examples(absent)}")
    unlabelled = [str(sample.path) for sample in samples if not _has_labels(sample)]
    if unlabelled:
        problems.append(f"{len(unlabelled):,} of {len(samples):,} images have no labels: {list_examples(unlabelled)}")
    first = next((sample for sample in samples if sample.path.exists()), None)
    return problems + (check_image(first) if first is not None else [])


def check_image(sample: Sample) -> list[str]:
    """Can an image be read, and does it have the right size? Reads its header only."""
    try:
        with open_file(sample.path, str(sample.path)) as image:
            size = image.size
    except ImageInputError as error:
        return [f"{sample.path} cannot be read as an image ({error})"]
    if sample.size is not None and size != sample.size:
        return [f"{sample.path} has {size[0]} x {size[1]} px, wanted {sample.size[0]} x {sample.size[1]}"]
    return []


def check_labels_inside(samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """Are the labels inside their images, where the size is known? Returns problems if many are not, notes if few."""
    outside = [str(sample.path) for sample in samples if _has_label_outside(sample)]
    text = f"{len(outside):,} of {len(samples):,} faces have labels outside their image: {list_examples(outside)}"
    if len(outside) > OUTSIDE * len(samples):
        return [f"{text}. Are they pixels of these images?"], []
    return [], [f"{text}. Detectors are not fitted on these labels."] if outside else []


def check_eyes(dataset: FaceDataset) -> list[str]:
    """Are the eyes apart, and the left one (as seen) on the left?"""
    if not dataset.samples:
        return []
    xy, (left, right) = dataset.landmarks, dataset.eyes
    coinciding = [str(dataset.samples[i].path) for i in np.flatnonzero(dataset.eye_distances < CLOSE_EYES)]
    problems = [f"the eyes of {len(coinciding):,} faces coincide: {list_examples(coinciding)}"] if coinciding else []
    swapped = float((xy[:, left, 0] > xy[:, right, 0]).mean())
    if swapped > 0.5:
        problems.append(f"the left eye (as seen) is right of the right one on {swapped:.0%} of the faces")
    return problems


def find_usable(dataset: FaceDataset) -> list[int]:
    """Indices of the faces whose image is there and whose labels can be measured with."""
    if not dataset.samples:
        return []
    apart = dataset.eye_distances >= CLOSE_EYES
    return [i for i, s in enumerate(dataset.samples) if apart[i] and s.path.exists() and _has_labels(s)]


def list_examples(items: Sequence[str]) -> str:
    """The first few items, and how many more there are."""
    return ", ".join(items[:EXAMPLES]) + (f" and {len(items) - EXAMPLES:,} more" if len(items) > EXAMPLES else "")


def _has_labels(sample: Sample) -> bool:
    return bool(np.isfinite(sample.landmarks).all())


def _has_label_outside(sample: Sample) -> bool:
    size = sample.size if sample.resized is None else (sample.resized, sample.resized)
    return size is not None and bool(((sample.landmarks < -0.5) | (sample.landmarks > np.array(size) - 0.5)).any())
