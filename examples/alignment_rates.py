"""How often faces are lost, and how often the verdict is right: python examples/alignment_rates.py WILD MTFL [MODEL]

MTFL is the folder of the dataset. WILD has whole pictures of one labelled face each, points.csv (path, x0, y0, ... x4,
y4 in pixels; the paths of net_7876 begin with net/), and nofaces/, pictures without a face, of which every second one
is cut into crops. For docs/alignment.md.
"""

import csv
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

import scemae
from scemae.datasets import read_dataset
from scemae.geometry import apply_affine, similarity
from scemae.images import iter_photos
from scemae.metrics import distance_between, normalised_errors
from scemae.photo import list_pictures

PICTURES, ANNOTATED, CROPS = 300, 100, 1000
EYES = (0, 1)  # of the five points
SIDE = 2.54  # of the square around the mean of the five points that is the plain start, in distances of the eyes
LOST, OFF = 0.3, 0.2  # of that distance: beyond it a face is lost, and predicted landmarks are wrong
STARTS = {  # scale and shift of the square in its own sides, roll in degrees (None: any)
    "plain": (1, 0, 0),
    "x 0.6": (0.6, 0, 0),
    "x 0.8": (0.8, 0, 0),
    "x 1.25": (1.25, 0, 0),
    "x 1.6": (1.6, 0, 0),
    "shift 20 %": (1, 0.2, 0),
    "shift 30 %": (1, 0.3, 0),
    "shift 40 %": (1, 0.4, 0),
    "any roll": (1, 0, None),
    "x 1.5, shift 30 %, roll 60": (1.5, 0.3, 60),
}
HARD = {"x 0.25": (0.25, 0, None), "x 2": (2, 0, None), "shift 60 %": (1, 0.6, None), "shift 80 %": (1, 0.8, None)}


