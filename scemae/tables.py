"""The CSV files of the command line: annotations `path,name,x,y` (one point a line), boxes `path,x0,y0,x1,y1`."""

from __future__ import annotations

import csv
from os import PathLike
from pathlib import Path

from scemae.errors import TableError

ANNOTATION_COLUMNS = ("path", "name", "x", "y")
BOX_COLUMNS = ("path", "x0", "y0", "x1", "y1")


def read_annotations(path: str | PathLike[str]) -> dict[Path, dict[str, tuple[float, float]]]:
    """Landmarks by image path, name -> (x, y), in the order of the file. Paths are relative to the file's folder."""
    path = Path(path)
    annotations: dict[Path, dict[str, tuple[float, float]]] = {}
    for number, row in _read_rows(path, ANNOTATION_COLUMNS):
        named = annotations.setdefault(path.parent / row["path"], {})
        if row["name"] in named:
            raise TableError(f"{path}, line {number}: {row['name']!r} of {row['path']} is listed twice.")
        x, y = _read_floats(path, number, row, ("x", "y"))
        named[row["name"]] = (x, y)
    if not annotations:
        raise TableError(f"{path} holds no annotations below its header.")
    return annotations


def read_groups(path: str | PathLike[str]) -> dict[Path, str | None]:
    """The group of each image of a table of annotations, in the order of `read_annotations`: its column `group`.

    None where the column is absent, or empty in all lines of an image: the image is on its own.
    """
    path = Path(path)
    groups: dict[Path, str | None] = {}
    for number, row in _read_rows(path, ANNOTATION_COLUMNS):
        image, group = path.parent / row["path"], (row.get("group") or "").strip() or None
        before = groups.setdefault(image, group)
        if group is not None and before not in (None, group):
            raise TableError(
                f"{path}, line {number}: {row['path']} is in group {group!r}, and in {before!r} above; wanted one "
                "group per image."
            )
        groups[image] = before or group
    return groups


def read_boxes(path: str | PathLike[str]) -> dict[Path, tuple[float, float, float, float]]:
    """Boxes (x0, y0, x1, y1) by image path, one per image. Paths are relative to the file's folder."""
    path = Path(path)
    boxes: dict[Path, tuple[float, float, float, float]] = {}
    for number, row in _read_rows(path, BOX_COLUMNS):
        if path.parent / row["path"] in boxes:
            raise TableError(f"{path}, line {number}: {row['path']} has a box already; wanted one face per image.")
        x0, y0, x1, y1 = _read_floats(path, number, row, BOX_COLUMNS[1:])
        boxes[path.parent / row["path"]] = (x0, y0, x1, y1)
    return boxes


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The line number of each row, and its values by column; raises TableError if any of the columns is missing."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} cannot be read as CSV: {error}.") from error
    if missing := [column for column in columns if column not in header]:
        raise TableError(f"{path} lacks the column {missing[0]!r}; wanted a header line {','.join(columns)}.")
    for number, row in rows:
        if any(row[column] is None for column in columns):
            raise TableError(f"{path}, line {number} has fewer columns than its header.")
    return rows


def _read_floats(path: Path, number: int, row: dict[str, str], columns: tuple[str, ...]) -> list[float]:
    try:
        return [float(row[column]) for column in columns]
    except ValueError as error:
        raise TableError(f"{path}, line {number}: {error}; wanted numbers in {', '.join(columns)}.") from error
