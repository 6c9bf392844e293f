"""Landmarks in any form that users pass -> an array (B, K, 2) in image pixels and names, checked against the faces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scemae.errors import LandmarkInputError, OptionError, warn_user
from scemae.features import Face, FaceFeatures
from scemae.landmarks import Landmarks
from scemae.metrics import box_diagonal, fill_masked

Array = NDArray[Any]
MISSING = (np.nan, np.nan)
# In sides of the crop. A shape is odd whose centre is FAR from the crop's, or by ASIDE above and left of it, as what is
# in percent or fractions, or whose diagonal is SMALL.
FAR, ASIDE, SMALL = 0.4, 0.15, 0.1
MANY_FACES, RARE = 5, 20  # of so many faces and more, a landmark is rare that one shows, or one in 20


def validate_landmarks(
    landmarks: Any,
    faces: Sequence[Face],
    names: Sequence[str] | None = None,
    allow_missing: bool = False,
    allow_outside: bool = False,
) -> tuple[Array, tuple[str, ...] | None]:
    """Landmarks (B, K, 2), float64, image pixels of the B faces, and the K names or None.

    Args:
        landmarks: (K, 2) for one face, (B, K, 2), a dict name -> (x, y) for one face, a list or Series of such dicts,
            Landmarks, or the dicts of their `to_dict`.
        faces: the B faces.
        names: the names of the landmarks, in their order; default: those of `landmarks`.
        allow_missing: nan, None, a masked number, or a name missing from a dict means "not annotated".
        allow_outside: landmarks may be beyond the edge of the image, as far as its mirrored pixels around the face.

    Raises:
        LandmarkInputError: wrong shape, another number of faces, outside the image, missing, or names of which two
            are the same but for case and spaces.
    """
    array, names = read_landmarks(landmarks, len(faces), names)
    if names is not None and len(names) != array.shape[1]:
        raise LandmarkInputError(f"There are {len(names)} names for {array.shape[1]} landmarks.")
    _check_names(names or ())
    for face, xy in zip(faces, array, strict=True):
        _check_face(face, xy, names, allow_missing, allow_outside)
    array[np.isnan(array).any(axis=-1)] = np.nan  # half a point counts as not annotated
    hidden = (array == 0).all(axis=-1)
    if hidden.any(axis=1).sum() > 1:
        warn_user(
            f"{int(hidden.sum())} landmarks on {int(hidden.any(axis=1).sum())} faces are at exactly (0, 0), a place in "
            "the image. If that stands for a hidden landmark, pass nan there."
        )
    return array, names


def read_landmarks(landmarks: Any, count: int | None, names: Any = None) -> tuple[Array, tuple[str, ...] | None]:
    """Landmarks as in `validate_landmarks` of `count` faces, (B, K, 2), and their names; None: of any number of faces.

    Raises LandmarkInputError for a wrong shape, or another number of faces.
    """
    array, names = _as_array(landmarks, names)
    if array.ndim == 2 and count == 1:
        array = array[None]
    if array.ndim != 3 or array.shape[2] != 2 or array.shape[1] == 0:
        raise LandmarkInputError(
            f"landmarks have the shape {array.shape}; wanted ({count or 'n'}, K, 2): K points (x, y) for each face."
        )
    if count not in (None, len(array)):
        raise LandmarkInputError(f"landmarks are for {len(array)} faces, but there are {count} faces.")
    return array, names


def _as_array(landmarks: Any, names: Any) -> tuple[Array, tuple[str, ...] | None]:
    """The landmarks as a float64 array of any shape, and their names."""
    if isinstance(landmarks, Landmarks):
        landmarks, names = landmarks.xy, landmarks.names if names is None else names
    if names is not None:
        names = _read_names(names)
    landmarks = _unwrap([landmarks] if isinstance(landmarks, Mapping) else landmarks)
    if isinstance(landmarks, list) and landmarks and all(isinstance(item, Mapping) for item in landmarks):
        landmarks = [_read_points(item) for item in landmarks]
        if names is None:
            names = tuple(dict.fromkeys(name for item in landmarks for name in item))
        unknown = {name for item in landmarks for name in item} - set(names)
        if unknown:
            raise LandmarkInputError(f"landmarks name {', '.join(sorted(unknown))}, but names= has only {names}.")
        landmarks = [[item.get(name, MISSING) for name in names] for item in landmarks]
    try:
        return np.array(landmarks, dtype=np.float64), names
    except (TypeError, ValueError) as error:
        raise LandmarkInputError(
            f"landmarks cannot be read as numbers (x, y) ({error}); wanted (B, K, 2), or a dict of name -> (x, y)."
        ) from error


def _unwrap(values: Any) -> Any:
    """Lists and plain arrays of tensors, masked arrays (nan where masked), and arrays or Series of objects."""
    if isinstance(values, torch.Tensor):
        try:
            return values.detach().to("cpu", torch.float64).numpy()
        except (TypeError, ValueError, RuntimeError) as error:  # no values, or not at every place
            raise LandmarkInputError(
                f"landmarks cannot be read from a tensor ({error}); wanted a dense one."
            ) from error
    if getattr(values, "dtype", None) == np.object_ and hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        return [_unwrap(item) for item in values]
    return fill_masked(values)


def _read_names(names: Any) -> tuple[str, ...]:
    """The names as text, without spaces around them."""
    if isinstance(names, str) or not hasattr(names, "__iter__"):
        raise LandmarkInputError(f"names is {names!r}; wanted a list with a name for each landmark.")
    return tuple(str(name).strip() for name in names)


def _read_points(points: Mapping[Any, Any]) -> dict[str, Any]:
    """The points (x, y) of one face by name; each is given so, as {"x": x, "y": y}, or as None if not annotated."""
    names = _read_names(points)
    try:
        places = [(p["x"], p["y"]) if isinstance(p, Mapping) else MISSING if p is None else p for p in points.values()]
    except KeyError as error:
        raise LandmarkInputError(f"A landmark is a dict without {error}; wanted (x, y), or both x and y.") from error
    read = {name: _unwrap(place) for name, place in zip(names, places, strict=True)}
    if len(read) < len(points):
        _check_names(names)
    return read


def _check_names(names: Sequence[str]) -> None:
    """Raise LandmarkInputError for two names that are the same, or would be but for case, spaces and underscores."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(re.sub(r"[\s_]+", " ", unicodedata.normalize("NFKC", name).casefold()), name)
        if other == name and names.count(name) > 1:
            raise LandmarkInputError(f"Two landmarks have the same name among {', '.join(names)}.")
        if other != name:
            raise LandmarkInputError(
                f"The landmarks {other!r} and {name!r} have almost the same name. If they are one landmark, call it "
                "the same on every face; if not, give them names that differ by more than case and spaces."
            )


