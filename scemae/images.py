"""Any image that the user has -> upright RGB, and a box on it -> a patch."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from scemae.errors import BoxInputError, ImageInputError, OptionError, ScemaeError
from scemae.geometry import Array, Box, Crop, Patch, central_box

ImageLike = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | Array | torch.Tensor
OnError = Literal["raise", "skip"]
MIN_BOX = 8  # image px: a smaller box is a mistake, or its face cannot be recognised
DENSITY = 2  # patch px per input px, so that a view can be turned and zoomed without losing detail
REACH = 2  # side of a patch over that of its crop
UPRIGHT = {  # the transpose that undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ROUNDING = 1e-3  # how far resizing and blending may leave float pixels outside 0..1


@dataclass(frozen=True)
class Photo:
    """One image, upright RGB, and its name in messages."""

    source: str
    image: Image.Image


class ImageBatch:
    """The images of one call and their boxes, if there are any. Iterating gives each photo with its box, or None.

    Photos are read one at a time, as `iter_photos` does. `count` is their number, None where only reading them tells.
    Raises ImageInputError where there are no images in it, BoxInputError where there is not one box per image: at once
    if both can be counted, otherwise when the first of them runs out.

    With `on_error` "skip", a photo that cannot be used, or not with its box, is left out with a warning, and `failed`
    lists its name and the error; ImageInputError is raised only if none is left.
    """

    def __init__(self, images: Any, boxes: Any = None, on_error: OnError = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise OptionError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'.")
        self.on_error = on_error
        self.failed: list[tuple[str, ScemaeError]] = []
        single = is_single(images)
        if not single and not isinstance(images, Iterable):
            raise ImageInputError(
                f"images is a {type(images).__name__}; wanted a path, bytes, PIL image, array or tensor, or many of "
                "them."
            )
        self._images: Iterable[Any] = [images] if single else images
        self._boxes: Iterable[Any] | None = _boxes_of_one(boxes) if single and boxes is not None else boxes
        self.count = _length(self._images)
        boxes_count = _length(self._boxes)
        if None not in (self.count, boxes_count) and self.count != boxes_count:
            raise BoxInputError(
                f"{boxes_count} boxes for {self.count} images; wanted one (x0, y0, x1, y1) per image. For several "
                "faces in one photo, repeat it: [photo] * n."
            )

    def __iter__(self) -> Iterator[tuple[Photo, Any]]:
        boxes, missing = repeat(None) if self._boxes is None else iter(self._boxes), object()
        usable, warned = 0, 0
        for index, item in enumerate(self._images):
            source, box = _name_image(item, index), next(boxes, missing)
            try:
                photo = _read_photo(item, source)
                if self.on_error == "skip" and box is not missing:
                    validate_box(box, photo)
            except (ImageInputError, BoxInputError) as error:
                if self.on_error == "raise":
                    raise
                self.failed.append((source, error))
            else:
                if box is missing:
                    raise BoxInputError(f"There is no box for {source}; wanted one (x0, y0, x1, y1) per image.")
                yield photo, box
                usable += 1
            if usable:  # until then, no warning: there may be nothing but an error
                for _, problem in self.failed[warned:]:
                    warnings.warn(f"{problem} It is left out.", stacklevel=2)
                warned = len(self.failed)
        if self._boxes is not None and next(boxes, missing) is not missing:
            raise BoxInputError("There are more boxes than images; wanted one (x0, y0, x1, y1) per image.")
        if self.failed and not usable:
            count, first = len(self.failed), self.failed[0][1]
            none = f"None of the {count} images can be used. The first: " if count > 1 else ""
            raise ImageInputError(f"{none}{first}") from first


def iter_photos(images: ImageLike | Iterable[ImageLike]) -> Iterator[Photo]:
    """One image or any iterable of images, of any type, as upright RGB photos, read one at a time.

    An image is a path, the bytes of a file, a binary file object, a PIL image of any mode, an array (H, W),
    (H, W, 1 | 3 | 4) or (B, H, W, 3), or a tensor (3, H, W) or (B, 3, H, W); arrays and tensors are RGB, uint8,
    uint16, or float in 0..1. EXIF rotation is applied, transparency is blended with white.
    Raises ImageInputError, naming the image.
    """
    return (photo for photo, _ in ImageBatch(images))


def is_single(images: Any) -> bool:
    """Whether `images` is one image rather than a batch or an iterable of them."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim < 4 and images.dtype != object and not _is_text(images)
    return isinstance(images, (str, os.PathLike, bytes, Image.Image)) or hasattr(images, "read")


