"""The CSV files of the command line: annotations `path,name,x,y` (one point a line), boxes `path,x0,y0,x1,y1`."""

from __future__ import annotations

import csv
import io
from os import PathLike
from pathlib import Path

from scemae.errors import TableError, warn_user
from scemae.output import real_path

ANNOTATION_COLUMNS = ("path", "name", "x", "y")
BOX_COLUMNS = ("path", "x0", "y0", "x1", "y1")


def read_annotations(path: str | PathLike[str]) -> dict[Path, dict[str, tuple[float, float]]]:
    """Landmarks by image path, name -> (x, y), in the order of the file; an empty cell is nan, "not annotated".

    Paths are relative to the file's folder. Two spellings of one path are one image, under the first of them.
    """
    path = Path(path)
    annotations: dict[Path, dict[str, tuple[float, float]]] = {}
    spellings: dict[Path, Path] = {}
    for number, row in _read_rows(path, ANNOTATION_COLUMNS):
        named = annotations.setdefault(_find_image(path, row, spellings), {})
        if row["name"] in named:
            raise TableError(f"{path}, line {number}: {row['name']!r} of {row['path']} is listed twice.")
        x, y = _read_floats(path, number, row, ("x", "y"), empty="nan")
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
    spellings: dict[Path, Path] = {}
    for number, row in _read_rows(path, ANNOTATION_COLUMNS):
        image, group = _find_image(path, row, spellings), (row.get("group") or "").strip() or None
        before = groups.setdefault(image, group)
        if group is not None and before not in (None, group):
            raise TableError(
                f"{path}, line {number}: {row['path']} is in group {group!r}, and in {before!r} above; wanted one "
                "group per image."
            )
        groups[image] = before or group
    return groups


def _find_image(path: Path, row: dict[str, str], spellings: dict[Path, Path]) -> Path:
    """The image of a row, by the first spelling of its path in the table; `spellings` keeps them."""
    image = path.parent / row["path"]
    return spellings.setdefault(real_path(image), image)


def read_boxes(path: str | PathLike[str]) -> dict[Path, tuple[float, float, float, float]]:
    """Boxes (x0, y0, x1, y1) by image path, one per image. Paths are relative to the file's folder."""
    path = Path(path)
    boxes: dict[Path, tuple[float, float, float, float]] = {}
    boxed: set[Path] = set()
    for number, row in _read_rows(path, BOX_COLUMNS):
        image = path.parent / row["path"]
        if real_path(image) in boxed:
            raise TableError(f"{path}, line {number}: {row['path']} has a box already; wanted one face per image.")
        boxed.add(real_path(image))
        x0, y0, x1, y1 = _read_floats(path, number, row, BOX_COLUMNS[1:])
        boxes[image] = (x0, y0, x1, y1)
    return boxes


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


def _read_floats(
    path: Path, number: int, row: dict[str, str], columns: tuple[str, ...], empty: str = ""
) -> list[float]:
    """The numbers in these columns; `empty` is what an empty cell stands for."""
    try:
        return [float(row[column] or empty) for column in columns]
    except ValueError as error:
        raise TableError(f"{path}, line {number}: {error}; wanted numbers in {', '.join(columns)}.") from error
