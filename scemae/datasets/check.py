"""Checks whether a folder holds the dataset it should, complete and with plausible labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from scemae.datasets.annotated_face import Sample
from scemae.datasets.catalog import DATASETS, inspect_split
from scemae.datasets.problems import check_image, list_examples
from scemae.errors import DataError, OptionError


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What `check_dataset` found.

    Attributes:
        name: a key of `DATASETS`.
        path: the folder.
        splits: number of faces of each split that could be read.
        problems: what must be fixed before a split can be measured on.
        notes: what to know about the results.
    """

    name: str
    path: str
    splits: dict[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.path}"]
        lines += [f"  {split}: {count:,} faces" for split, count in self.splits.items()]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def check_dataset(name: str, path: Path, *, annotations: Path | None = None) -> DatasetReport:
    """Read every split of a dataset and the header of every image.

    Finds wrong counts, missing and extra files, images that cannot be read or have another size, labels that are
    outside their image, coincide or are mirrored. Raises OptionError for an unknown dataset.
    """
    if name not in DATASETS:
        raise OptionError(f"There is no dataset {name!r}; there are {', '.join(DATASETS)}.")
    counts: dict[str, int] = {}
    problems: list[str] = []
    notes: list[str] = []
    samples: dict[Path, Sample] = {}
    for split in DATASETS[name].splits:
        other_labels = annotations if split == "test" else None
        try:
            dataset, of_split = inspect_split(name, path, split, exclude="none", annotations=other_labels)
        except DataError as error:
            problems.append(f"{split}: {error}")
            continue
        counts[split] = len(dataset)
        problems += [f"{split}: {problem}" for problem in of_split]
        samples |= {sample.path: sample for sample in dataset.samples}
        notes += dataset.notes
    problems += _check_images(list(samples.values()))
    notes += _find_extra_images(samples) if DATASETS[name].lists_all_images else []
    return DatasetReport(
        name=name,
        path=str(path),
        splits=counts,
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _check_images(samples: list[Sample]) -> list[str]:
    problems = []
    for sample in tqdm(samples, unit="image", delay=2, disable=None):
        if sample.path.exists():
            problems += check_image(sample)
    return [list_examples(problems)] if problems else []


def _find_extra_images(samples: dict[Path, Sample]) -> list[str]:
    """Images in the folders that no list names."""
    endings = set(Image.registered_extensions())
    folders = {path.parent for path in samples if path.parent.is_dir()}
    extra = sorted(
        str(path)
        for folder in folders
        for path in folder.iterdir()
        if path.suffix.lower() in endings and path not in samples
    )
    return [f"{len(extra):,} images are in no list: {list_examples(extra)}"] if extra else []
