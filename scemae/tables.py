"""The CSV files of the command line: annotations `path,name,x,y` (one point a line), boxes `path,x0,y0,x1,y1`.

Both may have a column `face`: the number of the face on its image, from 0, where there are several.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scemae.errors import OutputError, TableError, name_face, warn_user
from scemae.output import atomic_write, real_path

if TYPE_CHECKING:
    from scemae.geometry import Box

ANNOTATION_COLUMNS = ("path", "name", "x", "y")
BOX_COLUMNS = ("path", "x0", "y0", "x1", "y1")
FACE = re.compile(r"(\d{1,9})(\.0)?", re.ASCII)  # with .0 as pandas writes it where other cells are empty


class FaceKey(NamedTuple):
    """One face of a table.

    Attributes:
        path: its image.
        face: which of the faces of the image it is, from 0: the column `face`; None without it, or where it is empty.
    """

    path: Path
    face: int | None = None

    def __str__(self) -> str:
        return name_face(str(self.path), self.face)


def read_annotations(path: str | PathLike[str]) -> dict[FaceKey, dict[str, tuple[float, float]]]:
    """Landmarks by face, name -> (x, y), in the order of the file; an empty cell is nan, "not annotated".

    Paths are relative to the file's folder. Two spellings of one path are one image, under the first of them.
    """
    annotations: dict[FaceKey, dict[str, tuple[float, float]]] = {}
    for where, row, key in _read_faces(path, ANNOTATION_COLUMNS):
        named = annotations.setdefault(key, {})
        if row["name"] in named:
            raise TableError(f"{where}: {row['name']!r} of {_name(row, key)} is listed twice.{_number_hint(key)}")
        x, y = _read_floats(where, row, ("x", "y"), empty="nan")
        named[row["name"]] = (x, y)
    if not annotations:
        raise TableError(f"{path} holds no annotations below its header.")
    return annotations


def read_groups(path: str | PathLike[str]) -> dict[FaceKey, str | None]:
    """The group of each face of a table of annotations, in the order of `read_annotations`: its column `group`.

    None where the column is absent, or empty in all lines of a face: it is on its own.
    """
    groups: dict[FaceKey, str | None] = {}
    for where, row, key in _read_faces(path, ANNOTATION_COLUMNS):
        group = (row.get("group") or "").strip() or None
        before = groups.setdefault(key, group)
        if group is not None and before not in (None, group):
            raise TableError(
                f"{where}: {_name(row, key)} is in group {group!r}, and in {before!r} above; wanted one group per "
                "image, or per face."
            )
        groups[key] = before or group
    return groups


def read_boxes(path: str | PathLike[str]) -> dict[FaceKey, Box]:
    """Boxes (x0, y0, x1, y1) by face. Paths are relative to the file's folder."""
    boxes: dict[FaceKey, Box] = {}
    for where, row, key in _read_faces(path, BOX_COLUMNS):
        if key in boxes:
            raise TableError(f"{where}: {_name(row, key)} has a box already; wanted one per face.{_number_hint(key)}")
        x0, y0, x1, y1 = _read_floats(where, row, BOX_COLUMNS[1:])
        boxes[key] = (x0, y0, x1, y1)
    return boxes


def boxes_by_image(boxes: Mapping[FaceKey, Box]) -> dict[Path, dict[int, Box]]:
    """The boxes of each image by the number of the face, 0 where it has none; images by their real path."""
    images: dict[Path, dict[int, Box]] = {}
    for (path, face), box in boxes.items():
        images.setdefault(real_path(path), {})[face or 0] = box
    return images


def match_boxes(
    annotations: Mapping[FaceKey, Mapping[str, tuple[float, float]]], boxes: Mapping[FaceKey, Box]
) -> list[Box]:
    """The box of each annotated face: that with its number, or if it has none, that which holds its landmarks.

    Raises TableError for a face without a box.
    """
    from scemae.geometry import holding_box  # torch, which takes seconds

    images, found = boxes_by_image(boxes), []
    for key, named in annotations.items():
        numbered, face = images.get(real_path(key.path), {}), key.face
        if face is None:
            row = 0 if len(numbered) == 1 else holding_box(list(numbered.values()), list(named.values()))
            face = -1 if row is None else list(numbered)[row]
        if face not in numbered:
            held = f" that holds its landmarks, of {len(numbered)}" if numbered and key.face is None else ""
            raise TableError(f"The table of boxes has no box for {key}{held}.")
        found.append(numbered[face])
    return found