def _boxes_of_one(boxes: Any) -> list[Any]:
    """The boxes of one image: a box, or an iterable of one box."""
    given = list(boxes) if isinstance(boxes, Iterable) else [boxes]
    return [given] if given and given[0] is not None and np.ndim(given[0]) == 0 else given


def _length(items: Any) -> int | None:
    return len(items) if hasattr(items, "__len__") else None


def _read_photo(item: Any, source: str) -> Photo:
    return Photo(source, _upright_rgb(_open(item, source), source))


def _is_text(images: Any) -> bool:
    return isinstance(images, np.ndarray) and images.dtype.kind in "US"


def _name_image(item: Any, index: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item)
    own = getattr(item, "filename", None) or getattr(item, "name", None)
    return own if isinstance(own, str) and own else f"image {index}"


def _open(item: Any, source: str) -> Image.Image:
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, torch.Tensor):
        return _from_array(_channels_last(item, source), source)
    if isinstance(item, np.ndarray) and not _is_text(item):
        return _from_array(item, source)
    if isinstance(item, bytes):
        item = io.BytesIO(item)
    elif isinstance(item, (str, os.PathLike)):
        if source.startswith(("http://", "https://")):
            raise ImageInputError(f"{source} is a web address; download the file first and pass its path.")
        item = Path(item)
    elif not hasattr(item, "read"):
        raise ImageInputError(
            f"{source} is a {type(item).__name__}; wanted a path, bytes, file object, PIL image, array or tensor."
        )
    with _translate_errors(source):
        image = Image.open(item)
        image.load()
    return image


