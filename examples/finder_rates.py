"""How often find_faces finds the faces of pictures, for docs/find.md: python examples/finder_rates.py WILD [MODEL]

MODEL, as load_model takes it, has a face finder. WILD is a folder of

    points.csv  path,x0,y0,...,x4,y4: eyes, nose and corners of the mouth of one face of each picture, px; the paths
                start with lfw/ or net/, the folders of these pictures. Other faces on them have no label.
    groups.csv  path,face,x0,y0,x1,y1: the boxes of all faces of photos of groups
    nofaces/    pictures without a face, of which every second is measured

A find is a labelled face if its middle and its side are near those of the label; all others are further finds, among
them faces without a label: --look OUT saves a sheet for each line of the table, of up to 100 of them, drawn at random.
"""

import argparse
import csv
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import scemae
from scemae import draw
from scemae.geometry import Array, Crop, apply_affine, similarity
from scemae.images import iter_photos
from scemae.model.sce_mae import SceMae
from scemae.photo import list_pictures
from scemae.tables import boxes_by_image, read_boxes

SIDE = 2.5  # side of the square of a labelled face, in distances between its eyes; its middle is the mean of its points
LARGEST = 640  # px, longer side to which pictures without a face are reduced
MEGAPIXEL, REPEATS = (1155, 866), 5
LOOKED_AT = 100  # finds on one sheet
SQUARE, MARGIN = 96, 48  # px, of a find on a sheet


class Case(NamedTuple):
    """A picture and the boxes (n, 4) of its labelled faces."""

    path: Path
    image: Image.Image
    boxes: Array


class Tolerance(NamedTuple):
    """What a find may differ from a label: its middle, in x and in y, by sides of the label; its side, as a ratio."""

    distance: float
    smallest: float
    largest: float


ONE, GROUP = Tolerance(0.35, 0.5, 2.0), Tolerance(0.4, 0.4, 2.5)


def read_image(path: Path) -> Image.Image:
    return next(iter_photos(path)).image


def labelled_pictures(wild: Path, kind: str, rolled: bool, count: int) -> Iterator[Case]:
    """Pictures of lfw or net in a random order, which is always the same, upright or each at a random roll."""
    with open(wild / "points.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith(kind)]
    rolls = np.random.default_rng(1)
    for row in random.Random(3).sample(rows, min(count, len(rows))):
        image = read_image(wild / row["path"])
        points = np.array([[float(row[f"{axis}{k}"]) for axis in "xy"] for k in range(5)])
        if rolled:
            degrees, before = rolls.uniform(0, 360), np.array(image.size)
            image = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True)  # counter-clockwise
            shift = (np.array(image.size) - before) / 2
            points = apply_affine(similarity(-math.radians(degrees), 1.0, (before - 1) / 2, shift), points)
        middle, half = points.mean(axis=0), SIDE / 2 * np.linalg.norm(points[0] - points[1])
        yield Case(wild / row["path"], image, np.array([[*(middle - half), *(middle + half)]]))


def group_photos(wild: Path, count: int) -> Iterator[Case]:
    """Photos of groups with the boxes of all faces."""
    for path, boxes in list(boxes_by_image(read_boxes(wild / "groups.csv")).items())[:count]:
        yield Case(path, read_image(path), np.array(list(boxes.values())))


def pictures_without_faces(wild: Path, count: int) -> Iterator[Case]:
    """Every second of the pictures without a face."""
    for path in list_pictures(wild / "nofaces")[::2][:count]:
        image = read_image(path)
        image.thumbnail((LARGEST, LARGEST))
        yield Case(path, image, np.zeros((0, 4)))


def match_finds(finds: Array, boxes: Array, tolerance: Tolerance) -> list[int]:
    """The rows of the finds (m, 4) that are a face with a label (n, 4): for each label the surest that is left."""
    middles, sides = (finds[:, :2] + finds[:, 2:]) / 2, finds[:, 2] - finds[:, 0]
    taken: list[int] = []
    for box in boxes:
        side = box[2] - box[0]
        near = np.abs(middles - (box[:2] + box[2:]) / 2).max(axis=1) < tolerance.distance * side
        alike = (sides / side > tolerance.smallest) & (sides / side < tolerance.largest)
        taken += [row for row in np.flatnonzero(near & alike).tolist() if row not in taken][:1]
    return taken