def write_boxes(path: Path, rows: Iterable[tuple[str, int, Sequence[float], float, float]]) -> None:
    """Write a table of boxes, whole or not at all: of each face the path of its image as it is to be written, its
    number, its box, its score and its roll in degrees.
    """
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "face", *BOX_COLUMNS[1:], "score", "roll"])
        for image, face, box, score, roll in rows:
            try:
                writer.writerow([image, face, *(f"{x:.2f}" for x in box), f"{score:.4f}", f"{roll:.1f}"])
            except UnicodeEncodeError as error:
                raise OutputError(f"{path} cannot hold the path {image!r}, which is not UTF-8; rename it.") from error


def _read_faces(path: str | PathLike[str], columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str], FaceKey]]:
    """Where each row is, its cells, and its face: the one definition of how rows become faces.

    An image is known by the first spelling of its path. Raises TableError for a face that is no whole number, or an
    image with a number in one row and without in another.
    """
    path = Path(path)
    spellings: dict[Path, FaceKey] = {}
    for number, row in _read_rows(path, columns):
        where, text, image = f"{path}, line {number}", row.get("face", ""), path.parent / row["path"]
        digits = FACE.fullmatch(text)
        if text and not digits:
            raise TableError(f"{where}: face is {text!r}; wanted a whole number, 0 for the first of an image.")
        face = int(digits[1]) if digits else None
        first = spellings.setdefault(real_path(image), FaceKey(image, face))
        if (face is None) != (first.face is None):
            raise TableError(
                f"{where}: {row['path']} has a number in the column 'face' in one line, and none in another; wanted "
                "it in all lines of an image, or in none."
            )
        yield where, row, FaceKey(first.path, face)


def _name(row: Mapping[str, str], key: FaceKey) -> str:
    """The face as its row has it."""
    return name_face(row["path"], key.face)


def _number_hint(key: FaceKey) -> str:
    hint = " If these are several faces of it, number them from 0 in a column 'face'."
    return hint if key.face is None else ""


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The line number of each row, and its cells by column, without spaces around them.

    Raises TableError unless the header and each row have each of the columns, and no row a cell beyond the header.
    Warns of a last line that is not ended: the table may be cut within it.
    """
    try:
        if path.exists() and not path.is_file():  # which may never end, or never begin
            raise TableError(f"{path} is a folder, pipe or device; wanted a CSV file.")
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} cannot be read as CSV: {error}.") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    header = lines[0][1] if lines else []
    while header and not header[-1]:  # commas at the end of the line
        header.pop()
    _check_header(path, header, columns)
    rows = []
    for number, cells in lines[1:]:
        if any(cells[len(header) :]):
            raise TableError(
                f"{path}, line {number} has {len(cells)} cells, its header {len(header)}. Are decimals written with a "
                "comma, or has a column no name? Wanted a point in decimals, and a name for each column."
            )
        row = dict(zip(header, cells, strict=False))
        if missing := [column for column in columns if column not in row]:
            raise TableError(f"{path}, line {number} has fewer columns than its header: {missing[0]!r} is missing.")
        if empty := [column for column in columns if column in ("path", "name") and not row[column]]:
            raise TableError(f"{path}, line {number} has no {empty[0]}.")
        if "\0" in row["path"]:
            raise TableError(f"{path}, line {number} has a zero byte in its path; wanted text in UTF-8.")
        rows.append((number, row))
    if not text.endswith(("\n", "\r")):
        warn_user(
            f"{path} does not end with a line break: it may be cut, and its last number with it. Compare its last line "
            "with where it is from, and end it with a line break."
        )
    return rows


def _check_header(path: Path, header: list[str], columns: tuple[str, ...]) -> None:
    """Raise TableError if a column is missing, or named twice."""
    lower = [name.lower() for name in header]
    if twice := [name for name in lower if name and lower.count(name) > 1]:
        raise TableError(f"{path} has the column {twice[0]!r} twice; wanted each name once.")
    missing = [column for column in columns if column not in header]
    if not missing:
        return
    cause = ""
    if missing[0] in lower:
        cause = f"; column names are in lower case, not {header[lower.index(missing[0])]!r}"
    for mark in ";\t":
        if len(header) == 1 and mark in header[0]:
            cause = f"; its header {header[0]!r} is separated by {mark!r}, not by commas"
    raise TableError(f"{path} lacks the column {missing[0]!r}; wanted a header line {','.join(columns)}{cause}.")


def _read_floats(where: str, row: dict[str, str], columns: tuple[str, ...], empty: str = "") -> list[float]:
    """The numbers in these columns; `empty` is what an empty cell stands for."""
    try:
        return [float(row[column] or empty) for column in columns]
    except ValueError as error:
        raise TableError(f"{where}: {error}; wanted numbers in {', '.join(columns)}.") from error