def read_faces(wild, count):
    """Photos, their five points (count, 5, 2), and the names of all pictures of net_7876."""
    with (wild / "points.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("net")]
    points = np.array([[[float(row[f"{axis}{k}"]) for axis in "xy"] for k in range(5)] for row in rows[:count]])
    photos = iter_photos([wild / row["path"] for row in rows[:count]])
    return [photo.image for photo in photos], points, {Path(row["path"]).name for row in rows}


def rotate(image, points, degrees):
    """The whole image turned by so many degrees, counter-clockwise as seen, and the points (K, 2) on it."""
    turned = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    middle, middle_after = ((np.array(picture.size) - 1) / 2 for picture in (image, turned))
    return turned, apply_affine(similarity(-np.deg2rad(degrees), 1.0, middle, middle_after - middle), points)


def start(images, points, scale, shift, roll, rng):
    """Turned images, their points, and loose boxes of the faces, of which most is on the image."""
    angles = rng.uniform(0, 360, len(images)) if roll is None else np.full(len(images), roll)
    turned = [rotate(image, face, angle) for image, face, angle in zip(images, points, angles, strict=True)]
    moved = np.stack([face for _, face in turned])
    sides = SIDE * distance_between(moved, *EYES)[:, None]
    directions = rng.uniform(0, 2 * np.pi, len(images))
    centres = moved.mean(1) + 0.5 + shift * sides * np.column_stack([np.cos(directions), np.sin(directions)])
    boxes = np.hstack([centres - scale * sides / 2, centres + scale * sides / 2])
    sizes = np.array([image.size for image, _ in turned])
    seen = np.minimum(boxes[:, 2:], sizes) - np.maximum(boxes[:, :2], 0)
    rows = np.flatnonzero((seen > 0).all(axis=1) & (seen.prod(axis=1) > 0.6 * (scale * sides[:, 0]) ** 2))
    return [turned[row][0] for row in rows], moved[rows], boxes[rows]


def errors(found, points):
    """Mean distance (n,) of found points (n, 5, 2), in distances of the eyes."""
    return normalised_errors(found, points, distance_between(points, *EYES)).mean(-1)


def place(shape, features):
    """A shape (5, 2) in input px on each face, image px."""
    return np.stack([face.crop.to_image(shape) for face in features.faces])


def mean_shape_error(model, dataset):
    """Mean error of the mean aligned shape of the odd faces on the even ones."""
    features = scemae.extract_features(
        model, [face.image() for face in dataset.samples], boxes=dataset.boxes, expansion=1
    )
    shapes = np.stack(
        [face.crop.to_input(points) for face, points in zip(features.faces, dataset.landmarks, strict=True)]
    )
    return errors(place(shapes[1::2].mean(0), features), dataset.landmarks)[::2].mean()


def cut_crops(folder, count, rng):
    """Pictures without a face, and boxes of random squares of them."""
    pictures = [photo.image for photo in iter_photos(list_pictures(folder)[::2])]
    images = [pictures[number % len(pictures)] for number in range(count)]
    sides = np.array([rng.integers(60, min(image.size)) for image in images])
    corners = np.array(
        [[rng.integers(0, n - side + 1) for n in image.size] for image, side in zip(images, sides, strict=True)]
    )
    return images, np.hstack([corners, corners + sides[:, None]])


def likeness(features, mean_face):
    """Mean cosine similarity (n,) of the cells to those of the mean face (C, h, w): a score of another kind."""
    return np.einsum("nchw,chw->nhw", unit(features.map("projected")), unit(mean_face)).mean((1, 2))


def log_odds(features):
    return np.log(features.scores) - np.log1p(-np.minimum(features.scores, 1 - 1e-12))


def unit(maps):
    return maps / np.linalg.norm(maps, axis=-3, keepdims=True)


def separation(good, bad):
    """The share of pairs of a good and a bad one in which the good one has the higher score (area under the ROC)."""
    return (good[:, None] > bad).mean()


def main(wild, mtfl, name="scemae-tiny"):
    wild, mtfl, model, rng = Path(wild), Path(mtfl), scemae.load_model(name), np.random.default_rng(0)
    for split in ("lfw_5590", "net_7876"):
        error = mean_shape_error(model, read_dataset("mtfl", mtfl, split)[np.arange(400)])
        print(f"mean shape, {split}, even lines by odd ones: {100 * error:.2f} %")

    images, points, names = read_faces(wild, PICTURES)
    others = read_dataset("mtfl", mtfl, "net_7876")
    annotated = others[[row for row, face in enumerate(others.samples) if face.path.name not in names][:ANNOTATED]]
    learned = scemae.extract_features(
        model, [face.image() for face in annotated.samples], boxes=annotated.boxes, expansion=1
    )
    detector, mean_face = scemae.fit_regressor(model, learned, annotated.landmarks), learned.map("projected").mean(0)
    shape, outcomes = None, []
    print("| start | faces | lost, % | mean error of the others, % | found |\n|---|---|---|---|---|")
    for title, how in {**STARTS, **HARD}.items():
        turned, moved, boxes = start(images, points, *how, rng)
        for search in ("auto", "none") if title in HARD else ("auto",):
            features = scemae.extract_features(model, turned, boxes=boxes, search=search, expansion=1)
            if shape is None:
                shape = np.median(
                    [face.crop.to_input(p) for face, p in zip(features.faces, moved, strict=True)], axis=0
                )
            aligned = errors(place(shape, features), moved)
            lost = aligned > LOST
            rates = (100 * lost.mean(), 100 * aligned[~lost].mean(), features.found.mean())
            print("| {}, search={} | {} | {:.1f} | {:.2f} | {:.3f} |".format(title, search, len(moved), *rates))
            scored = (features.found, log_odds(features), likeness(features, mean_face))
            tried = np.full(len(moved), search == "auto")
            outcomes.append((errors(detector.predict(features).xy, moved), tried, *scored))
    off, tried, found, odds, likely = (np.concatenate(values) for values in zip(*outcomes, strict=True))
    for search, chosen in (("auto", tried), ("none", ~tried)):
        right, wrong = found[chosen & (off <= OFF)], ~found[chosen & (off > OFF)]
        print(f"search={search}: of {len(right)} faces whose landmarks are right {100 * right.mean():.2f} % are found,")
        print(f"    of {len(wrong)} whose landmarks are wrong {100 * wrong.mean():.2f} % are not")

    crops, boxes = cut_crops(wild / "nofaces", CROPS, rng)
    for search in ("auto", "none"):
        features = scemae.extract_features(model, crops, boxes=boxes, search=search, expansion=1)
        print(f"of {CROPS} crops without a face {100 * (~features.found).mean():.2f} % are not found, search={search}")
    pairs = ((odds, log_odds(features)), (likely, likeness(features, mean_face)))
    for title, (score, of_crops) in zip(("score", "likeness to the mean face"), pairs, strict=True):
        shares = (separation(score[off <= OFF], bad) for bad in (score[off > OFF], of_crops))
        print("{}: right faces above wrong ones in {:.4f} of the pairs, above crops in {:.4f}".format(title, *shares))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "No face was found")
    main(*sys.argv[1:])
