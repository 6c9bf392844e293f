"""extract_features: images -> patches -> alignment -> views -> maps -> FaceFeatures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from scemae.errors import BoxInputError, ImageInputError, OptionError
from scemae.features import Face, FaceFeatures
from scemae.geometry import Array, CellGrid, Crop, compose, sample_view
from scemae.images import ImageLike, Photo, count_images, cut_patch, is_single, iter_photos, validate_box
from scemae.model.aligner import FaceAligner
from scemae.model.config import ModelConfig, ModelId
from scemae.model.projector import Projector
from scemae.numerics import default_numerics
from scemae.progress import with_progress

Margin = Literal["context", "reflect"]
Boxes = ArrayLike | Iterable[ArrayLike | None] | None
IDENTITY = np.eye(3)[:2]
ZOOM = (0.25, 4.0)  # an alignment that rescales by more than this has lost the face


class Extractor(Protocol):
    """What the verbs need of a model. `SceMae` is one, and so is whatever else turns views of faces into maps.

    A view shows the face's crop in `view_size` px a side, and `view_margin` px of its surroundings all round.
    """

    id: ModelId
    config: ModelConfig

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def view_size(self) -> int: ...

    @property
    def view_margin(self) -> int: ...

    @property
    def aligner(self) -> FaceAligner | None: ...

    @property
    def projector(self) -> Projector | None: ...

    def normalise(self, views: Tensor) -> Tensor:
        """Views of pixels 0..1, on the CPU, to what the other methods take."""

    def patch_tokens(self, views: Tensor) -> Tensor:
        """What the aligner reads, (B, N, D), in normalised views of `config.input_size` px without margin."""

    def __call__(self, views: Tensor, expansion: int) -> Tensor:
        """Normalised views (B, 3, S, S), S with both margins, to maps (B, D, h, w)."""

    def grid(self, expansion: int) -> CellGrid:
        """Where the cells of these maps lie, in pixels of the input."""


def extract_features(
    model: Extractor,
    images: ImageLike | Iterable[ImageLike],
    *,
    boxes: Boxes = None,
    align: bool | None = None,
    expansion: int | None = None,
    margin: Margin = "context",
    batch_size: int = 16,
    progress: bool | None = None,
) -> FaceFeatures:
    """Dense features of one face in each image.

    Args:
        model: what `load_model` gives.
        images: one image or any iterable of them, mixed as they come: path, bytes, file object, PIL image, array
            (H, W, 3), tensor (3, H, W), RGB. EXIF rotation is applied.
        boxes: None, where the face fills the picture as in the datasets (the central 96/136 of the largest centred
            square is looked at); or one (x0, y0, x1, y1) per image, pixel edges of the upright image, around the
            face from brow to chin. One that is not square grows to a square.
        align: turn, scale and centre each face first, learned without labels (default: yes if the model can). False
            is the paper's fixed crop.
        expansion: cells per patch side gained by cover-and-stride, 1, 2, 4 or 8; the time grows with its square.
            Default: the model's.
        margin: what the shifts see beyond the view: "context", the photo's own pixels, or "reflect", the view
            mirrored, as in the paper's protocol.
        batch_size: how many faces go through the model together.
        progress: show a bar; None shows one on a terminal when the work is long.

    Returns:
        FaceFeatures of all images in their order, on the CPU.

    Raises:
        ImageInputError: an image that cannot be used; says which.
        BoxInputError: a box that cannot be right, or not one per image.
        OptionError: an expansion or margin that is none, or a model without aligner.
    """
    _refuse_nothing(images)
    counted = count_images(images)
    steps = iter_features(
        model, images, boxes=boxes, align=align, expansion=expansion, margin=margin, batch_size=batch_size
    )
    return FaceFeatures.concatenate(list(with_progress(steps, counted, progress)))


def iter_features(
    model: Extractor,
    images: ImageLike | Iterable[ImageLike],
    *,
    boxes: Boxes = None,
    align: bool | None = None,
    expansion: int | None = None,
    margin: Margin = "context",
    batch_size: int = 16,
) -> Iterator[FaceFeatures]:
    """Like `extract_features`, one batch at a time: for more images than memory holds, and for generators."""
    if align and model.aligner is None:
        raise OptionError(f"Model {model.config.name!r} has no aligner; pass align=False.")
    if margin not in ("context", "reflect"):
        raise OptionError(f"margin is {margin!r}; it must be 'context' or 'reflect'.")
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}; it must be at least 1.")
    aligner = model.aligner if align is None or align else None
    expansion = model.config.expansion if expansion is None else expansion
    model.grid(expansion)  # raises at once where the expansion is not one
    return _batches(model, _pairs(images, boxes), aligner, expansion, margin, batch_size)


def features_through_crops(
    model: Extractor, features: FaceFeatures, crops: Sequence[Crop], batch_size: int = 16
) -> FaceFeatures:
    """Features of the same faces seen through other crops, one for each, from their patches.

    A crop maps its own input pixels to the same image, so landmarks in image pixels stay as they are.
    """
    faces = [replace(face, crop=crop) for face, crop in zip(features.faces, crops, strict=True)]
    maps = [
        _maps(model, faces[start : start + batch_size], features.expansion, features.margin)
        for start in range(0, len(faces), batch_size)
    ]
    return replace(features, backbone_map=torch.cat(maps), faces=tuple(faces))


def _refuse_nothing(images: Any) -> None:
    if isinstance(images, FaceFeatures):
        raise ImageInputError("images are FaceFeatures already: pass them to match_landmarks or fit_regressor.")


def _pairs(images: Any, boxes: Any) -> Iterator[tuple[Photo, Any]]:
    """Each photo with its box; raises BoxInputError where their numbers differ."""
    photos = iter_photos(images)
    if boxes is None:
        return ((photo, None) for photo in photos)
    if is_single(images):
        given: list[Any] = list(boxes) if isinstance(boxes, Iterable) else [boxes]
        boxes = [given] if given and given[0] is not None and np.ndim(given[0]) == 0 else given
    counts = count_images(images), _count_boxes(boxes)
    if None not in counts and counts[0] != counts[1]:
        raise BoxInputError(
            f"{counts[1]} boxes for {counts[0]} images; wanted one (x0, y0, x1, y1) per image. For several faces of "
            "one photo give it once for each: [photo] * n."
        )
    return _zipped(photos, iter(boxes))


def _count_boxes(boxes: Any) -> int | None:
    return len(boxes) if isinstance(boxes, (Sequence, np.ndarray, Tensor)) else None


def _zipped(photos: Iterator[Photo], boxes: Iterator[Any]) -> Iterator[tuple[Photo, Any]]:
    missing = object()
    for photo in photos:
        box = next(boxes, missing)
        if box is missing:
            raise BoxInputError(f"There is no box for {photo.source}; wanted one (x0, y0, x1, y1) per image.")
        yield photo, box
    if next(boxes, missing) is not missing:
        raise BoxInputError("There are more boxes than images; wanted one (x0, y0, x1, y1) per image.")


def _batches(
    model: Extractor,
    pairs: Iterator[tuple[Photo, Any]],
    aligner: FaceAligner | None,
    expansion: int,
    margin: Margin,
    batch_size: int,
) -> Iterator[FaceFeatures]:
    # A copy on the CPU: features are values, and travel to machines without a GPU.
    project = None if model.projector is None else deepcopy(model.projector).cpu().project
    while batch := list(islice(pairs, batch_size)):
        photos = [photo for photo, _ in batch]
        at_input_scale = aligner is None and model.view_size == model.config.input_size
        faces = [_first_look(photo, box, at_input_scale, model.config.input_size) for photo, box in batch]
        if aligner is not None:
            faces = _aligned(model, aligner, photos, faces)
        maps = _maps(model, faces, expansion, margin)
        yield FaceFeatures(
            maps,
            model.grid(expansion),
            tuple(faces),
            expansion,
            aligned=aligner is not None,
            margin=margin,
            model=model.id,
            config=model.config,
            project=project,
        )


def _first_look(photo: Photo, box: Any, at_input_scale: bool, input_size: int) -> Face:
    crop = Crop.from_box(validate_box(box, photo), input_size)
    return Face(photo.source, photo.image.size, crop, cut_patch(photo.image, crop, at_input_scale))


@default_numerics()
def _aligned(model: Extractor, aligner: FaceAligner, photos: list[Photo], faces: list[Face]) -> list[Face]:
    """The faces with the crops that the aligner's steps lead to.

    A step that loses the face (see `_plausible`) is not taken; if it is the last one, the confidence is 0.
    """
    faces = list(faces)
    starts = [face.crop for face in faces]
    totals = [IDENTITY] * len(faces)
    residuals = [np.inf] * len(faces)
    for step, stage in enumerate(aligner.config.steps):
        views = torch.stack([sample_view(face.patch, face.crop) for face in faces])
        with torch.inference_mode():
            points = aligner(model.patch_tokens(model.normalise(views)), stage)
        for i, (affine, residual) in enumerate(aligner.affines(points, step)):
            total = compose(totals[i], affine)
            taken = _plausible(total, starts[i], photos[i])
            residuals[i] = residual if taken else np.inf
            if taken:
                totals[i] = total
                faces[i] = _moved(faces[i], starts[i].refine(total), photos[i], model.view_margin)
    return [
        replace(face, alignment=aligner.describe(total, residual))
        for face, total, residual in zip(faces, totals, residuals, strict=True)
    ]


def _plausible(total: Array, start: Crop, photo: Photo) -> bool:
    """Whether an affine, aligned to starting crop, keeps handedness, rescales within `ZOOM` and stays in the photo."""
    determinant = float(np.linalg.det(total[:, :2]))
    if determinant <= 0 or not ZOOM[0] <= np.sqrt(determinant) <= ZOOM[1]:
        return False
    centre = start.refine(total).to_image([(start.size - 1) / 2] * 2)
    return bool((centre >= -0.5).all() and (centre <= np.array(photo.image.size) - 0.5).all())


def _moved(face: Face, crop: Crop, photo: Photo, margin: int) -> Face:
    """The face seen through another crop, its patch cut anew where the old one does not serve."""
    patch = face.patch if face.patch.serves(crop.pad(margin)) else cut_patch(photo.image, crop)
    return replace(face, crop=crop, patch=patch)


@default_numerics()
def _maps(model: Extractor, faces: Sequence[Face], expansion: int, margin: str) -> Tensor:
    """Backbone maps (B, D, h, w) of the faces' crops, on the CPU."""
    context = model.view_margin if margin == "context" else 0
    crops = [face.crop.resample(model.view_size).pad(context) for face in faces]
    views = torch.stack([sample_view(face.patch, crop) for face, crop in zip(faces, crops, strict=True)])
    views = F.pad(model.normalise(views), (model.view_margin - context,) * 4, mode="reflect")
    with torch.no_grad():  # not inference mode: people train heads of their own on these maps
        maps: Tensor = model(views, expansion)
    return maps.cpu()
