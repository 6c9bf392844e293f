"""extract_features: images -> patches -> alignment -> views -> maps -> FaceFeatures."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from scemae.errors import ImageInputError, OptionError, warn_user
from scemae.face_boxes import find_faces_on
from scemae.features import Face, FaceFeatures, name_faces
from scemae.geometry import IDENTITY, Array, Box, Crop, compose, invert, sample_view
from scemae.images import FramedFace, ImageBatch, ImageLike, OnError
from scemae.model.aligner import Aligner, Located, is_plausible, other_starts
from scemae.model.config import validate_switch
from scemae.model.extractor import Extractor
from scemae.numerics import default_numerics
from scemae.patches import cut_patch
from scemae.photo import Photo
from scemae.progress import with_progress

Margin = Literal["context", "reflect"]
Search = Literal["auto", "none"]
Boxes = ArrayLike | Iterable[ArrayLike | None] | Literal["auto"] | None
NAMED = 5  # images that a warning names
HELD_PIXELS = 200e6  # of photos in memory at a time, 4 bytes each: as many as of 16 photos of 12 MP
CONTRAST = 16  # of 255: a square in which no channel varies as much shows nothing


def extract_features(
    model: Extractor,
    images: ImageLike | Iterable[ImageLike],
    *,
    boxes: Boxes = None,
    align: bool | None = None,
    expansion: int | None = None,
    margin: Margin = "context",
    search: Search = "auto",
    batch_size: int = 16,
    progress: bool | None = None,
    on_error: OnError = "raise",
) -> FaceFeatures:
    """Dense features of one face in each image.

    Args:
        model: from `load_model`.
        images: one image or any iterable of them, of any type: path, bytes, file object, PIL image, array
            (H, W, 3), tensor (3, H, W), RGB. EXIF rotation is applied. One that would turn black or white for its
            scale, or is transparent everywhere, is refused.
        boxes: one (x0, y0, x1, y1) per image, pixel edges of the upright image, around the face from brow to chin;
            one that is not square is extended to a square. "auto" takes all faces that `find_faces` finds on each
            image, an image without one is an error. None uses the central 96/136 of the largest centred square,
            for images in which the face fills the frame as in the datasets.
        align: rotate, scale and centre each face first, learned without labels (default: yes if the model has an
            aligner). False is the paper's fixed crop.
        expansion: cells per patch side gained by cover-and-stride, 1, 2, 4 or 8; the time grows with its square.
            Default: the model's.
        margin: what the shifts see beyond the view: "context", the photo's own pixels, or "reflect", the view
            mirrored, as if there were nothing beyond it.
        search: "auto" starts a face that is not found again from larger and shifted squares; "none" does not.
        batch_size: number of faces in one pass through the model; fewer are aligned together where photos are huge.
        progress: show a progress bar; None shows one on a terminal when the work is long.
        on_error: "raise" for the first image or box that cannot be used; or "skip" to leave such images out, with a
            warning that names each: `faces` of the result tell which are there (`source`).

    Returns:
        FaceFeatures of all images in their order, on the CPU.

    Raises:
        ImageInputError: an image cannot be used, with on_error="skip" not one; the message names it.
        BoxInputError: a box is invalid, or there is not one per image.
        OptionError: the model is not one, does not have this expansion or has no aligner, or margin or on_error has
            another value.

    Warns of a face whose square is of one colour.
    """
    batch = open_batch(images, boxes, on_error)
    parts = stream_features(
        model, batch, align=align, expansion=expansion, margin=margin, search=search, batch_size=batch_size
    )
    return FaceFeatures.concatenate(list(with_progress(parts, batch.count, progress)))


def iter_features(
    model: Extractor,
    images: ImageLike | Iterable[ImageLike],
    *,
    boxes: Boxes = None,
    align: bool | None = None,
    expansion: int | None = None,
    margin: Margin = "context",
    search: Search = "auto",
    batch_size: int = 16,
    on_error: OnError = "raise",
) -> Iterator[FaceFeatures]:
    """Like `extract_features`, one batch at a time: for generators, and for more images than fit in memory."""
    batch = open_batch(images, boxes, on_error)
    return stream_features(
        model, batch, align=align, expansion=expansion, margin=margin, search=search, batch_size=batch_size
    )


def stream_features(model: Extractor, batch: ImageBatch, **options: Any) -> Iterator[FaceFeatures]:
    """What `iter_features` yields, for images that are already open; options as of `stream_faces`."""
    framed = stream_faces(model, batch, **options)
    return (replace(faces, backbone_map=_encode_faces(model, faces).cpu()) for faces in framed)


def stream_faces(
    model: Extractor,
    batch: ImageBatch,
    *,
    align: bool | None = None,
    expansion: int | None = None,
    margin: Margin = "context",
    search: Search = "auto",
    batch_size: int = 16,
) -> Iterator[FaceFeatures]:
    """What `iter_features` yields, but without maps: (B, 0, 0, 0); `encode_faces` makes them when they are wanted.

    Options are checked before it returns.
    """
    validate_model(model)
    if align is not None:
        validate_switch("align", align)
    if align and model.aligner is None:
        raise OptionError(f"Model {model.config.name!r} has no aligner; pass align=False.")
    if margin not in ("context", "reflect"):
        raise OptionError(f"margin is {margin!r}; it must be 'context' or 'reflect'.")
    if search not in ("auto", "none"):
        raise OptionError(f"search is {search!r}; it must be 'auto' or 'none'.")
    if _whole("batch_size", batch_size) < 1:
        raise OptionError(f"batch_size is {batch_size}; it must be at least 1.")
    aligner = model.aligner if align is None or align else None
    expansion = model.config.expansion if expansion is None else _whole("expansion", expansion)
    model.grid(expansion)  # raises OptionError for an expansion that the model does not have
    if batch.auto:
        batch.find_boxes = partial(_find_boxes, model)
    return _frame_batches(model, iter(batch), aligner, expansion, margin, search, min(batch_size, sys.maxsize))


def encode_faces(model: Extractor, features: FaceFeatures) -> FaceFeatures:
    """The same faces with maps made now, in one batch; they and the projector stay on the model's device."""
    project = None if model.projector is None else model.projector.project
    maps = _encode_faces(model, features)
    return replace(features, backbone_map=maps, project=project, shape_reader=model.dense_shape)


