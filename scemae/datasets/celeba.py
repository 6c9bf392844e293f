"""CelebA (aligned and cropped, 178 x 218) and its subset MAFL."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scemae.datasets.annotated_face import Sample
from scemae.errors import DataError
from scemae.geometry import Array, central_part

SIZE = (178, 218)
BOX = central_part(0, 30, 178)  # rows 30..207: the protocol moves the square down by 10 px from the middle
PARTITIONS = {"train": 0, "val": 1, "test": 2}
IMAGES, LANDMARKS, PARTITION = "img_align_celeba", "list_landmarks_align_celeba.txt", "list_eval_partition.txt"


def read_celeba(root: Path, split: str) -> list[Sample]:
    """The official partition in the order of its file."""
    partition = _read_table(_find(root, f"Eval/{PARTITION}", PARTITION), first=0)
    return _build_samples(root, [name for name, number in partition.items() if number == [str(PARTITIONS[split])]])


def remove_mafl(root: Path, samples: list[Sample]) -> list[Sample]:
    """The samples that are in neither list of MAFL, on which DVE and CL train."""
    mafl = _read_mafl_names(root, "training") | _read_mafl_names(root, "testing")
    return [sample for sample in samples if sample.path.name not in mafl]


def read_mafl(root: Path, split: str) -> list[Sample]:
    """MAFL in ascending order of CelebA's file names, as DVE and CL take it, not in the order of its lists."""
    return _build_samples(root, sorted(_read_mafl_names(root, {"train": "training", "test": "testing"}[split])))


def _read_mafl_names(root: Path, part: str) -> set[str]:
    return set(_read_table(_find(root, f"MAFL/{part}.txt"), first=0))


def _build_samples(root: Path, names: list[str]) -> list[Sample]:
    landmarks = _read_landmarks(_find(root, f"Anno/{LANDMARKS}", LANDMARKS))
    folder = _find(root, f"Img/{IMAGES}", IMAGES)
    unknown = [name for name in names if name not in landmarks]
    if unknown:
        raise DataError(f"{root}: {LANDMARKS} has no line for {len(unknown)} of the images, such as {unknown[0]}.")
    return [Sample(path=folder / name, box=BOX, landmarks=landmarks[name], size=SIZE) for name in names]


def _read_landmarks(path: Path) -> dict[str, Array]:
    """(5, 2) by file name; the first two lines are the count and the names of the columns."""
    rows = _read_table(path, first=2)
    try:
        table = np.array(list(rows.values()), dtype=np.float64).reshape(-1, 5, 2)
    except ValueError as error:
        raise DataError(f"{path}: wanted ten numbers in each line below the second ({error}).") from error
    return dict(zip(rows, table, strict=True))


def _read_table(path: Path, first: int) -> dict[str, list[str]]:
    """The other columns of each line from line number `first`, by its first column."""
    lines = path.read_text(encoding="utf-8").splitlines()[first:]
    return {columns[0]: columns[1:] for columns in (line.split() for line in lines) if columns}


def _find(root: Path, *candidates: str) -> Path:
    """A file or folder of the download: in Anno, Eval or Img, as it comes, or flat, as torchvision has it."""
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise DataError(f"There is no {' or '.join(candidates)} in {root}.")
