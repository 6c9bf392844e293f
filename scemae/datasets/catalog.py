"""`DATASETS`, the datasets that are known; `read_dataset`, name, folder and split -> checked annotated faces."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scemae.datasets.aflw import read_aflw_m, read_aflw_r, read_mtfl
from scemae.datasets.annotated_face import FIVE, FaceDataset, Sample
from scemae.datasets.celeba import read_celeba, read_mafl, remove_mafl
from scemae.datasets.problems import check_count, check_eyes, check_files, check_labels_inside, find_usable
from scemae.datasets.three_hundred_w import POINTS, read_300w
from scemae.errors import DataError, OptionError

CELEBA_SOURCE = (
    "CelebA: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (Img/img_align_celeba, "
    "Anno/list_landmarks_align_celeba.txt, Eval/list_eval_partition.txt). The lists of MAFL, MAFL/training.txt and "
    "MAFL/testing.txt: https://github.com/zhzhanp/TCDCN-face-alignment"
)
MTFL_SOURCE = "MTFL: http://mmlab.ie.cuhk.edu.hk/projects/TCDCN/data/MTFL.zip (AFLW, testing.txt, training.txt)"
EXACT = "The box is the protocol's crop. Landmarks are scaled by pixel centres; the protocol scales their indices"


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What a dataset is.

    Attributes:
        read: reads the samples of a split from the dataset's folder.
        splits: number of faces of each split.
        fit_split: the benchmark's split to fit detectors on.
        test_split: the benchmark's split to test on.
        source: where the files come from.
        framing: how the box follows the protocol, and what differs.
        names: the names of the landmarks.
        eyes: indices of the two landmarks whose distance normalises errors.
        notes: what to print with results on a split.
        lists_all_images: its folders hold only the images of its splits, so any other image is worth a note.
        takes_annotations: its labels can be replaced by a table.
    """

    read: Callable[..., list[Sample]]
    splits: dict[str, int]
    fit_split: str = "train"
    test_split: str = "test"
    source: str
    framing: str
    names: tuple[str, ...] = FIVE
    eyes: tuple[int, int] = (0, 1)
    notes: Mapping[str, str] = field(default_factory=dict)
    lists_all_images: bool = True
    takes_annotations: bool = False


DATASETS = {
    "celeba": DatasetSpec(
        read=read_celeba,
        splits={"train": 162_770, "val": 19_867, "test": 19_962},
        source=CELEBA_SOURCE,
        framing=f"{EXACT} (a constant 0.12 px of 96).",
    ),
    "mafl": DatasetSpec(
        read=read_mafl,
        splits={"train": 19_000, "test": 1_000},
        source=CELEBA_SOURCE,
        framing=f"{EXACT} (a constant 0.12 px of 96).",
        notes={"test": "808 of the 1,000 test images are in CelebA's training partition."},
        lists_all_images=False,
    ),
    "aflw_m": DatasetSpec(
        read=read_aflw_m,
        splits={"train": 10_122, "test": 2_995},
        source=f"aflw_cropped: https://www.robots.ox.ac.uk/~jdt/aflw_10122train_cropped.zip; {MTFL_SOURCE}",
        framing=f"{EXACT} (a constant 0.05 px of 96).",
        lists_all_images=False,
    ),
    "mtfl": DatasetSpec(
        read=read_mtfl,
        splits={"lfw_5590": 4_151, "net_7876": 5_849, "train": 10_000, "pool": 500, "test": 2_495, "aflw": 2_995},
        fit_split="pool",
        source=f"{MTFL_SOURCE}. First crop lfw_5590 and net_7876 to 150 x 150 in the framing of AFLW",
        framing=f"{EXACT} (a constant 0.05 px of 96).",
        notes={
            "pool": "AFLW_M*, the annotated pool: every sixth of the 2,995 AFLW test faces of MTFL.",
            "test": "AFLW_M*, the test set: the other five of every six of the 2,995 AFLW test faces of MTFL. The "
            "published AFLW_M tests on all 2,995, and fits on 10,122 other faces.",
        },
    ),
    "aflw_r": DatasetSpec(
        read=read_aflw_r,
        splits={"train": 10_122, "test": 2_991},
        source="AFLW_R: http://files.ytzhang.net/lmdis-rep/release-v1/aflw/aflw_data.tar.gz (output, "
        "aflw_train_images.txt, aflw_train_keypoints.mat, aflw_test_images.txt, aflw_test_keypoints.mat)",
        framing="Each image is stretched to 136 x 136 as in the protocol; box and landmarks are pixels of that. "
        "Landmarks are scaled by pixel centres; the protocol scales indices (half of 1 - 136 / side px, by image).",
        lists_all_images=False,
        takes_annotations=True,
    ),
    "300w": DatasetSpec(
        read=read_300w,
        splits={"train": 3_148, "test": 689},
        source="300W: https://ibug.doc.ic.ac.uk/resources/300-W/ (afw, helen, lfpw, ibug, Bounding Boxes)",
        framing="The box is the protocol's window of the image itself: beyond the image it is mirrored (black in the "
        "protocol), and the image is not first reduced to a face of 52 px. Landmarks are scaled by pixel centres; the "
        "protocol scales their indices (up to 0.9 px of 96, by image).",
        names=tuple(str(k) for k in range(POINTS)),
        eyes=(36, 45),
    ),
}