@contextmanager
def _translate_errors(source: str) -> Iterator[None]:
    """Turn any error of Pillow into ImageInputError: the errors of its readers have no common base class."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageInputError(f"{source}: there is no such file.") from error
    except Image.DecompressionBombError as error:
        raise ImageInputError(
            f"{source} is far larger than a photo ({error}). If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageInputError(
            f"{source} is not an image that Pillow can read. For .heic files of phones install pillow-heif and call "
            "pillow_heif.register_heif_opener() first."
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageInputError(f"{source} cannot be read, it may be truncated: {error}.") from error


def _channels_last(tensor: torch.Tensor, source: str) -> Array:
    if tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4):
        raise ImageInputError(
            f"{source} is a tensor of shape {tuple(tensor.shape)}; wanted (3, H, W). Arrays are taken as (H, W, 3)."
        )
    array = tensor.detach().cpu()
    array = array.float() if array.dtype in (torch.bfloat16, torch.float16) else array
    return (array.permute(1, 2, 0) if array.ndim == 3 else array).numpy()


def _from_array(array: Array, source: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ImageInputError(f"{source} is an array of shape {array.shape}; wanted (H, W, 3) RGB or (H, W) grey.")
    return Image.fromarray(_to_uint8(array, source))


def _to_uint8(array: Array, source: str) -> Array:
    """8 bits a channel from uint8, uint16 (0..65535) or float (0..1) pixels."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ImageInputError(f"{source} has pixels of type {array.dtype}; wanted uint8, uint16 or float in 0..1.")
    if not np.isfinite(array).all():
        raise ImageInputError(f"{source} has pixels that are nan or infinite.")
    low, high = float(array.min()), float(array.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ImageInputError(
            f"{source} has float pixels from {low:g} to {high:g}; wanted 0..1. Pixels of 0..255 go in as uint8, and "
            "normalised ones have to be brought back to 0..1 first."
        )
    return (array.clip(0, 1) * 255).round().astype(np.uint8)


def _upright_rgb(image: Image.Image, source: str) -> Image.Image:
    if 0 in image.size:
        raise ImageInputError(f"{source} is {image.width} x {image.height} pixels: it is empty.")
    with _translate_errors(source):  # a PIL image that the caller opened loads only here
        image.load()
    method = UPRIGHT.get(_orientation(image))
    if method is not None:
        image = image.transpose(method)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        image = _from_array(_deep_grey(image), source)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> Any:
    """As EXIF or XMP has it. ImageOps.exif_transpose would rewrite all of EXIF, and fails where a tag is invalid."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # invalid EXIF counts as none
        return None


def _deep_grey(image: Image.Image) -> Array:
    """Pixels of a 16- or 32-bit grey image; integers are taken as 16-bit ones, as Pillow opens 16-bit files."""
    pixels = np.asarray(image)
    return pixels if pixels.dtype.kind == "f" else np.clip(pixels, 0, 65535).astype(np.uint16)


def validate_box(box: Any, photo: Photo) -> Box:
    """The face box (x0, y0, x1, y1) of a photo, pixel edges; None means the central 96/136 (geometry.central_box).

    Raises BoxInputError for one that is inverted, smaller than 8 px, or mostly outside the image.
    """
    width, height = photo.image.size
    if box is None:
        central = central_box(width, height)
        if central[2] - central[0] < MIN_BOX:
            raise ImageInputError(f"{photo.source} is {width} x {height} pixels: too small to show a face.")
        return central
    try:
        numbers = np.asarray(box, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (4,) or not np.isfinite(numbers).all():
        raise BoxInputError(f"The box of {photo.source} is {box!r}; wanted four numbers (x0, y0, x1, y1).")
    x0, y0, x1, y1 = (float(number) for number in numbers)
    shown = f"The box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) of {photo.source} ({width} x {height} px)"
    if x1 <= x0 or y1 <= y0:
        raise BoxInputError(f"{shown} is inverted or empty; wanted (x0, y0, x1, y1) with x0 < x1 and y0 < y1.")
    if max(x1 - x0, y1 - y0) < MIN_BOX:
        raise BoxInputError(f"{shown} is smaller than {MIN_BOX} px; is it in pixels, not in fractions of the image?")
    inside = max(0.0, min(x1, width) - max(x0, 0)) * max(0.0, min(y1, height) - max(y0, 0))
    if inside < 0.5 * (x1 - x0) * (y1 - y0):
        raise BoxInputError(
            f"{shown} is mostly outside it. Is it (x, y, width, height), or of another size or rotation?"
        )
    return (x0, y0, x1, y1)


def cut_patch(image: Image.Image, crop: Crop, at_input_scale: bool = False) -> Patch:
    """The anti-aliased upright square of twice the crop's side around it, 2 pixels per crop pixel.

    It is never finer than the photo: where the photo has fewer pixels it has the photo's own. With `at_input_scale` it
    has the crop's pixels (an upright crop is then a slice of it, the protocol's "resize to 136, crop 96").
    Beyond the image, pixels are mirrored.
    """
    step = crop.scale if at_input_scale else max(crop.scale / DENSITY, 1.0)
    count = int(np.ceil(REACH * crop.size * crop.scale / step))
    count += (count - crop.size) % 2  # so that the pixels of an upright crop at input scale fall on the patch's
    start = _square_start(crop, step, count)
    if step == 1.0 and not at_input_scale:
        start = np.round(start)  # the photo's own pixels, not resampled
    pixels = _resize_inside(image, start, step, count)
    affine = np.array([[step, 0, start[0] + step / 2 - 0.5], [0, step, start[1] + step / 2 - 0.5]])
    return Patch(pixels, affine)


def cut_square(image: Image.Image, crop: Crop, count: int) -> Array:
    """The upright square of `count` x `count` pixels (H, W, 3), uint8, around an upright crop, at the crop's scale."""
    return _resize_inside(image, _square_start(crop, crop.scale, count), crop.scale, count)


def _square_start(crop: Crop, step: float, count: int) -> Array:
    """The pixel edge, (x, y) in image pixels, where a square of `count` pixels of `step` around the crop begins."""
    return crop.centre + 0.5 - step * count / 2


def _resize_inside(image: Image.Image, start: Array, step: float, count: int) -> Array:
    """`count` x `count` pixels of `step` image px from `start`: resampled inside the image, mirrored outside."""
    extent = np.array(image.size)
    first = np.maximum(np.ceil(-start / step - 1e-6), 0).astype(int)
    last = np.minimum(np.floor((extent - start) / step + 1e-6), count).astype(int)
    low, high = np.maximum(start + first * step, 0), np.minimum(start + last * step, extent)
    last = np.maximum(last, first + 1)  # an image thinner than one pixel of the patch fills one
    size = (int(last[0] - first[0]), int(last[1] - first[1]))
    inner = image.resize(size, Image.Resampling.BILINEAR, box=(*low.tolist(), *high.tolist()))
    padding = [(int(first[1]), count - int(last[1])), (int(first[0]), count - int(last[0])), (0, 0)]
    return np.pad(np.asarray(inner), padding, mode="symmetric")
