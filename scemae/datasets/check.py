"""check: is a folder the data set it should be, whole and sane? And the command `scemae data check`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from scemae.datasets.catalog import DATASETS, inspect
from scemae.datasets.problems import shown, wrong_size
from scemae.datasets.sample import Sample
from scemae.errors import DataError, OptionError


@dataclass(frozen=True)
class Report:
    """What `check` found. `splits`: how many faces each has; `problems` keep a split from being measured on."""

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


def check(name: str, path: Path, *, annotations: Path | None = None) -> Report:
    """Read every split of a data set and look at every picture's header.

    Counts, missing and extra files, pictures that cannot be read or have another size, labels that lie outside their
    picture, coincide or are the wrong way round. Raises OptionError for a data set that is not known.
    """
    if name not in DATASETS:
        raise OptionError(f"There is no data set {name!r}; there are {', '.join(DATASETS)}.")
    counts: dict[str, int] = {}
    problems: list[str] = []
    notes: list[str] = []
    pictures: dict[Path, Sample] = {}
    for split in DATASETS[name].splits:
        other_labels = annotations if split == "test" else None
        try:
            dataset, wrong = inspect(name, path, split, exclude="none", annotations=other_labels)
        except DataError as error:
            problems.append(f"{split}: {error}")
            continue
        counts[split] = len(dataset)
        problems += [f"{split}: {problem}" for problem in wrong]
        pictures |= {sample.path: sample for sample in dataset.samples}
        notes += dataset.notes
    problems += _pictures(list(pictures.values()))
    notes += _extra(pictures) if DATASETS[name].whole else []
    return Report(name, str(path), counts, tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(notes)))


def _pictures(samples: list[Sample]) -> list[str]:
    found = []
    for sample in tqdm(samples, unit="picture", delay=2, disable=None):
        if sample.path.exists():
            found += wrong_size(sample)
    return [shown(found)] if found else []


def _extra(pictures: dict[Path, Sample]) -> list[str]:
    """Pictures in the folders that no list names."""
    endings = set(Image.registered_extensions())
    folders = {path.parent for path in pictures if path.parent.is_dir()}
    extra = sorted(
        str(path)
        for folder in folders
        for path in folder.iterdir()
        if path.suffix.lower() in endings and path not in pictures
    )
    return [f"{len(extra):,} pictures are in no list: {shown(extra)}"] if extra else []


def check_command(options: argparse.Namespace) -> tuple[Any, str]:
    """Is a folder the data set it should be? Counts, missing and extra files, labels that cannot be right."""
    report = check(options.name, options.path, annotations=options.annotations)
    if report.problems:
        raise DataError(f"{report}\n{len(report.problems)} problems. {DATASETS[options.name].source}.")
    return asdict(report), f"{report}\nAll is there."


def add_data_check(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register `check NAME PATH` among the sub-commands of `scemae data`."""
    parser = commands.add_parser(
        "check", help=check_command.__doc__, description=check_command.__doc__, parents=[common]
    )
    parser.add_argument("name", choices=sorted(DATASETS))
    parser.add_argument("path", type=Path, help="the folder the data set was unpacked to")
    parser.add_argument("--annotations", type=Path, metavar="CSV", help="aflw_r: other labels, path,name,x,y")
    parser.set_defaults(run=check_command)
