"""The images of one call, of any kind, and the boxes of the faces on them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, repeat
from typing import IO, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from scemae.errors import BoxInputError, ImageInputError, OptionError, ScemaeError, name_face, warn_user
from scemae.geometry import Array, Box, holding_box
from scemae.metrics import fill_masked
from scemae.patches import validate_box
from scemae.photo import Photo, is_text, read_photo

ImageLike = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | Array | torch.Tensor
OnError = Literal["raise", "skip"]
BOX_COLUMNS = ["x0", "y0", "x1", "y1"]


class FramedFace(NamedTuple):
    """One face to look at: its photo, its box, and which face of this photo it is, from 0."""

    photo: Photo
    box: Box
    number: int


class Failure(NamedTuple):
    """An image that cannot be used, or one face of several on it (its number), and why."""

    source: str
    error: ScemaeError
    face: int | None = None

    def __str__(self) -> str:
        return name_face(self.source, self.face)


class ImageBatch:
    """The images of one call and the boxes of their faces. Iterating gives each face, see `FramedFace`.

    Photos are read one at a time; the box is that of `validate_box`. `count` is the number of images, None where only
    reading them tells.
    With boxes="auto" the faces are those that `find_boxes` finds on each photo, which whoever iterates has to set. In
    place of one box of a photo there may be a dict of several, by the number of the face.
    `landmarks` may be set to those (K, 2), image px, of each image, or None: of the faces found on it that which holds
    them is taken. An image with landmarks is never skipped.
    Raises ImageInputError where there are no images in it, BoxInputError where there is not one box per image: at once
    if both can be counted, otherwise when the first of them runs out.

    With `on_error` "skip", a photo that cannot be used, or not with its box, is left out with a warning, and `failed`
    lists it; ImageInputError is raised only if none is left.
    """

    def __init__(self, images: Any, boxes: Any = None, on_error: OnError = "raise") -> None:
        if on_error not in get_args(OnError):
            raise OptionError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'.")
        self.on_error = on_error
        self.failed: list[Failure] = []
        self.find_boxes: Callable[[Photo], Iterable[Array]] | None = None
        self.landmarks: Iterable[Any] = ()
        self.auto = isinstance(boxes, str)
        if self.auto and boxes != "auto":
            raise BoxInputError(f"boxes is {boxes!r}; wanted one (x0, y0, x1, y1) per image, or 'auto'.")
        self._images = _list_images(images)
        self._boxes = None if self.auto else _list_boxes(fill_masked(boxes), is_single(images))
        self.count = _length(self._images)
        boxes_count = _length(self._boxes)
        if None not in (self.count, boxes_count) and self.count != boxes_count:
            raise BoxInputError(
                f"{boxes_count} boxes for {self.count} images; wanted one (x0, y0, x1, y1) per image. For several "
                "faces in one photo, repeat it: [photo] * n."
            )
        if boxes_count:
            _warn_of_extents(self._boxes)

    @property
    def has_boxes(self) -> bool:
        """Whether there are boxes, one per image, or they will be found."""
        return self.auto or self._boxes is not None

    def __iter__(self) -> Iterator[FramedFace]:
        counts: Counter[str] = Counter()
        boxes, missing = repeat(None) if self._boxes is None else iter(self._boxes), object()
        landmarks = chain(self.landmarks, repeat(None))
        usable, warned = 0, 0
        for index, item in enumerate(self._images):
            source, box, held = _name_image(item, index), next(boxes, missing), next(landmarks)
            if box is missing:
                raise BoxInputError(f"There is no box for {source}; wanted one (x0, y0, x1, y1) per image.")
            attempt = partial(self._attempt, source, self.on_error == "raise" or held is not None)
            photo = attempt(None, read_photo, item, source)
            faces = photo and attempt(None, self._list_faces, photo, box, counts[source], held)
            counts[source] += 1
            for number, place in (faces or {}).items():
                several = number if len(faces) > 1 else None
                valid = place if self.auto else attempt(several, validate_box, place, photo)
                if valid is not None:
                    yield FramedFace(photo, valid, number)
                    usable += 1
            photo = None  # which is large, before the next is read
            if usable:  # until then, no warning: there may be nothing but an error
                for failure in self.failed[warned:]:
                    warn_user(f"{failure.error} It is left out.")
                warned = len(self.failed)
        if self._boxes is not None and next(boxes, missing) is not missing:
            raise BoxInputError("There are more boxes than images; wanted one (x0, y0, x1, y1) per image.")
        if self.failed and not usable:
            count, first = len(self.failed), self.failed[0].error
            none = f"None of the {count} images can be used. The first: " if count > 1 else ""
            raise ImageInputError(f"{none}{first}") from first

    def _attempt(self, source: str, strict: bool, face: int | None, act: Callable[..., Any], *args: Any) -> Any:
        """What `act` returns; None where the image, or that face of it, is not usable. Raises its error if `strict`."""
        try:
            return act(*args)
        except (ImageInputError, BoxInputError) as error:
            if strict:
                raise
            # A new one: the traceback of this would keep the photo in memory.
            self.failed.append(Failure(source, type(error)(*error.args), face))
            return None

    def _list_faces(self, photo: Photo, box: Any, number: int, landmarks: Any) -> Mapping[int, Any]:
        """The boxes of the faces on a photo by number; raises ImageInputError where none is found."""
        if not self.auto:
            return box if isinstance(box, Mapping) else {number: box}
        if self.find_boxes is None:
            raise OptionError("boxes='auto' needs a model that finds faces.")
        found = [tuple(float(x) for x in box) for box in self.find_boxes(photo)]
        if not found:
            raise ImageInputError(f"{photo.source}: no face was found on it; if there is one, pass its box.")
        if landmarks is None:
            return dict(enumerate(found))
        row = holding_box(found, landmarks)
        if row is None:
            faces = "the face" if len(found) == 1 else f"none of the {len(found)} faces"
            does = "does not hold" if len(found) == 1 else "holds"
            raise ImageInputError(
                f"{photo.source}: {faces} found on it {does} its landmarks; pass the box of its face."
            )
        return {row: found[row]}


def iter_photos(images: ImageLike | Iterable[ImageLike]) -> Iterator[Photo]:
    """One image or any iterable of images, of any type, as upright RGB photos, read one at a time.

    An image is a path, the bytes of a file, a binary file object, a PIL image of any mode, an array (H, W),
    (H, W, 1 | 3 | 4) or (B, H, W, 3), or a tensor (3, H, W) or (B, 3, H, W); arrays and tensors are RGB, uint8, other
    integers in 0..65535, or float in 0..1. EXIF rotation is applied, transparency is blended with white.
    Raises ImageInputError, naming the image; also where all of it would turn black, white or transparent.
    """
    return (read_photo(item, _name_image(item, index)) for index, item in enumerate(_list_images(images)))


def is_single(images: Any) -> bool:
    """Whether `images` is one image rather than a batch or an iterable of them."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim < 4 and images.dtype != object and not is_text(images)
    return isinstance(images, (str, os.PathLike, bytes, Image.Image)) or hasattr(images, "read")