def read_dataset(
    name: str,
    path: Path,
    split: str,
    *,
    exclude: str = "mafl",
    annotations: Path | None = None,
    partial: bool = False,
) -> FaceDataset:
    """One split of a dataset, in the order of its protocol.

    Args:
        name: a key of `DATASETS`.
        path: the folder that the dataset was unpacked to, laid out as it comes.
        split: one of the splits of its `DatasetSpec`.
        exclude: CelebA only: "mafl" leaves out all 20,000 images of MAFL (as DVE and CL train), "none" does not.
        annotations: AFLW_R only: a table path,name,x,y (pixels of the files) of other labels, such as AFLW_RC's.
        partial: use the files that are present; otherwise every file and every face of the split is required.

    Raises:
        DataError: files are missing (the message says where they come from), or labels are invalid.
        OptionError: an unknown dataset or split, or an option that the dataset does not have.
    """
    dataset, problems = inspect_split(name, path, split, exclude=exclude, annotations=annotations)
    if problems and not partial:
        raise DataError(
            f"{dataset} in {path} is not complete: {'; '.join(problems)}. {DATASETS[name].source}. To use what is "
            "there, pass partial=True (--partial)."
        )
    usable = find_usable(dataset)
    if not usable:
        raise DataError(f"{path} holds no labelled face of {dataset}. {DATASETS[name].source}.")
    return dataset[usable]


def inspect_split(
    name: str, path: Path, split: str, *, exclude: str = "mafl", annotations: Path | None = None
) -> tuple[FaceDataset, list[str]]:
    """A split with all faces that its lists name, and its problems; raises DataError where the lists are missing."""
    spec = _find_spec(name, split, exclude, annotations)
    if not os.path.isdir(path):
        raise DataError(f"{path} is not a folder. {spec.source}.")
    notes = [spec.framing, *([spec.notes[split]] if split in spec.notes else [])]
    try:
        samples = spec.read(path, split, annotations) if spec.takes_annotations else spec.read(path, split)
        problems = check_count(samples, spec.splits[split])
        if name == "celeba" and exclude == "mafl":
            samples = remove_mafl(path, samples)
            notes.append("The 20,000 images of MAFL are left out.")
    except (OSError, UnicodeDecodeError) as error:
        what = error.filename if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{path} is not laid out as {name}: {what} cannot be read. {spec.source}.") from error
    except DataError as error:
        raise DataError(f"{error} {spec.source}.") from error
    if annotations is not None:
        notes.append(f"Labels from {annotations.name}.")
    many_outside, few_outside = check_labels_inside(samples)
    dataset = FaceDataset(
        name=name,
        split=split,
        samples=tuple(samples),
        names=spec.names,
        eyes=spec.eyes,
        annotations=None if annotations is None else annotations.name,
        notes=(*notes, *few_outside),
    )
    return dataset, [*problems, *check_files(samples), *many_outside, *check_eyes(dataset)]


def _find_spec(name: str, split: str, exclude: str, annotations: Path | None) -> DatasetSpec:
    if name not in DATASETS:
        raise OptionError(f"There is no dataset {name!r}; there are {', '.join(DATASETS)}.")
    if split not in DATASETS[name].splits:
        raise OptionError(f"{name} has no split {split!r}; it has {', '.join(DATASETS[name].splits)}.")
    if exclude not in ("mafl", "none"):
        raise OptionError(f"exclude is {exclude!r}; it must be 'mafl' or 'none'.")
    if annotations is not None and not DATASETS[name].takes_annotations:
        raise OptionError(f"annotations= is for aflw_r (its corrected labels), not for {name}.")
    return DATASETS[name]
