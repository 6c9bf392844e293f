"""The box of a face on a photo -> the patch of pixels around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from scemae.errors import BoxInputError, ImageInputError
from scemae.geometry import Array, Box, Crop, Patch, central_box
from scemae.metrics import fill_masked
from scemae.photo import Photo

MIN_BOX = 8  # image px: a smaller box is a mistake, or its face cannot be recognised
DENSITY = 2  # patch px per input px, so that a view can be turned and zoomed without losing detail
REACH = 2  # side of a patch over that of its crop


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
    box = fill_masked(box)
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
