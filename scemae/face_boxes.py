"""find_faces: a photo -> the boxes of its faces, found without labels (docs/find.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scemae.errors import ImageInputError, OptionError
from scemae.features import FOUND
from scemae.geometry import (
    Crop,
    apply_affines,
    build_pyramid,
    central_box,
    determinants,
    resample_crops,
    sample_pyramid,
)
from scemae.images import ImageLike, is_single, iter_photos
from scemae.model.aligner import Aligned, FaceAligner, Located, other_starts
from scemae.model.extractor import Extractor
from scemae.model.face_finder import FaceFinder
from scemae.model.sce_mae import SceMae
from scemae.numerics import default_numerics
from scemae.photo import Photo

SMALLEST = 16  # px: the least `min_size`
CLOSER = 256  # places of a photo that the aligner looks at, at most
SMALLER = 0.6  # sides down to which the aligner may shrink a find, in sides of the smallest faces
HOPELESS = -0.7  # log error: a place is given up where the aligner expects to be off by more, after any step
SAME = 0.5  # two finds closer than this, in sides of the larger one, are one face


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceBoxes:
    """The N faces of one image, the surest first.

    Attributes:
        xyxy: (N, 4), the squares (x0, y0, x1, y1) of the faces from brow to chin, pixel edges of the upright image.
        scores: (N,), the probability that there is a face, 0.5..1.
        rolls: (N,), by how much each face is turned, degrees, clockwise as seen.
        image_size: (width, height) of the upright image, px.
        source: the name of the image.
    """

    xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    rolls: NDArray[np.float64]
    image_size: tuple[int, int]
    source: str

    def __len__(self) -> int:
        return len(self.xyxy)

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        return iter(self.xyxy)


def find_faces(
    image: ImageLike, *, model: SceMae | None = None, min_size: float | None = None, max_faces: int | None = None
) -> FaceBoxes:
    """The faces of a photo, at any roll.

    Args:
        image: as in `extract_features`.
        model: from `load_model`, one with a face finder; None: the default model.
        min_size: side of the smallest faces looked for, from brow to chin, px, at least 16; the time falls with its
            square. None: a thirtieth of the longer side of the image, at least 32 px.
        max_faces: keep the surest ones; None: all.

    Returns:
        FaceBoxes, perhaps of no face.

    Raises:
        ImageInputError: the image cannot be used.
        OptionError: the model cannot find faces, or min_size or max_faces is out of range.
    """
    if not is_single(image):
        raise ImageInputError("find_faces takes one image; call it for each, or pass boxes='auto' for many.")
    photo = next(iter_photos(image))
    return find_faces_on(photo, _default_model() if model is None else model, min_size, max_faces)


@lru_cache(1)
def _default_model() -> SceMae:
    from scemae.weights.zoo import load_model  # which this module is below

    return load_model()


@default_numerics()
def find_faces_on(
    photo: Photo, model: Extractor, min_size: float | None = None, max_faces: int | None = None
) -> FaceBoxes:
    """See `find_faces`."""
    if not (min_size is None or (isinstance(min_size, Real) and SMALLEST <= min_size < math.inf)):
        raise OptionError(f"min_size is {min_size!r}; it must be at least {SMALLEST} px.")
    if not (max_faces is None or (isinstance(max_faces, Integral) and max_faces >= 1)):
        raise OptionError(f"max_faces is {max_faces!r}; it must be a whole number of at least 1, or None for all.")
    min_size = max(max(photo.image.size) / 30, 32.0) if min_size is None else min_size
    finder, aligner = model.finder, model.aligner
    if finder is None or not isinstance(aligner, FaceAligner):
        raise OptionError(f"Model {model.config.name!r} cannot find faces; train one: scemae train find.")
    with torch.inference_mode():
        middle = Crop.from_box(central_box(*photo.image.size), aligner.input_size)  # where a face is without a box
        starts = _first_look(finder, photo.image, min_size, aligner.input_size)
        crops, log_errors = _look_closer(aligner, photo.image, starts, middle, min_size)
    sides, turns = _sides(crops) * aligner.input_size, torch.rad2deg(_angles(crops))
    middles = _middles(crops, aligner.input_size) + 0.5
    scores = aligner.face_scores(log_errors)
    kept: list[int] = []
    for row in log_errors.argsort().tolist():
        far = [(middles[row] - middles[k]).norm() > SAME * max(sides[row], sides[k]) for k in kept]
        if scores[row] >= FOUND and all(far):
            kept.append(row)
    kept = kept[:max_faces]
    half = sides[kept, None] / 2
    return FaceBoxes(
        xyxy=torch.cat([middles[kept] - half, middles[kept] + half], dim=1).numpy(),
        scores=scores[kept].numpy(),
        rolls=turns[kept].numpy(),
        image_size=photo.image.size,
        source=photo.source,
    )


def _first_look(finder: FaceFinder, image: Image.Image, min_size: float, size: int) -> Tensor:
    """Crops (n, 2, 3) of `size` px about the places where the finder sees a face, the likeliest first."""
    smallest, largest = finder.config.sides
    found = []
    scale = smallest / min_size
    while max(image.size) * scale > smallest:
        extent = [max(round(side * scale), 1) for side in image.size]
        level = image.resize((extent[0], extent[1]), Image.Resampling.BILINEAR, reducing_gap=2.0)
        pixels = torch.from_numpy(np.array(level)).permute(2, 0, 1)[None].float() / 255
        seen = finder(pixels.contiguous(memory_format=torch.channels_last))
        peak = seen.logits == F.max_pool2d(seen.logits[:, None], 3, 1, 1)[:, 0]
        _, rows, columns = (peak & (seen.logits >= finder.config.threshold)).nonzero(as_tuple=True)
        shrink = torch.tensor([image.width / extent[0], image.height / extent[1]])
        middles = (seen.centres[0, :, rows, columns].T + 0.5) * shrink - 0.5
        found.append(
            torch.cat(
                [
                    seen.logits[0, rows, columns, None],
                    middles,
                    seen.sides[0, rows, columns, None] * shrink.mean(),
                    seen.rolls[0, rows, columns, None],
                ],
                dim=1,
            )
        )
        scale *= smallest / largest
    places = torch.cat([torch.zeros(0, 5), *found]).double()
    places = places[places[:, 0].argsort(descending=True)][: 4 * CLOSER]
    kept: list[int] = []
    for row in range(len(places)):
        others = places[kept]
        larger, smaller = others[:, 3].clamp(min=float(places[row, 3])), others[:, 3].clamp(max=float(places[row, 3]))
        far = (others[:, 1:3] - places[row, 1:3]).norm(dim=1) > SAME / 2 * smaller
        if bool((far | (larger > 1.5 * smaller)).all()) and len(kept) < CLOSER:
            kept.append(row)
    _, x, y, sides, rolls = places[kept].unbind(1)
    linear = torch.stack([rolls.cos(), -rolls.sin(), rolls.sin(), rolls.cos()], dim=1).view(-1, 2, 2)
    linear = linear * (sides / size)[:, None, None]
    middle = linear.new_full((2,), (size - 1) / 2)
    return torch.cat([linear, (torch.stack([x, y], dim=1) - linear @ middle)[..., None]], dim=2)


def _look_closer(aligner: FaceAligner, image: Image.Image, starts: Tensor, middle: Crop, min_size: float) -> Aligned:
    """The crops that the steps lead to from these starts and the middle; if none has a face, from around it too."""
    # The views of the smallest faces have so many pixels of the photo per pixel: halves of it are enough, and small.
    shrink = 2 ** max(int(math.log2(max(SMALLER * min_size / aligner.view_size, 1))), 0)
    pixels = torch.from_numpy(np.array(image.reduce(shrink))).permute(2, 0, 1)[None].contiguous().float() / 255
    levels = build_pyramid(pixels)
    extent = torch.tensor(image.size, dtype=torch.float64)

    def locate(_rows: Tensor, affines: Tensor, _step: int) -> Located:
        crops = resample_crops(affines, aligner.input_size, aligner.view_size)
        crops = torch.cat([crops[..., :2], crops[..., 2:] + 0.5], dim=2) / shrink
        crops[..., 2] -= 0.5
        views = sample_pyramid(levels, crops, aligner.view_size)
        return aligner(views.contiguous(memory_format=torch.channels_last))

    def accept(_rows: Tensor, affines: Tensor) -> Tensor:
        middles = _middles(affines, aligner.input_size)
        sides = _sides(affines) * aligner.input_size
        inside = ((middles >= -0.5) & (middles <= extent - 0.5)).all(-1)
        return inside & (determinants(affines) > 0) & (sides >= SMALLER * min_size) & (sides <= 1.5 * extent.max())

    starts = torch.cat([starts, _stack_affines([middle])])
    first = aligner.align(starts, locate, accept, hopeless=HOPELESS)
    if (aligner.face_scores(first.log_errors) >= FOUND).any():
        return first
    second = aligner.align(_stack_affines(other_starts(middle)), locate, accept, hopeless=HOPELESS)
    return Aligned(*(torch.cat(parts) for parts in zip(first, second, strict=True)))


def _stack_affines(crops: Sequence[Crop]) -> Tensor:
    return torch.from_numpy(np.stack([crop.to_image_affine for crop in crops]))


def _sides(crops: Tensor) -> Tensor:
    return determinants(crops).abs().sqrt()


def _middles(crops: Tensor, size: int) -> Tensor:
    """The middles (n, 2) of crops (n, 2, 3) of `size` px, in pixels of the picture."""
    return apply_affines(crops, crops.new_full((1, 1, 2), (size - 1) / 2))[:, 0]


def _angles(crops: Tensor) -> Tensor:
    return torch.atan2(crops[:, 1, 0] - crops[:, 0, 1], crops[:, 0, 0] + crops[:, 1, 1])