def draw_find(image: Image.Image, box: Array, score: float) -> Image.Image:
    """The square of a find with a margin, black beyond the picture, and its score."""
    margin = MARGIN / SQUARE * (box[2] - box[0])
    x0, y0, x1, y1 = (box + np.array([-margin, -margin, margin, margin])).tolist()
    part = image.crop((x0, y0, x1, y1)).resize((SQUARE + 2 * MARGIN,) * 2)
    square = Crop(np.eye(2, 3), SQUARE).corners + MARGIN
    return draw.squares(part, square[None], [f"{score:.2f}"], [False])


def measure_rates(
    cases: Iterator[Case], model: SceMae, tolerance: Tolerance, min_size: float | None
) -> tuple[str, list[tuple[Image.Image, str]]]:
    """The cells of a line of the table, and what each further find shows, with the name of its picture."""
    pictures = labelled = found = 0
    seconds, further = 0.0, []
    for case in cases:
        start = time.process_time()
        finds = scemae.find_faces(case.image, model=model, min_size=min_size)
        seconds += time.process_time() - start
        taken = match_finds(finds.xyxy, case.boxes, tolerance)
        pictures, labelled, found = pictures + 1, labelled + len(case.boxes), found + len(taken)
        for row, (box, score) in enumerate(zip(finds.xyxy, finds.scores, strict=True)):
            if row not in taken:
                further.append((draw_find(case.image, box, score), case.path.name))
    share = f"{found} of {labelled}, {100 * found / labelled:.1f} %" if labelled else "–"
    return f"{pictures} | {share} | {len(further)} | {1000 * seconds / pictures:.0f}", further


def measure_megapixel(wild: Path, model: SceMae, min_size: float) -> float:
    """CPU ms for the first photo of a group, enlarged to a megapixel: the mean of several runs after a first one."""
    photo = read_image(min(boxes_by_image(read_boxes(wild / "groups.csv")))).resize(MEGAPIXEL)
    scemae.find_faces(photo, model=model, min_size=min_size)
    start = time.process_time()
    for _ in range(REPEATS):
        scemae.find_faces(photo, model=model, min_size=min_size)
    return 1000 * (time.process_time() - start) / REPEATS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wild", type=Path, metavar="WILD")
    parser.add_argument("model", nargs="?", default="scemae-tiny", metavar="MODEL")
    parser.add_argument("--pictures", type=int, default=sys.maxsize, metavar="N", help="of each kind; default: all")
    parser.add_argument("--look", type=Path, metavar="OUT", help="folder for sheets of further finds")
    args = parser.parse_args(arguments)
    wild, count = args.wild, args.pictures
    model = scemae.load_model(args.model, device="cpu")
    parts = [
        ("lfw, upright", labelled_pictures(wild, "lfw", False, count), ONE, None),
        ("lfw, random roll", labelled_pictures(wild, "lfw", True, count), ONE, None),
        ("net, upright", labelled_pictures(wild, "net", False, count), ONE, None),
        ("net, random roll", labelled_pictures(wild, "net", True, count), ONE, None),
        ("groups", group_photos(wild, count), GROUP, 30.0),
        ("no face", pictures_without_faces(wild, count), ONE, None),
    ]
    print("| pictures | number | labelled faces found | further finds | CPU ms per picture |\n|---|---|---|---|---|")
    for name, cases, tolerance, min_size in parts:
        cells, further = measure_rates(cases, model, tolerance, min_size)
        print(f"| {name} | {cells} |", flush=True)
        if args.look and further:
            chosen = random.Random(0).sample(further, min(LOOKED_AT, len(further)))
            args.look.mkdir(parents=True, exist_ok=True)
            draw.grid(*zip(*chosen, strict=True)).save(args.look / f"{name.replace(',', '').replace(' ', '-')}.png")
    print(f"| 1 megapixel, from 64 px | 1 | – | – | {measure_megapixel(wild, model, 64):.0f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
