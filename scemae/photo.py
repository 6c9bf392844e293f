"""One image of any kind that users have -> upright RGB."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import ChunkStream, PngImageFile

from scemae.errors import ImageInputError
from scemae.geometry import Array

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


@dataclass(frozen=True)
class Photo:
    """One image, upright RGB, and its name in messages."""

    source: str
    image: Image.Image


def read_photo(item: Any, source: str) -> Photo:
    """An image of any kind that `iter_photos` takes; raises ImageInputError, which names it by `source`."""
    return Photo(source, _upright_rgb(_open(item, source), source))


def is_picture_name(name: str) -> bool:
    """By its ending; hidden files, such as those that macOS puts beside each file of a tar, do not count."""
    path = Path(name)
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS and not path.name.startswith(".")


def list_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and below, in the order of their paths, by their names."""
    return sorted(path for path in folder.rglob("*") if is_picture_name(path.name) and path.is_file())


def is_text(images: Any) -> bool:
    """Whether an array is of texts, which are paths."""
    return isinstance(images, np.ndarray) and images.dtype.kind in "US"


def _open(item: Any, source: str) -> Image.Image:
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, torch.Tensor):
        return _from_array(_channels_last(item, source), source)
    if isinstance(item, np.ndarray) and not is_text(item):
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
    if np.ma.is_masked(array):
        raise ImageInputError(
            f"{source} is a masked array, and parts of it are masked; wanted every pixel: array.filled(0), say."
        )
    array = np.asarray(array)
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
    upright = image.convert("RGB")  # a copy
    upright.info = {}  # its orientation among it, by which a photo that is passed on would be turned again
    return upright


def _orientation(image: Image.Image) -> Any:
    """As EXIF or XMP has it. ImageOps.exif_transpose would rewrite all of EXIF, and fails where a tag is invalid."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # invalid EXIF counts as none
        return None
