"""AFLW as MTFL cropped it (AFLW_M, and our split of its test images), MTFL's own training faces, and AFLW_R."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from scemae.datasets.annotated_face import FIVE, Sample, read_matlab
from scemae.errors import DataError
from scemae.geometry import Array, central_box
from scemae.tables import read_annotations

CROPPED = (150, 150)
RESIZED = 136
POOL_EVERY = 6  # AFLW_M*: lines 0, 6, 12, ... are the annotated pool
LINE_LENGTH = 15  # path, five x, five y, gender, smile, glasses, pose


def read_mtfl(root: Path, split: str) -> list[Sample]:
    """MTFL's training faces by folder, or its AFLW test faces split into the pool and the test set of AFLW_M*."""
    if split in ("pool", "test", "aflw"):
        samples = _read_mtfl_lines(root, "testing.txt")
        return [s for i, s in enumerate(samples) if split == "aflw" or (i % POOL_EVERY == 0) == (split == "pool")]
    samples = _read_mtfl_lines(root, "training.txt")
    return [sample for sample in samples if split in ("train", sample.path.parent.name)]


def read_aflw_m(root: Path, split: str) -> list[Sample]:
    """AFLW_M of DVE, CL, LEAD and the paper: training crops of the VGG group, test crops of MTFL."""
    if split == "test":
        return _read_mtfl_lines(root / "MTFL", "testing.txt")
    table = root / "aflw_cropped" / "facedata_cropped.csv"
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    if not {"crop_file", "set"} <= set(header):
        raise DataError(f"{table} has the columns {', '.join(header)}; wanted crop_file and set among them.")
    name, part = header.index("crop_file"), header.index("set")
    return [
        _cropped_sample(root / "aflw_cropped" / row[name], _to_floats(table, row[4:14]).reshape(5, 2))
        for row in rows
        if row[part] == "1"
    ]


def read_aflw_r(root: Path, split: str, annotations: Path | None) -> list[Sample]:
    """AFLW_R, each image stretched to a square as in the protocol; original labels, or those of `annotations`."""
    names = (root / f"aflw_{split}_images.txt").read_text(encoding="utf-8").split()
    variables = read_matlab(root / f"aflw_{split}_keypoints.mat")
    try:
        truth = np.asarray(variables["gt"], dtype=np.float64).reshape(len(names), 5, 2)[..., ::-1]
        sizes = np.asarray(variables["hw"], dtype=int).reshape(len(names), 2)[:, ::-1]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"aflw_{split}_keypoints.mat does not hold gt (N, 5, 2) and hw (N, 2) for the {len(names)} images of "
            f"aflw_{split}_images.txt ({type(error).__name__}: {error})."
        ) from error
    if annotations is not None:
        truth = _read_corrected(annotations, names)
    return [
        Sample(
            path=root / "output" / name,
            box=central_box(RESIZED, RESIZED),
            landmarks=(xy + 0.5) * RESIZED / size - 0.5,
            size=(int(size[0]), int(size[1])),
            resized=RESIZED,
        )
        for name, xy, size in zip(names, truth, sizes, strict=True)
    ]


def _read_corrected(path: Path, names: list[str]) -> Array:
    """(N, 5, 2) from a table path,name,x,y with the names of `FIVE`; paths in it end as those of the split's list."""
    depths = {len(Path(name).parts) for name in names}
    rows: dict[Path, list[dict[str, tuple[float, float]]]] = {}
    for key, named in read_annotations(path).items():
        for depth in depths:
            rows.setdefault(Path(*key.path.parts[-depth:]), []).append(named)
    if twice := [name for name in names if len(rows.get(Path(name), [])) > 1]:
        raise DataError(f"{path} has several images or faces whose path ends with {twice[0]}; wanted one.")
    try:
        return np.array([[rows[Path(name)][0][landmark] for landmark in FIVE] for name in names])
    except KeyError as error:
        raise DataError(
            f"{path} lacks {error}; wanted {', '.join(FIVE)} of each of the {len(names)} images of the split, with the "
            "paths of its list."
        ) from error


def _read_mtfl_lines(root: Path, name: str) -> list[Sample]:
    """Lines `path x1 .. x5 y1 .. y5 gender smile glasses pose`, pixels counted from 1."""
    path = root / name
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != LINE_LENGTH:
            raise DataError(f"{path}, line {number} has {len(row)} columns; wanted {LINE_LENGTH}.")
    return [
        _cropped_sample(root / row[0].replace("\\", "/"), _to_floats(path, row[1:11]).reshape(2, 5).T, int(row[14]))
        for row in rows
    ]


def _cropped_sample(path: Path, landmarks_from_1: Array, pose: int | None = None) -> Sample:
    return Sample(path=path, box=central_box(*CROPPED), landmarks=landmarks_from_1 - 1, size=CROPPED, pose=pose)


def _to_floats(path: Path, columns: list[str]) -> Array:
    try:
        return np.array(columns, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path}: {error}; wanted numbers x and y.") from error
