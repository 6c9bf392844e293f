"""What other face detectors return -> boxes (n, 4) as `boxes=` takes them: (x0, y0, x1, y1), pixel edges, float64.

None, which some detectors return where there is no face, and what is empty give no boxes, (0, 4). BoxInputError says
what came where it is not the output of that detector (docs/find.md has a recipe for each).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scemae.errors import BoxInputError

Boxes = NDArray[np.float64]
YUNET_COLUMNS = 15  # x, y, width, height, five landmarks (x, y), score
FARTHEST = 2  # in sides of the image: a box reaches beyond its edge, but by less


def from_xywh(boxes: Any) -> Boxes:
    """Boxes (n, 4) or one (4,) of (x, y, width, height), px, as OpenCV's Haar cascades, COCO and many others have them.

    Raises BoxInputError for another shape, or a width or height that is not above 0.
    """
    rows = _read_rows(boxes, "(x, y, width, height)")
    return _check(np.column_stack([rows[:, :2], rows[:, :2] + rows[:, 2:]]), "(x, y, width, height)")


def from_normalised(boxes: Any, width: float, height: float) -> Boxes:
    """Boxes (n, 4) or one (4,) of (x0, y0, x1, y1) in parts of an image of `width` x `height` px, 0..1.

    Raises BoxInputError for another shape, and for what looks like pixels.
    """
    wanted = "(x0, y0, x1, y1) in 0..1 of the image"
    rows = _read_rows(boxes, wanted)
    if not (width > 1 and height > 1):
        raise BoxInputError(f"The image is {width} x {height}; wanted its width and height in pixels.")
    if rows.size and np.abs(rows).max() > FARTHEST:
        raise BoxInputError(f"A box is {_show(rows[np.abs(rows).max(axis=1).argmax()])}, in pixels; wanted {wanted}.")
    return _check(rows * [width, height, width, height], wanted)


def from_yunet(faces: Any) -> Boxes:
    """What cv2.FaceDetectorYN.detect returns, (status, faces), or these faces: (n, 15) or None."""
    if isinstance(faces, tuple) and len(faces) == 2 and np.ndim(faces[0]) == 0:
        faces = faces[1]
    rows = _read_rows(faces, "rows of 15 numbers, as cv2.FaceDetectorYN.detect returns", YUNET_COLUMNS)
    return from_xywh(rows[:, :4])


def from_mtcnn(boxes: Any) -> Boxes:
    """The boxes, (n, 4) or None, that MTCNN.detect of facenet-pytorch returns for one image, or all that it returns."""
    if isinstance(boxes, tuple) and len(boxes) in (2, 3) and (boxes[0] is None or np.ndim(boxes[0]) == 2):
        boxes = boxes[0]
    wanted = "the boxes (x0, y0, x1, y1) of one image, as MTCNN.detect of facenet-pytorch returns them"
    return _check(_read_rows(boxes, wanted), wanted)


def from_mediapipe(detections: Any, width: float | None = None, height: float | None = None) -> Boxes:
    """The result of a face detector of MediaPipe, or its `detections`: of the tasks API or of `solutions`.

    Boxes of `solutions` are in parts of the image, whose `width` and `height`, px, have to be given.
    """
    wanted = "detections with a bounding box, as a face detector of MediaPipe returns them"
    found: list[Any] = []
    for item in _list_items(getattr(detections, "detections", detections), wanted):
        if hasattr(item, "bounding_box"):
            box = item.bounding_box
            found.append((box.origin_x, box.origin_y, box.width, box.height))
        elif hasattr(item, "location_data"):
            box = item.location_data.relative_bounding_box
            if width is None or height is None:
                raise BoxInputError(
                    "These boxes of MediaPipe are in parts of the image; pass its width and height in px as well."
                )
            found.append((box.xmin * width, box.ymin * height, box.width * width, box.height * height))
        else:
            raise _refuse(item, wanted)
    return from_xywh(found)


def from_dlib(rectangles: Any) -> Boxes:
    """Rectangles of dlib, of its HOG or its CNN detector; their right and bottom pixels belong to the face."""
    wanted = "rectangles of dlib, as its face detectors return them"
    found = []
    for item in _list_items([rectangles] if hasattr(rectangles, "left") else rectangles, wanted):
        rectangle = getattr(item, "rect", item)
        if not hasattr(rectangle, "left"):
            raise _refuse(item, wanted)
        found.append((rectangle.left(), rectangle.top(), rectangle.right() + 1, rectangle.bottom() + 1))
    return _check(_read_rows(found, wanted), wanted)


def from_insightface(faces: Any) -> Boxes:
    """Faces with a `bbox`, as FaceAnalysis.get of InsightFace and the detectors of uniface return them."""
    wanted = "faces with a bbox, as InsightFace's FaceAnalysis.get returns them"
    found = []
    for item in _list_items(faces, wanted):
        box = item.get("bbox") if isinstance(item, Mapping) else getattr(item, "bbox", None)
        if box is None:
            raise _refuse(item, wanted)
        found.append(np.ravel(box)[:4])  # some have the score as a fifth
    return _check(_read_rows(found, wanted), wanted)


def _list_items(items: Any, wanted: str) -> Iterable[Any]:
    if items is None:
        return []
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise _refuse(items, wanted)
    return items


def _read_rows(rows: Any, wanted: str, columns: int = 4) -> Boxes:
    """Rows (n, columns), also of one by itself; none of None and of what is empty."""
    if rows is None:
        return np.empty((0, columns))
    try:
        array = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that requires a gradient
        raise _refuse(rows, wanted) from error
    if array.size == 0:
        return np.empty((0, columns))
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != columns:
        raise BoxInputError(f"Boxes of shape {np.shape(rows)} came; wanted {wanted}: (n, {columns}).")
    return array


def _check(boxes: Boxes, wanted: str) -> Boxes:
    """The boxes; raises BoxInputError unless each has a width and a height."""
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not good.all():
        row = int(np.argmin(good))
        raise BoxInputError(
            f"Box {row} would be {_show(boxes[row])} as (x0, y0, x1, y1), which is none; wanted {wanted}."
        )
    return boxes


def _refuse(given: Any, wanted: str) -> BoxInputError:
    shown = " ".join(repr(given).split())
    return BoxInputError(f"{shown:.80} of type {type(given).__name__} came; wanted {wanted}.")


def _show(box: Any) -> str:
    return f"({', '.join(f'{number:g}' for number in box)})"