def _check_face(face: Face, xy: Array, names: Sequence[str] | None, allow_missing: bool, allow_outside: bool) -> None:
    width, height = face.image_size
    annotated = np.isfinite(xy).all(axis=1)
    inside = ((xy >= -0.5) & (xy <= np.array([width, height]) - 0.5)).all(axis=1)
    if allow_outside:
        surroundings = np.array(face.patch.pixels.shape[1::-1]) - 0.5
        places = face.patch.to_patch(np.where(np.isfinite(xy), xy, np.nan))
        inside |= ((places >= -0.5) & (places <= surroundings)).all(axis=1)
        inside &= (xy != -1).any(axis=1)  # what some annotations have for a landmark that is hidden
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
    that are half a crop or more outside the crop of their face, that very few faces show, and of shapes that are far
    from the middle of the crop, or tiny.
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
        warn_user(
            f"{int(beyond.sum())} of {xy[..., 0].size} landmarks lie far from the face that the model sees: "
            f"{names[k] if names else k} at ({xy[i, k, 0]:g}, {xy[i, k, 1]:g}) of {features.faces[i].source}, for "
            "example (features.draw() shows it). Are they pixels of the image, x first, nan where a landmark is "
            "hidden, and is the box that of the same face?"
        )
    else:
        _warn_of_shapes(features.to_input(xy) / size)
    shown = (~missing).sum(axis=0)
    rare = np.flatnonzero(shown <= max(1, len(xy) // RARE))
    if len(xy) >= MANY_FACES and len(rare):
        k = int(rare[0])
        warn_user(
            f"Only {shown[k]} of {len(xy)} faces show the landmark {names[k] if names else k}. Is its name spelled the "
            "same on every face?"
        )


def _warn_of_shapes(shapes: Array) -> None:
    """Warn if the landmarks (n, K, 2), in sides of the crop, of the median face are far from its middle, or tiny."""
    shapes = shapes[np.isfinite(shapes[..., 0]).sum(axis=1) > 1]  # a single landmark has no size, and may be anywhere
    if not len(shapes):
        return
    off = np.median(np.nanmean(shapes, axis=1), axis=0) - 0.5
    diagonal = np.median(box_diagonal(shapes))
    if np.linalg.norm(off) > FAR or off.max() < -ASIDE or diagonal < SMALL:
        warn_user(
            f"The landmarks of the median face lie {off[0]:+.0%} and {off[1]:+.0%} of the square that the model sees "
            f"from its middle, and their box has a diagonal of {diagonal:.0%} of it (features.draw() shows the "
            "square). Unless they are of a small part of the face: are they pixels of the image (not percent, nor "
            "fractions, nor pixels of a resized copy), x first, and is the box (x0, y0, x1, y1)?"
        )


def landmark_pair(pair: Any, names: Sequence[str] | None, count: int, option: str) -> tuple[int, int]:
    """The indices of two landmarks given by name or index, of `count`; raises OptionError, which names the `option`."""
    listed = None if isinstance(pair, str) or not hasattr(pair, "__iter__") else list(pair)
    if listed is None or len(listed) != 2:
        raise OptionError(f"{option} has {pair!r} for a pair of landmarks; wanted two names, or two numbers.")
    return _landmark_index(listed[0], names, count, option), _landmark_index(listed[1], names, count, option)


def _landmark_index(landmark: Any, names: Sequence[str] | None, count: int, option: str) -> int:
    if isinstance(landmark, str):
        if names is None or landmark not in names:
            raise OptionError(f"{option} names {landmark!r}, which is not a landmark; there are {names or 'no names'}.")
        return list(names).index(landmark)
    if isinstance(landmark, bool) or not isinstance(landmark, Integral) or not 0 <= int(landmark) < count:
        raise OptionError(f"{option} names landmark {landmark}; there are {count}, from 0.")
    return int(landmark)
