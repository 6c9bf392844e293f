"""Any image that the user has -> upright RGB, and a box on it -> a patch."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import ChunkStream, PngImageFile

from scemae.errors import BoxInputError, ImageInputError, OptionError, ScemaeError, warn_user
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
PNG_SIGNATURE = 8  # bytes of a PNG file before its first chunk
DARK = 1 / 16  # of full scale: pixels of more than 8 bits that are all darker were meant for another scale
FORMATS = (  # what a file may be: formats that Pillow or a plugin decodes itself, none that is run as a program
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "ICO", "JPEG2000"),
    *("AVIF", "HEIF", "JXL", "QOI", "SGI", "PCX", "PSD"),
)
BOX_COLUMNS = ["x0", "y0", "x1", "y1"]


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
        boxes = _rows_of_table(boxes)
        self._boxes: Iterable[Any] | None = _boxes_of_one(boxes) if single and boxes is not None else boxes
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
        """Whether there are boxes, one per image."""
        return self._boxes is not None

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
                del photo  # which is large, before the next is read
                usable += 1
            if usable:  # until then, no warning: there may be nothing but an error
                for _, reason in self.failed[warned:]:
                    warn_user(f"{reason} It is left out.")
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
    (H, W, 1 | 3 | 4) or (B, H, W, 3), or a tensor (3, H, W) or (B, 3, H, W); arrays and tensors are RGB, uint8, other
    integers in 0..65535, or float in 0..1. EXIF rotation is applied, transparency is blended with white.
    Raises ImageInputError, naming the image; also where all of it would turn black, white or transparent.
    """
    return (photo for photo, _ in ImageBatch(images))


