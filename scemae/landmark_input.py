"""Landmarks in any form that users pass -> an array (B, K, 2) in image pixels and names, checked against the faces."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scemae.errors import LandmarkInputError, OptionError
from scemae.features import Face, FaceFeatures
from scemae.landmarks import Landmarks

Array = NDArray[Any]
MISSING = (np.nan, np.nan)


def validate_landmarks(
    landmarks: Any, faces: Sequence[Face], names: Sequence[str] | None = None, allow_missing: bool = False
) -> tuple[Array, tuple[str, ...] | None]:
    """Landmarks (B, K, 2), float64, image pixels of the B faces, and the K names or None.

    Args:
        landmarks: (K, 2) for one face, (B, K, 2), a dict name -> (x, y) for one face, a list of such dicts, Landmarks,
            or the dicts of their `to_dict`.
        faces: the B faces.
        names: the names of the landmarks, in their order; default: those of `landmarks`.
        allow_missing: nan, None, or a name missing from a dict means "not annotated".

    Raises:
        LandmarkInputError: wrong shape, another number of faces, outside the image, or missing.
    """
    array, names = _as_array(landmarks, names)
    if array.ndim == 2 and len(faces) == 1:
        array = array[None]
    if array.ndim != 3 or array.shape[2] != 2 or array.shape[1] == 0:
        raise LandmarkInputError(
            f"landmarks have the shape {array.shape}; wanted ({len(faces)}, K, 2): K points (x, y) for each face."
        )
    if len(array) != len(faces):
        raise LandmarkInputError(f"landmarks are for {len(array)} faces, but there are {len(faces)} faces.")
    if names is not None and len(names) != array.shape[1]:
        raise LandmarkInputError(f"There are {len(names)} names for {array.shape[1]} landmarks.")
    if names is not None and len(set(names)) != len(names):
        raise LandmarkInputError(f"Two landmarks have the same name among {', '.join(names)}.")
    for face, xy in zip(faces, array, strict=True):
        _check_face(face, xy, names, allow_missing)
    array[np.isnan(array).any(axis=-1)] = np.nan  # half a point counts as not annotated
    return array, names


def _as_array(landmarks: Any, names: Sequence[str] | None) -> tuple[Array, tuple[str, ...] | None]:
    """The landmarks as a float64 array of any shape, and their names."""
    if isinstance(landmarks, Landmarks):
        landmarks, names = landmarks.xy, landmarks.names if names is None else names
    if isinstance(landmarks, Mapping):
        landmarks = [landmarks]
    is_list = isinstance(landmarks, Sequence) and not isinstance(landmarks, str)
    if is_list and len(landmarks) and all(isinstance(item, Mapping) for item in landmarks):
        landmarks = [{str(name): _point(point) for name, point in item.items()} for item in landmarks]
        if names is None:
            names = tuple(dict.fromkeys(name for item in landmarks for name in item))
        unknown = {name for item in landmarks for name in item} - set(names)
        if unknown:
            raise LandmarkInputError(f"landmarks name {', '.join(sorted(unknown))}, but names= has only {names}.")
        landmarks = [[item.get(name, MISSING) for name in names] for item in landmarks]
    try:
        array = np.array(landmarks, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LandmarkInputError(
            f"landmarks cannot be read as numbers (x, y) ({error}); wanted (B, K, 2), or a dict of name -> (x, y)."
        ) from error
    return array, None if names is None else tuple(names)


def _point(point: Any) -> Any:
    """A point (x, y), {"x": x, "y": y}, or None if it is not annotated, as (x, y)."""
    return MISSING if point is None else (point["x"], point["y"]) if isinstance(point, Mapping) else point


def _check_face(face: Face, xy: Array, names: Sequence[str] | None, allow_missing: bool) -> None:
    width, height = face.image_size
    annotated = np.isfinite(xy).all(axis=1)
    inside = ((xy >= -0.5) & (xy <= np.array([width, height]) - 0.5)).all(axis=1)
    wrong = annotated & ~inside if allow_missing and not np.isinf(xy).any() else ~inside
    if wrong.any():
        k = int(np.argmax(wrong))
        label = names[k] if names else str(k)
        wanted = "0..width - 1, 0..height - 1 of the upright image"
        wanted += "; nan where it is not annotated" if allow_missing else ""
        raise LandmarkInputError(
            f"Landmark {label} of {face.source} is at ({xy[k, 0]:g}, {xy[k, 1]:g}), outside its {width} x {height} px "
            f"image; wanted {wanted}. Are they pixels of this image, x first, of the same rotation?"
        )


def check_annotated(xy: Array, names: Sequence[str] | None, features: FaceFeatures) -> None:
    """Check landmarks (n, K, 2), image px, to be fitted on.

    Raises LandmarkInputError for a landmark that no face shows, or a face that shows no landmark. Warns of landmarks
    that are half a crop or more outside the crop of their face.
    """
    missing = np.isnan(xy[..., 0])
    if missing.all(axis=0).any():
        k = int(missing.all(axis=0).argmax())
        raise LandmarkInputError(f"Landmark {names[k] if names else k} is not annotated on any of the {len(xy)} faces.")
    if missing.all(axis=1).any():
        face = features.faces[int(missing.all(axis=1).argmax())]
        raise LandmarkInputError(f"{face.source} has no annotated landmark; leave it out.")
    size = features.faces[0].crop.size
    beyond = np.abs(features.to_input(xy) - (size - 1) / 2).max(axis=-1) > size  # False for nan
    if beyond.any():
        i, k = np.argwhere(beyond)[0]
        warnings.warn(
            f"{int(beyond.sum())} of {xy[..., 0].size} landmarks lie far from the face that the model sees: "
            f"{names[k] if names else k} at ({xy[i, k, 0]:g}, {xy[i, k, 1]:g}) of {features.faces[i].source}, for "
            "example (features.draw() shows it). Are they pixels of the image, x first, nan where a landmark is "
            "hidden, and is the box that of the same face?",
            stacklevel=4,
        )


def landmark_index(landmark: str | int, names: Sequence[str] | None, count: int, option: str) -> int:
    """The index of a landmark given by name or index, of `count`; raises OptionError, which names the `option`."""
    if isinstance(landmark, str):
        if names is None or landmark not in names:
            raise OptionError(f"{option} names {landmark!r}, which is not a landmark; there are {names or 'no names'}.")
        return list(names).index(landmark)
    if not 0 <= landmark < count:
        raise OptionError(f"{option} names landmark {landmark}; there are {count}, from 0.")
    return int(landmark)