def _find_boxes(model: Extractor, photo: Photo) -> Array:
    return find_faces_on(photo, model).xyxy


def validate_model(model: object) -> None:
    """Raise OptionError for what is no `Extractor`: the name of a model, say, or a class of them."""
    if isinstance(model, (str, os.PathLike)):
        raise OptionError(f"model is {str(model)!r}; wanted a model: pass scemae.load_model({str(model)!r}).")
    if isinstance(model, type) or not hasattr(model, "view_size"):
        raise OptionError(f"model is a {type(model).__name__}; wanted what scemae.load_model returns.")


def features_through_crops(
    model: Extractor, features: FaceFeatures, crops: Sequence[Crop], batch_size: int = 16
) -> FaceFeatures:
    """Features of the same faces seen through other crops, one for each, from their patches.

    A crop maps its own input pixels to the same image, so landmarks in image pixels stay as they are.
    """
    seen = see_through(features, crops)
    parts = (seen[start : start + batch_size] for start in range(0, len(seen), batch_size))
    return replace(seen, backbone_map=torch.cat([_encode_faces(model, part).cpu() for part in parts]))


def see_through(features: FaceFeatures, crops: Sequence[Crop]) -> FaceFeatures:
    """The same faces with other crops, one for each, and without maps, as `stream_faces` gives them."""
    faces = tuple(replace(face, crop=crop) for face, crop in zip(features.faces, crops, strict=True))
    return replace(features, backbone_map=features.backbone_map.new_empty(len(faces), 0, 0, 0), faces=faces)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise OptionError(f"{name} is {value!r}; it must be a whole number.")
    return int(value)


def open_batch(images: Any, boxes: Any, on_error: OnError) -> ImageBatch:
    """The images of one call, unless they are an ImageBatch already."""
    if isinstance(images, ImageBatch):
        return images
    if isinstance(images, FaceFeatures):
        raise ImageInputError("images are FaceFeatures already: pass them to match_landmarks or fit_regressor.")
    return ImageBatch(images, boxes, on_error)


def _frame_batches(
    model: Extractor,
    framed: Iterator[FramedFace],
    aligner: Aligner | None,
    expansion: int,
    margin: Margin,
    search: Search,
    batch_size: int,
) -> Iterator[FaceFeatures]:
    # A copy on the CPU: features are values, and travel to machines without a GPU.
    project = None if model.projector is None else deepcopy(model.projector).cpu().project
    shape_reader = None if model.dense_shape is None else deepcopy(model.dense_shape).cpu()
    while faces := _frame_faces(model, aligner, islice(framed, batch_size), search):
        yield FaceFeatures(
            backbone_map=torch.empty(len(faces), 0, 0, 0),
            grid=model.grid(expansion),
            faces=tuple(faces),
            expansion=expansion,
            aligned=aligner is not None,
            margin=margin,
            model=model.id,
            config=model.config,
            project=project,
            shape_reader=shape_reader,
        )


def _frame_faces(model: Extractor, aligner: Aligner | None, framed: Iterator[FramedFace], search: Search) -> list[Face]:
    """The faces on photos with boxes, aligned if there is an aligner. It holds `HELD_PIXELS` of photos, or one."""
    at_input_scale = aligner is None and model.view_size == model.config.input_size
    faces: list[Face] = []
    held: list[Photo] = []  # the photos of the last faces, from which alignment may cut other patches

    def align_last() -> None:
        if held and aligner is not None:
            faces[-len(held) :] = _align_faces(model, aligner, held, faces[-len(held) :], search)
        held.clear()

    for photo, box, number in framed:
        faces.append(_cut_face(photo, box, number, at_input_scale, model.config.input_size))
        held.append(photo)
        del photo  # which `held` alone shall hold while the next is read
        if aligner is None or sum(math.prod(photo.image.size) for photo in (*held, held[-1])) > HELD_PIXELS:
            align_last()
    align_last()
    _warn_of_lost(faces)
    return faces