def is_single(images: Any) -> bool:
    """Whether `images` is one image rather than a batch or an iterable of them."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim < 4 and images.dtype != object and not _is_text(images)
    return isinstance(images, (str, os.PathLike, bytes, Image.Image)) or hasattr(images, "read")


def _rows_of_table(boxes: Any) -> Any:
    """The boxes in a DataFrame, which iterates over the names of its columns."""
    if not hasattr(boxes, "columns"):
        return boxes
    if not set(BOX_COLUMNS) <= set(boxes.columns):
        raise BoxInputError(f"boxes has the columns {', '.join(map(str, boxes.columns))}; wanted x0, y0, x1, y1.")
    return boxes[BOX_COLUMNS].to_numpy()


def _boxes_of_one(boxes: Any) -> list[Any]:
    """The boxes of one image: a box, or an iterable of one box."""
    given = list(boxes) if isinstance(boxes, Iterable) else [boxes]
    return [given] if given and given[0] is not None and np.ndim(given[0]) == 0 else given


def _warn_of_extents(boxes: Any) -> None:
    """Warn of boxes that are all square as (x, y, width, height), and never as (x0, y0, x1, y1)."""
    try:
        x0, y0, x1, y1 = np.array([box for box in boxes if box is not None], dtype=np.float64).T
    except (TypeError, ValueError, RuntimeError):  # validate_box says what is wrong, and where
        return
    if len(x0) and (x1 == y1).all() and (x1 - x0 != y1 - y0).all():
        warn_user(
            "All boxes are squares if they are (x, y, width, height), and none is if they are (x0, y0, x1, y1), as "
            "which they are taken. Are the last two numbers a corner?"
        )


def _length(items: Any) -> int | None:
    return len(items) if hasattr(items, "__len__") else None


def _read_photo(item: Any, source: str) -> Photo:
    return Photo(source, _upright_rgb(_open(item, source), source))


def _is_text(images: Any) -> bool:
    return isinstance(images, np.ndarray) and images.dtype.kind in "US"


def _name_image(item: Any, index: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        return os.fsdecode(item)
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
        item = Path(source)
    elif not hasattr(item, "read"):
        raise ImageInputError(
            f"{source} is a {type(item).__name__}; wanted a path, bytes, file object, PIL image, array or tensor."
        )
    image = open_file(item, source)
    with _translate_errors(source):
        _check_png(image)
        image.load()
    return image


def _check_png(image: Image.Image) -> None:
    """Raise SyntaxError or OSError where a checksum of a PNG file is wrong: `load` does not read the last of pixels.

    Image.verify would close the file, and could not go back in a stream.
    """
    if isinstance(image, PngImageFile) and image.fp is not None and not ImageFile.LOAD_TRUNCATED_IMAGES:
        place = image.fp.tell()
        image.fp.seek(PNG_SIGNATURE)
        ChunkStream(image.fp).verify()
        image.fp.seek(place)


def open_file(file: Path | IO[bytes], source: str) -> Image.Image:
    """A picture of which only the header is read. Raises ImageInputError unless it is of one of `FORMATS`."""
    Image.init()
    with _translate_errors(source):
        mode = file.stat().st_mode if isinstance(file, Path) else stat.S_IFREG
        if stat.S_ISREG(mode):
            return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    raise ImageInputError(f"{source} is {kind}; wanted an image file.")


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
            f"{source} is not an image of a kind that is read here (JPEG, PNG, WebP, TIFF, BMP, GIF, PPM and others). "
            "For .heic files of phones install pillow-heif and call pillow_heif.register_heif_opener() first. Bytes "
            "are taken as the contents of a file: a path has to be text or a Path."
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None)  # of the system; Pillow's own errors have none
        reason = f"cannot be opened: {reason}" if reason else f"cannot be read, it may be truncated: {error}"
        raise ImageInputError(f"{source} {reason}.") from error


def _channels_last(tensor: torch.Tensor, source: str) -> Array:
    if tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4):
        raise ImageInputError(
            f"{source} is a tensor of shape {tuple(tensor.shape)}; wanted (3, H, W). Arrays are taken as (H, W, 3)."
        )
    try:
        array = tensor.detach().cpu()
        array = array.float() if array.is_floating_point() and array.element_size() < 4 else array
        return (array.permute(1, 2, 0) if array.ndim == 3 else array).numpy()
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        raise ImageInputError(
            f"{source} is a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}, and its pixels cannot be "
            "read; wanted a dense one of uint8, or float in 0..1."
        ) from error


def _from_array(array: Array, source: str) -> Image.Image:
    if array.ndim == 4:
        raise ImageInputError(
            f"{source} is a batch of shape {array.shape} within a list; pass the batch itself, or the images of it one "
            "by one: [*batch]."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ImageInputError(f"{source} is an array of shape {array.shape}; wanted (H, W, 3) RGB or (H, W) grey.")
    return Image.fromarray(_to_uint8(array, source))


def _to_uint8(array: Array, source: str) -> Array:
    """8 bits a channel from uint8, other integers (0..65535) or float (0..1) pixels."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    is_float, kind = array.dtype.kind == "f", array.dtype.name
    if array.dtype.kind not in "iuf":
        raise ImageInputError(f"{source} has pixels of type {kind}; wanted uint8, uint16 or float in 0..1.")
    if is_float and not np.isfinite(array).all():
        raise ImageInputError(f"{source} has pixels that are nan or infinite.")
    full, slack = (1, ROUNDING) if is_float else (65535, 0)
    low, high = array.min().item(), array.max().item()
    if low < -slack or high > full + slack:
        raise ImageInputError(
            f"{source} has {kind} pixels from {low:g} to {high:g}; wanted 0..{full}. Pixels of 0..255 go in as uint8, "
            f"normalised ones have to be brought back to 0..{full} first."
        )
    brightest = high if array.ndim == 2 else array[..., :3].max().item()  # of the colours, not of the opacity
    if brightest <= DARK * full:
        raise ImageInputError(
            f"{source} has {kind} pixels, 0 black and {full} white, but the brightest is {brightest:g}: all would be "
            f"black. Pixels of 0..255 go in as uint8; those of 0..1023 or 0..4095 have to be scaled to 0..{full} first."
        )
    if is_float:
        return (array.clip(0, 1) * 255).round().astype(np.uint8)
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _upright_rgb(image: Image.Image, source: str) -> Image.Image:
    if 0 in image.size:
        raise ImageInputError(f"{source} is {image.width} x {image.height} pixels: it is empty.")
    with _translate_errors(source):  # a PIL image that the caller opened loads only here
        image.load()
    method = UPRIGHT.get(_orientation(image))
    if method is not None:
        image = image.transpose(method)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _from_array(np.asarray(image), source).convert("RGB")
    if image.has_transparency_data:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if layer.getchannel("A").getextrema() == (0, 0):
            raise ImageInputError(
                f"{source} is transparent everywhere. If the last channel is not its opacity, pass the others only."
            )
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> Any:
    """As EXIF or XMP has it. ImageOps.exif_transpose would rewrite all of EXIF, and fails where a tag is invalid."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # invalid EXIF counts as none
        return None


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
        numbers = np.asarray(box.tolist() if isinstance(box, torch.Tensor) else box, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor without numbers, on "meta"
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
