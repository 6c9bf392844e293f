"""CelebA (aligned and cropped, 178 x 218) and its subset MAFL."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scemae.datasets.sample import Sample
from scemae.errors import DataError
from scemae.geometry import Array, central_part

SIZE = (178, 218)
BOX = central_part(0, 30, 178)  # rows 30..207: the protocol moves the square down by 10 px from the middle
PARTITIONS = {"train": 0, "val": 1, "test": 2}
IMAGES, LANDMARKS, PARTITION = "img_align_celeba", "list_landmarks_align_celeba.txt", "list_eval_partition.txt"


def read_celeba(root: Path, split: str) -> list[Sample]:
    """The official partition in the order of its file."""
    partition = _table(_found(root, f"Eval/{PARTITION}", PARTITION), first=0)
    return _samples(root, [name for name, number in partition.items() if number == [str(PARTITIONS[split])]])


def without_mafl(root: Path, samples: list[Sample]) -> list[Sample]:
    """Those that are in neither list of MAFL: what DVE and CL train on."""
    left_out = _mafl(root, "training") | _mafl(root, "testing")
    return [sample for sample in samples if sample.path.name not in left_out]


def read_mafl(root: Path, split: str) -> list[Sample]:
    """MAFL in ascending order of CelebA's file names, as DVE and CL take it, not in the order of its lists."""
    return _samples(root, sorted(_mafl(root, {"train": "training", "test": "testing"}[split])))


def _mafl(root: Path, part: str) -> set[str]:
    return set(_table(_found(root, f"MAFL/{part}.txt"), first=0))


def _samples(root: Path, names: list[str]) -> list[Sample]:
    landmarks = _landmarks(_found(root, f"Anno/{LANDMARKS}", LANDMARKS))
    folder = _found(root, f"Img/{IMAGES}", IMAGES)
    unknown = [name for name in names if name not in landmarks]
    if unknown:
        raise DataError(f"{root}: {LANDMARKS} has no line for {len(unknown)} of the images, such as {unknown[0]}.")
    return [Sample(folder / name, BOX, landmarks[name], SIZE) for name in names]


def _landmarks(path: Path) -> dict[str, Array]:
    """(5, 2) by file name; the first two lines are the count and the names of the columns."""
    rows = _table(path, first=2)
    try:
        table = np.array(list(rows.values()), dtype=np.float64).reshape(-1, 5, 2)
    except ValueError as error:
        raise DataError(f"{path}: wanted ten numbers in each line below the second ({error}).") from error
    return dict(zip(rows, table, strict=True))


def _table(path: Path, first: int) -> dict[str, list[str]]:
    """The columns of each line from line number `first`, by the first of them."""
    lines = path.read_text(encoding="utf-8").splitlines()[first:]
    return {columns[0]: columns[1:] for columns in (line.split() for line in lines) if columns}


def _found(root: Path, *places: str) -> Path:
    """A file or folder of the download, as it comes (in Anno, Eval, Img) or flat, as torchvision has it."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise DataError(f"There is no {' or '.join(places)} in {root}.")