def _warn_of_lost(faces: Sequence[Face]) -> None:
    lost = [name for face, name in zip(faces, name_faces(faces), strict=True) if face.found is False]
    if lost:
        named = "; ".join(dict.fromkeys(lost[:NAMED]))
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        warn_user(
            f"No face was found in the box of {named}{more}: what follows for it means nothing (`found` is False). "
            "Pass the box of the face, without which the middle of the image is taken, or boxes='auto' (--boxes auto) "
            "to have it found; features.draw() shows what was seen."
        )


def _cut_face(photo: Photo, box: Box, number: int, at_input_scale: bool, input_size: int) -> Face:
    crop = Crop.from_box(box, input_size)
    patch = cut_patch(photo.image, crop, at_input_scale)
    quarter = len(patch.pixels) // 4
    if np.ptp(patch.pixels[quarter:-quarter, quarter:-quarter], axis=(0, 1)).max() < CONTRAST:
        warn_user(
            f"The square of the face in {photo.source} is of one colour. Is its box right, and its picture neither "
            "black nor white?"
        )
    return Face(source=photo.source, number=number, image_size=photo.image.size, crop=crop, patch=patch)


@default_numerics()
def _align_faces(
    model: Extractor, aligner: Aligner, photos: list[Photo], faces: list[Face], search: Search
) -> list[Face]:
    """The faces with the crops that the aligner's steps lead to.

    With search="auto" a face that is not found is started again from larger and shifted crops, all in one batch; of
    these and the first start the surest is kept.
    """
    aligned = _take_steps(model, aligner, photos, faces)
    lost = [i for i, face in enumerate(aligned) if search == "auto" and face.found is False]
    tries = [(i, replace(faces[i], crop=start)) for i in lost for start in other_starts(faces[i].crop)]
    again = _take_steps(model, aligner, [photos[i] for i, _ in tries], [face for _, face in tries])
    for (i, _), face in zip(tries, again, strict=True):
        if face.score > aligned[i].score:
            aligned[i] = replace(
                face,
                alignment=aligner.describe(compose(invert(faces[i].crop.to_image_affine), face.crop.to_image_affine)),
            )
    return aligned


def _take_steps(model: Extractor, aligner: Aligner, photos: list[Photo], faces: list[Face]) -> list[Face]:
    """The faces with the crops that the aligner's steps lead to, and what it says of them.

    A step that loses the face (see `is_plausible`) is not taken; if it is the last one, no face is found.
    """
    starts, faces = [face.crop for face in faces], list(faces)

    def crop_of(row: int, affine: Tensor) -> Crop:
        return starts[row].refine(affine.numpy())

    def locate(rows: Tensor, affines: Tensor, step: int) -> Located:
        for row, affine in zip(rows.tolist(), affines, strict=True):
            faces[row] = _move_face(faces[row], crop_of(row, affine), photos[row], model.view_margin)
        crops = [(faces[row].patch, faces[row].crop.resample(aligner.view_size)) for row in rows.tolist()]
        with torch.inference_mode():
            return model.locate_face(torch.stack([sample_view(patch, crop) for patch, crop in crops]), step)

    def accept(rows: Tensor, affines: Tensor) -> Tensor:
        centres = np.stack([crop_of(row, affine).centre for row, affine in zip(rows.tolist(), affines, strict=True)])
        extents = np.array([photos[row].image.size for row in rows.tolist()])
        return torch.from_numpy(is_plausible(np.linalg.det(affines[..., :2].numpy()), centres, extents))

    affines, log_errors = aligner.align(torch.from_numpy(IDENTITY).expand(len(faces), 2, 3), locate, accept)
    scores = aligner.face_scores(log_errors).tolist()
    return [
        replace(
            _move_face(face, crop_of(row, affines[row]), photos[row], model.view_margin),
            alignment=aligner.describe(affines[row].numpy()),
            score=scores[row],
        )
        for row, face in enumerate(faces)
    ]


def _move_face(face: Face, crop: Crop, photo: Photo, margin: int) -> Face:
    """The face seen through another crop; its patch is cut again where the old one does not serve."""
    patch = face.patch if face.patch.serves(crop.pad(margin)) else cut_patch(photo.image, crop)
    return replace(face, crop=crop, patch=patch)


@default_numerics()
def _encode_faces(model: Extractor, features: FaceFeatures) -> Tensor:
    """Backbone maps (B, D, h, w) of the faces' crops, on the model's device."""
    context = model.view_margin if features.margin == "context" else 0
    crops = [face.crop.resample(model.view_size).pad(context) for face in features.faces]
    views = torch.stack([sample_view(face.patch, crop) for face, crop in zip(features.faces, crops, strict=True)])
    views = F.pad(model.normalise(views), (model.view_margin - context,) * 4, mode="reflect")
    with torch.no_grad():  # not inference mode: people train heads of their own on these maps
        return model(views, features.expansion)
