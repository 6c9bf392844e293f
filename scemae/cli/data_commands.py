"""The commands `scemae data COMMAND`; `scemae.cli.main` loads them when one is called."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scemae.cli.data_check_command import add_data_check
from scemae.cli.train_commands import Outcome, add_command
from scemae.datasets import read_dataset
from scemae.errors import OptionError
from scemae.output import real_path
from scemae.tables import boxes_by_image, read_boxes

if TYPE_CHECKING:
    from scemae.training.pack import Pack


def add_data_commands(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the commands of `scemae data`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pack = add_command(commands, "pack", run_pack, common)
    pack.add_argument("images", metavar="IMAGES", help="Folder, .tar, or .parquet with a column `image`.")
    pack.add_argument("out", metavar="OUT", help="Folder to write.")
    pack.add_argument(
        "--boxes",
        metavar="CSV",
        help="Table path,x0,y0,x1,y1 with the box of each face, as of `scemae boxes`; for a tar, path is the name "
        "in the archive.",
    )
    pack.add_argument(
        "--split",
        metavar="DATASET/SPLIT",
        help="Only the faces of this split of a dataset, such as celeba/train, framed as in its benchmark; "
        "IMAGES is its folder.",
    )
    pack.add_argument(
        "--exclude", choices=("mafl", "none"), default="mafl", help="Images of CelebA to leave out: MAFL's [mafl]."
    )
    pack.add_argument("--input-size", type=int, default=96, help="Side of the images that the model sees, px [96].")
    pack.add_argument(
        "--size",
        type=int,
        help="Side of the stored squares, px; the input is their centre, the rest margin [136 for an input of 96].",
    )
    pack.add_argument(
        "--skip-at-most", type=float, default=0.01, help="Fraction of the images that may be unusable [0.01]."
    )
    align = add_command(commands, "align", run_data_align, common)
    align.add_argument("pack", metavar="PACK", help="Faces, as written by `scemae data pack`.")
    align.add_argument("out", metavar="OUT", help="Folder to write.")
    align.add_argument(
        "--model", default="scemae-tiny", help="Model whose aligner is used: its name, or local-dir:PATH [scemae-tiny]."
    )
    align.add_argument(
        "--steps", type=int, default=4, help="How many of the last steps of the model's alignment to take [4]."
    )
    add_data_check(commands, common)
    for writing in (pack, align):
        writing.add_argument("--overwrite", action="store_true", help="Replace the pack if it exists.")


def run_data_align(args: argparse.Namespace) -> Outcome:
    """Write a pack of the same faces, made upright and centred by the model's aligner."""
    from scemae.training.align_pack import align_pack
    from scemae.training.pack import Pack
    from scemae.weights.zoo import load_model

    faces = Pack.open(Path(args.pack))
    aligned = align_pack(load_model(args.model), faces, Path(args.out), steps=args.steps, overwrite=args.overwrite)
    return format_pack_report(aligned)


def run_pack(args: argparse.Namespace) -> Outcome:
    """Decode every image once into a pack, so that training does not have to."""
    from scemae.training.pack import pack_faces

    source, boxes = Path(args.images), None
    if args.split is not None:
        boxes = _split_boxes(args.split, source, args.exclude)
    elif args.boxes is not None:
        boxes = _table_boxes(Path(args.boxes), source)
    packed = pack_faces(
        source,
        Path(args.out),
        input_size=args.input_size,
        size=args.size,
        boxes=boxes,
        only_boxed=args.split is not None,
        skip_at_most=args.skip_at_most,
        overwrite=args.overwrite,
    )
    return format_pack_report(packed)


def format_pack_report(pack: Pack) -> Outcome:
    """The report of a command that wrote a pack."""
    result = {"out": str(pack.folder), "faces": len(pack), "size": pack.size, "skipped": dict(pack.skipped)}
    lines = [f"{pack.folder}: {len(pack)} faces of {pack.size} x {pack.size} px"]
    return result, "\n".join(lines + [f"left out: {name}: {why}" for name, why in pack.skipped.items()])


def _table_boxes(table: Path, source: Path) -> dict[Path, Any]:
    """Boxes as `pack_faces` wants them; those of an archive are by the path as it is written in the table."""
    boxes = read_boxes(table)
    if os.path.isdir(source):
        return dict(boxes_by_image(boxes))
    named: dict[Path, Any] = {}
    for (path, face), box in boxes.items():
        named.setdefault(path.relative_to(table.parent), {})[face or 0] = box
    return named


def _split_boxes(split: str, folder: Path, exclude: str) -> dict[Path, Any]:
    """The boxes of a dataset's split, as `pack_faces` wants them."""
    name, _, part = split.partition("/")
    dataset = read_dataset(name, folder, part, exclude=exclude)
    if any(sample.resized for sample in dataset.samples):
        raise OptionError(f"--split {split}: the protocol stretches these images first, which packs do not.")
    return {real_path(sample.path): sample.box for sample in dataset.samples}
