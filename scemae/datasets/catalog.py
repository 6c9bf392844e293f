"""read_dataset: name, folder and split -> annotated faces, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scemae.datasets.aflw import read_aflw_m, read_aflw_r, read_mtfl
from scemae.datasets.celeba import read_celeba, read_mafl, without_mafl
from scemae.datasets.problems import count, implausible, labels_outside, missing, usable
from scemae.datasets.sample import FIVE, FaceDataset, Sample
from scemae.datasets.three_hundred_w import POINTS, read_300w
from scemae.errors import DataError, OptionError

CELEBA_SOURCE = (
    "CelebA: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (Img/img_align_celeba, "
    "Anno/list_landmarks_align_celeba.txt, Eval/list_eval_partition.txt). The lists of MAFL, MAFL/training.txt and "
    "MAFL/testing.txt: https://github.com/zhzhanp/TCDCN-face-alignment"
)
MTFL_SOURCE = "MTFL: http://mmlab.ie.cuhk.edu.hk/projects/TCDCN/data/MTFL.zip (AFLW, testing.txt, training.txt)"
EXACT = "The box is the protocol's crop. Landmarks are scaled by pixel centres; the protocol scales their indices"


@dataclass(frozen=True)
class DatasetSpec:
    """What a data set is.

    `splits`: how many faces each has. `benchmark`: its splits to fit on and to test on. `framing`: how the box follows
    the protocol, and what differs. `notes`: what to say with results on a split. `whole`: its folders hold nothing but
    the pictures of its splits.
    """

    read: Callable[..., list[Sample]]
    splits: dict[str, int]
    benchmark: tuple[str, str]
    source: str
    framing: str
    names: tuple[str, ...] = FIVE
    eyes: tuple[int, int] = (0, 1)
    notes: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True


DATASETS = {
    "celeba": DatasetSpec(
        read_celeba,
        {"train": 162_770, "val": 19_867, "test": 19_962},
        ("train", "test"),
        CELEBA_SOURCE,
        f"{EXACT} (a constant 0.12 px of 96).",
    ),
    "mafl": DatasetSpec(
        read_mafl,
        {"train": 19_000, "test": 1_000},
        ("train", "test"),
        CELEBA_SOURCE,
        f"{EXACT} (a constant 0.12 px of 96).",
        notes={"test": "808 of the 1,000 test pictures are in CelebA's training partition."},
        whole=False,
    ),
    "aflw_m": DatasetSpec(
        read_aflw_m,
        {"train": 10_122, "test": 2_995},
        ("train", "test"),
        f"aflw_cropped: https://www.robots.ox.ac.uk/~jdt/aflw_10122train_cropped.zip; {MTFL_SOURCE}",
        f"{EXACT} (a constant 0.05 px of 96).",
        whole=False,
    ),
    "mtfl": DatasetSpec(
        read_mtfl,
        {"lfw_5590": 4_151, "net_7876": 5_849, "train": 10_000, "pool": 500, "test": 2_495, "aflw": 2_995},
        ("pool", "test"),
        f"{MTFL_SOURCE}. lfw_5590 and net_7876 have to be cropped to the framing of AFLW first, 150 x 150",
        f"{EXACT} (a constant 0.05 px of 96).",
        notes={
            "pool": "AFLW_M*, the annotated pool: every sixth of the 2,995 AFLW test faces of MTFL.",
            "test": "AFLW_M*, the test set: the other five of every six of the 2,995 AFLW test faces of MTFL. The "
            "published AFLW_M tests on all 2,995, and fits on 10,122 other faces.",
        },
    ),
    "aflw_r": DatasetSpec(
        read_aflw_r,
        {"train": 10_122, "test": 2_991},
        ("train", "test"),
        "AFLW_R: http://files.ytzhang.net/lmdis-rep/release-v1/aflw/aflw_data.tar.gz (output, "
        "aflw_train_images.txt, aflw_train_keypoints.mat, aflw_test_images.txt, aflw_test_keypoints.mat)",
        "Each picture is stretched to 136 x 136 as in the protocol, so box and landmarks are pixels of that. Landmarks "
        "are scaled by pixel centres; the protocol scales their indices (half of 1 - 136 / side px, by picture).",
        whole=False,
    ),
    "300w": DatasetSpec(
        read_300w,
        {"train": 3_148, "test": 689},
        ("train", "test"),
        "300W: https://ibug.doc.ic.ac.uk/resources/300-W/ (afw, helen, lfpw, ibug, Bounding Boxes)",
        "The box is the protocol's window of the picture itself: what lies beyond the picture is mirrored, in the "
        "protocol black; the picture is not first reduced to a face of 52 px. Landmarks are scaled by pixel centres; "
        "the protocol scales their indices (up to 0.9 px of 96, by picture).",
        tuple(str(k) for k in range(POINTS)),
        (36, 45),
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
    """One split of a data set, in the order of its protocol.

    Args:
        name: a row of `DATASETS`. path: the folder it was unpacked to, laid out as it came.
        split: one of the row's splits.
        exclude: CelebA only: "mafl" leaves out all 20,000 images of MAFL (as DVE and CL train), "none" does not.
        annotations: AFLW_R only: a table path,name,x,y (pixels of the files) of other labels, such as AFLW_RC's.
        partial: take what is there. Without, every file and every face of the split has to be.

    Raises:
        DataError: what is missing, and where it comes from; labels that cannot be right. OptionError.
    """
    dataset, problems = inspect(name, path, split, exclude=exclude, annotations=annotations)
    if problems and not partial:
        raise DataError(
            f"{dataset} in {path} is not as it should be: {'; '.join(problems)}. {DATASETS[name].source}. To try "
            "things out with what is there, pass partial=True (--partial)."
        )
    kept = usable(dataset)
    if not kept:
        raise DataError(f"{path} holds no face of {dataset} with its label. {DATASETS[name].source}.")
    return dataset[kept]


def inspect(
    name: str, path: Path, split: str, *, exclude: str = "mafl", annotations: Path | None = None
) -> tuple[FaceDataset, list[str]]:
    """A split with all faces that its lists name, and what is wrong with it; raises DataError without such lists."""
    layout = _layout(name, split, exclude, annotations)
    if not path.is_dir():
        raise DataError(f"{path} is no folder. {layout.source}.")
    choice = {"annotations": annotations} if name == "aflw_r" else {}
    notes = [layout.framing, *([layout.notes[split]] if split in layout.notes else [])]
    try:
        samples = layout.read(path, split, **choice)
        wrong_count = count(samples, layout.splits[split])
        if name == "celeba" and exclude == "mafl":
            samples = without_mafl(path, samples)
            notes.append("The 20,000 images of MAFL are left out.")
    except (OSError, UnicodeDecodeError) as error:
        what = error.filename if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{path} is not laid out as {name}: {what} cannot be read. {layout.source}.") from error
    except DataError as error:
        raise DataError(f"{error} {layout.source}.") from error
    if annotations is not None:
        notes.append(f"Labels from {annotations.name}.")
    outside, few_outside = labels_outside(samples)
    dataset = FaceDataset(name, split, tuple(samples), layout.names, layout.eyes, (*notes, *few_outside))
    return dataset, [*wrong_count, *missing(samples), *outside, *implausible(dataset)]


def _layout(name: str, split: str, exclude: str, annotations: Path | None) -> DatasetSpec:
    if name not in DATASETS:
        raise OptionError(f"There is no data set {name!r}; there are {', '.join(DATASETS)}.")
    if split not in DATASETS[name].splits:
        raise OptionError(f"{name} has no split {split!r}; it has {', '.join(DATASETS[name].splits)}.")
    if exclude not in ("mafl", "none"):
        raise OptionError(f"exclude is {exclude!r}; it must be 'mafl' or 'none'.")
    if annotations is not None and name != "aflw_r":
        raise OptionError(f"annotations= is for aflw_r (its corrected labels), not for {name}.")
    return DATASETS[name]
