"""Pictures of results: cumulative error curves, good and bad examples. They show data that is not ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from scemae import draw
from scemae.datasets import FaceDataset
from scemae.evaluation.warped_pairs import BOX, INSET, Pairs
from scemae.geometry import Array, Crop
from scemae.images import cut_square, iter_photos, validate_box
from scemae.metrics import pixel_errors

CURVE = (760, 420)
LARGEST = 25.0  # %, the right end of the curves
GOOD, BAD = 0.5, 0.9  # good examples are from the better half, bad ones from the worst tenth


def cumulative_curve(errors: Mapping[str, Array]) -> Image.Image:
    """The part of the faces (upwards, 0 to 1) with at most an error (to the right, % of the inter-ocular distance)."""
    picture = Image.new("RGB", CURVE, draw.BACKGROUND)
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = 60, 20, CURVE[0] - 20, CURVE[1] - 40
    for share in np.linspace(0, 1, 5):
        y = bottom - share * (bottom - top)
        pen.line((left, y, right, y), fill=(60, 64, 72))
        draw.write(pen, (left - 8, y), f"{share:.2f}", 14, "rm")
    for error in np.arange(0, LARGEST + 1, 5):
        draw.write(pen, (left + error / LARGEST * (right - left), bottom + 10), f"{error:.0f} %", 14, "ma")
    levels = np.linspace(0, LARGEST, 200)
    across = left + levels / LARGEST * (right - left)
    for number, ((label, values), colour) in enumerate(zip(errors.items(), draw.palette(len(errors)), strict=True)):
        shares = np.searchsorted(np.sort(values), levels, side="right") / len(values)
        pen.line(list(zip(across.tolist(), (bottom - shares * (bottom - top)).tolist(), strict=True)), colour, 2)
        y = bottom - 20 * (len(errors) - number)
        pen.line((right - 24, y, right, y), colour, 3)
        draw.write(pen, (right - 32, y), label, 14, "rm")
    return picture


def examples(errors: Array, count: int, seed: int = 0) -> dict[str, list[int]]:
    """Randomly chosen results of the better half ("good") and of the worst tenth ("bad"), by error (N,)."""
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
    """Faces with their labels (left) and what was found (right); `found` (N, K, 2) image px, `errors` (N,) in %."""
    paths = []
    for kind, chosen in examples(errors, count).items():
        for i in chosen:
            sample = dataset.samples[i]
            photo = next(iter_photos(sample.image()))
            crop = Crop.from_box(validate_box(sample.box, photo), draw.PANEL)
            view = Image.fromarray(cut_square(photo.image, crop, draw.PANEL))
            panels = [draw.points(view, crop.to_input(xy)) for xy in (sample.landmarks, found[i])]
            sheet = draw.row(panels, [f"labels of {sample.path.name}", f"found, error {errors[i]:.1f} %"])
            paths.append(_saved(sheet, folder / f"{kind}-{i:05d}.png"))
    return paths


def draw_matches(pairs: Pairs, times: int, rows: Sequence[Mapping[str, Any]], count: int, folder: Path) -> list[Path]:
    """Pairs with lines from the landmarks of the source, warped `times` times, to what was found, by `match_pairs`."""
    paths = []
    found, truth = (np.array([row[name] for row in rows]) for name in ("found", "truth"))
    errors = pixel_errors(found, truth).mean(axis=1)
    for kind, chosen in examples(errors, count).items():
        for i in chosen:
            row = rows[i]
            number = 2 * row["pair"]
            target = number + (row["kind"] == "different")
            left, right = pairs.pictures([number], times)[0], pairs.pictures([target], 1)[0]
            places, matched = (_on_panel(np.array(row[name])) for name in ("origin", "found"))
            sheet = draw.matches(_panel(left), places, _panel(right), matched, np.array(row["score"]))
            paths.append(_saved(sheet, folder / f"{kind}-{row['kind']}-{row['pair']:05d}.png"))
    return paths


def _panel(frame: Array) -> Image.Image:
    crop = Crop.from_box(BOX, draw.PANEL)
    return Image.fromarray(cut_square(Image.fromarray(frame), crop, draw.PANEL))


def _on_panel(xy_input: Array) -> Array:
    return Crop.from_box(BOX, draw.PANEL).to_input(xy_input + INSET)


def _saved(sheet: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path
