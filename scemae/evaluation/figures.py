"""Figures of results: cumulative error curves, and good and bad examples, which show faces of the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scemae import draw
from scemae.datasets import FaceDataset
from scemae.evaluation.warped_pairs import BOX, INSET, WarpedPairs
from scemae.geometry import Array, Crop
from scemae.images import iter_photos
from scemae.metrics import pixel_errors
from scemae.output import write_picture
from scemae.patches import cut_square, validate_box
from scemae.plots import line_plot

LARGEST = 25.0  # % of the inter-ocular distance, the right end of the curves
GOOD, BAD = 0.5, 0.9  # good examples come from the better half, bad ones from the worst tenth


def plot_cumulative_errors(errors: Mapping[str, Array]) -> Image.Image:
    """The fraction of faces with at most an error; `errors` (N,), % of the inter-ocular distance, by curve."""
    levels = np.linspace(0, LARGEST, 200)
    curves = {
        name: (levels.tolist(), (np.searchsorted(np.sort(values), levels, side="right") / len(values)).tolist())
        for name, values in errors.items()
    }
    return line_plot(curves, "mean error of a face (% of the inter-ocular distance)", "fraction of the faces")


def choose_examples(errors: Array, count: int, seed: int = 0) -> dict[str, list[int]]:
    """Indices of random results of the better half ("good") and of the worst tenth ("bad"), by error (N,)."""
    order, rng = np.argsort(errors), np.random.default_rng(seed)
    parts = {
        "good": order[: max(1, int(GOOD * len(order)))],
        "bad": order[min(len(order) - 1, int(BAD * len(order))) :],
    }
    return {
        name: sorted(int(i) for i in rng.choice(part, min(count, len(part)), replace=False))
        for name, part in parts.items()
    }


def draw_detections(dataset: FaceDataset, found: Array, errors: Array, count: int, folder: Path) -> list[Path]:
    """Save faces with labels (left) and predictions (right); `found` (N, K, 2) image px, `errors` (N,) in %."""
    paths = []
    for kind, indices in choose_examples(errors, count).items():
        for i in indices:
            sample = dataset.samples[i]
            photo = next(iter_photos(sample.image()))
            crop = Crop.from_box(validate_box(sample.box, photo), draw.PANEL)
            view = Image.fromarray(cut_square(photo.image, crop, draw.PANEL))
            panels = [draw.points(view, crop.to_input(xy)) for xy in (sample.landmarks, found[i])]
            sheet = draw.row(panels, [f"labels of {sample.path.name}", f"found, error {errors[i]:.1f} %"])
            paths.append(_save_image(sheet, folder / f"{kind}-{i:05d}.png"))
    return paths


def draw_matches(
    pairs: WarpedPairs, times: int, rows: Sequence[Mapping[str, Any]], count: int, folder: Path
) -> list[Path]:
    """Save pairs with lines from the landmarks of the source, warped `times` times, to their matches in the target.

    `rows` are the predictions of `match_pairs` for one seed.
    """
    paths = []
    found, truth = (np.array([row[name] for row in rows]) for name in ("found", "truth"))
    errors = pixel_errors(found, truth).mean(axis=1)
    for kind, indices in choose_examples(errors, count).items():
        for i in indices:
            row = rows[i]
            source = 2 * row["pair"]
            target = source + (row["kind"] == "different")
            left, right = pairs.warp_frames([source], times)[0], pairs.warp_frames([target], 1)[0]
            origin, found_xy = (_to_panel(np.array(row[name])) for name in ("origin", "found"))
            sheet = draw.matches(_cut_panel(left), origin, _cut_panel(right), found_xy, np.array(row["score"]))
            paths.append(_save_image(sheet, folder / f"{kind}-{row['kind']}-{row['pair']:05d}.png"))
    return paths


def _cut_panel(frame: Array) -> Image.Image:
    crop = Crop.from_box(BOX, draw.PANEL)
    return Image.fromarray(cut_square(Image.fromarray(frame), crop, draw.PANEL))


def _to_panel(xy_input: Array) -> Array:
    return Crop.from_box(BOX, draw.PANEL).to_input(xy_input + INSET)


def _save_image(sheet: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, sheet)
    return path