def _list_images(images: Any) -> Iterable[Any]:
    """The images one by one; raises ImageInputError for what is neither an image nor many."""
    if is_single(images):
        return [images]
    if _is_iterable(images):
        return images
    raise ImageInputError(
        f"images is a {type(images).__name__}; wanted a path, bytes, PIL image, array or tensor, or many of them."
    )


def _list_boxes(boxes: Any, single: bool) -> Iterable[Any] | None:
    """The boxes one by one, for a `single` image or many; raises BoxInputError for what cannot be."""
    if hasattr(boxes, "columns"):  # a DataFrame, which iterates over the names of its columns
        if not set(BOX_COLUMNS) <= set(boxes.columns):
            raise BoxInputError(f"boxes has the columns {', '.join(map(str, boxes.columns))}; wanted x0, y0, x1, y1.")
        boxes = boxes[BOX_COLUMNS].to_numpy()
    if boxes is None:
        return None
    if not _is_iterable(boxes):
        raise BoxInputError(f"boxes is {boxes!r:.200}; wanted one (x0, y0, x1, y1) per image.")
    if single:  # also a box by itself, beside a list of one
        boxes = list(boxes)
        return [boxes] if boxes and boxes[0] is not None and np.ndim(boxes[0]) == 0 else boxes
    return boxes


def _is_iterable(values: Any) -> bool:
    """Arrays and tensors without dimensions are not, though Python takes them for it."""
    return isinstance(values, Iterable) and getattr(values, "ndim", 1) > 0


def _warn_of_extents(boxes: Any) -> None:
    """Warn of boxes that are all square as (x, y, width, height), and never as (x0, y0, x1, y1)."""
    try:
        several = [box.values() if isinstance(box, Mapping) else [box] for box in boxes if box is not None]
        x0, y0, x1, y1 = np.array([box for of_image in several for box in of_image], dtype=np.float64).T
    except (TypeError, ValueError, RuntimeError):  # validate_box says what is wrong, and where
        return
    if len(x0) and (x1 == y1).all() and (x1 - x0 != y1 - y0).all():
        warn_user(
            "All boxes are squares if they are (x, y, width, height), and none is if they are (x0, y0, x1, y1), as "
            "which they are taken. Are the last two numbers a corner?"
        )


def _length(items: Any) -> int | None:
    return len(items) if hasattr(items, "__len__") else None


def _name_image(item: Any, index: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        return os.fsdecode(item)
    own = getattr(item, "filename", None) or getattr(item, "name", None)
    return own if isinstance(own, str) and own else f"image {index}"
