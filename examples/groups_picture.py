"""Errors held out by frame and by person, for docs/few-shot.md: python examples/groups_picture.py MTFL [OUT.png]

MTFL is the folder that the dataset was unpacked to. Needs matplotlib.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

import scemae
from scemae.datasets import read_dataset
from scemae.geometry import Crop, Patch, sample_view

BY_FRAME, BY_PERSON, BY_HAND = "held out by frame", "held out by person", "by person, in a loop by hand"
OTHERS_BY_FRAME, OTHERS_BY_PERSON = "the fit by frame on other people", "the fit by person on other people"
BARS = (BY_FRAME, BY_PERSON, OTHERS_BY_PERSON)


def cut_frames(face, count, rng):
    """Pictures of a face that hardly differ, each with its landmarks: shifted by 2 % of the box, scaled by 1.5 %."""
    photo, (x0, y0, x1, y1) = Patch(np.array(Image.open(face.path).convert("RGB")), np.eye(2, 3)), face.box
    frames = []
    for _ in range(count):
        dx, dy, margin = *rng.normal(0, 0.02, 2) * (x1 - x0), 0.3 * (x1 - x0) * np.exp(rng.normal(0, 0.04))
        crop = Crop.from_box((x0 + dx - margin, y0 + dy - margin, x1 + dx + margin, y1 + dy + margin), 200)
        view = (sample_view(photo, crop) * 255).byte().permute(1, 2, 0).numpy()
        frames.append((view, crop.to_input(face.landmarks)))
    return frames


def measure_draw(model, faces, draw, people=5, frames=3, others=60):
    """Errors of detectors fitted on all frames of some people, % of the inter-ocular distance, and their ridges."""
    rng = np.random.default_rng(draw)
    chosen = rng.choice(len(faces), people, replace=False)
    rest = np.setdiff1d(np.arange(len(faces)), chosen)
    other = faces[np.random.default_rng(draw + 100).choice(rest, others, replace=False)]
    pictures, xy = zip(*(f for face in faces[chosen].samples for f in cut_frames(face, frames, rng)), strict=True)
    features, xy, person = scemae.extract_features(model, pictures), np.array(xy), np.repeat(np.arange(people), frames)
    new = scemae.extract_features(model, [face.image() for face in other.samples], boxes=other.boxes)

    def fit(rows, groups):
        return scemae.fit_regressor(model, features[rows], xy[rows], groups=groups, normalizer=faces.eyes)

    every, errors, ridges = slice(None), {}, {}
    for held_out, on_others, groups in ((BY_FRAME, OTHERS_BY_FRAME, None), (BY_PERSON, OTHERS_BY_PERSON, person)):
        regressor = fit(every, groups)
        errors[held_out], ridges[held_out] = regressor.held_out_error_, regressor.head_.ridge_
        errors[on_others] = -regressor.score(new, other.landmarks)
    parts = [(person != out, person == out) for out in range(people)]
    errors[BY_HAND] = -np.mean([fit(seen, person[seen]).score(features[out], xy[out]) for seen, out in parts])
    return {name: 100 * error for name, error in errors.items()}, ridges


def draw_bars(draws):
    """The errors of each draw side by side."""
    figure, axes = plt.subplots(figsize=(7.2, 3.6), dpi=100, layout="constrained")
    for number, name in enumerate(BARS):
        places = np.arange(len(draws)) + 0.27 * (number - 1)
        axes.bar_label(axes.bar(places, [errors[name] for errors in draws], 0.25, label=name), fmt="%.1f")
    axes.set_xticks(range(len(draws)), [f"draw {number + 1}" for number in range(len(draws))])
    axes.set(xlabel="five people, three frames of each", ylabel="error, % of the inter-ocular distance")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)
    return figure


if __name__ == "__main__":
    pool = read_dataset("mtfl", Path(sys.argv[1]), "pool")
    measured = [measure_draw(scemae.load_model(), pool, draw) for draw in range(2)]
    for name in measured[0][0]:
        cells = [f"{errors[name]:.1f} (ridge {ridges.get(name)})" for errors, ridges in measured]
        print(f"| {name} | {' | '.join(cells).replace(' (ridge None)', '')} |")
    out = sys.argv[2] if len(sys.argv) > 2 else "groups.png"
    draw_bars([errors for errors, _ in measured]).savefig(out)
    print(out)
