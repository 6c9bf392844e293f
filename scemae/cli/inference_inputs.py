"""What the commands that use a model are given: photos, boxes, annotations, points."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scemae.errors import ImageInputError, OptionError, TableError
from scemae.output import real_path
from scemae.tables import FaceKey, boxes_by_image, match_boxes, read_annotations, read_boxes

if TYPE_CHECKING:
    from scemae.images import ImageBatch

Annotations = Mapping[FaceKey, Mapping[str, tuple[float, float]]]


def open_batch(images: list[str], args: argparse.Namespace, annotated: Annotations | None = None) -> ImageBatch:
    """The images with their boxes, without those that cannot be used, of which the batch keeps a list.

    The first of them are those with annotations, each with the one face that these are of; they have to be usable.
    """
    from scemae.images import ImageBatch

    annotated = annotated or {}
    boxes = args.boxes
    if has_table(args):
        table = read_boxes(args.boxes)
        boxes = match_boxes(annotated, table) + _boxes_of(images[len(annotated) :], boxes_by_image(table), args)
    batch = ImageBatch(images, boxes, on_error="skip")
    batch.landmarks = [list(points.values()) for points in annotated.values()]
    return batch


def has_table(args: argparse.Namespace) -> bool:
    """Whether --boxes names a table."""
    return args.boxes not in (None, "auto")


def _boxes_of(images: Sequence[str], boxes: Mapping[Path, Any], args: argparse.Namespace) -> list[Any]:
    """The boxes of each image by the number of the face; raises TableError for an image without one."""
    absent = [image for image in images if real_path(image) not in boxes]
    if absent:
        raise TableError(f"{args.boxes} has no box for {absent[0]}.")
    return [boxes[real_path(image)] for image in images]


def list_photos(paths: Sequence[str]) -> list[str]:
    """The photos at these paths and in folders among them, each once; raises ImageInputError for a folder of none."""
    from scemae.photo import list_pictures

    photos: dict[Path, str] = {}
    for path in paths:
        inside = [str(photo) for photo in list_pictures(Path(path))] if os.path.isdir(path) else [path]
        if not inside:
            raise ImageInputError(f"{path} holds no pictures; wanted photos, or a folder of photos.")
        for photo in inside:
            photos.setdefault(real_path(photo), photo)
    return list(photos.values())


def path_in_table(source: str, table: Path) -> str:
    """The path of an image relative to the folder of a table, in which it may lie on another drive."""
    folder, name = os.path.split(source)
    path = os.path.join(os.path.realpath(folder), name)
    try:
        return os.path.relpath(path, os.path.realpath(table.parent))
    except ValueError:  # on Windows
        return path


def reference_points(args: argparse.Namespace) -> tuple[FaceKey, dict[str, tuple[float, float]]]:
    """The face of the reference, and its points from --points and --point."""
    key = FaceKey(Path(args.reference))
    points: dict[str, tuple[float, float]] = {}
    if args.points:
        reference = real_path(args.reference)
        rows = [row for row in read_annotations(args.points).items() if real_path(row[0].path) == reference]
        if not rows:
            raise TableError(f"{args.points} has no landmarks of {args.reference}.")
        if len(rows) > 1:
            raise TableError(f"{args.points} has landmarks of {len(rows)} faces of {args.reference}; wanted one face.")
        [(key, points)] = rows
    for text in args.point or []:
        name, _, place = text.rpartition("=")
        try:
            x, y = (float(number) for number in place.split(","))
        except ValueError as error:
            raise OptionError(f"--point is {text!r}; wanted NAME=X,Y or X,Y in pixels of the reference.") from error
        name = name.strip() or str(len(points))
        if name in points:
            raise OptionError(f"The point {name!r} is given twice; wanted each name once in --points and --point.")
        points[name] = (x, y)
    if not points:
        raise OptionError("There are no points to match; pass --points FILE.csv or --point NAME=X,Y.")
    return key, points
