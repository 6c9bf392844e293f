"""How often points lie within their radius, for docs/few-shot.md: python examples/radius_coverage.py MTFL [MODEL]

MTFL is the folder that the dataset was unpacked to. Fits on draws of 800 faces of net_7876 and looks at 1,000 others.
"""

import sys
from pathlib import Path

import numpy as np

import scemae
from scemae.datasets import read_dataset

POOL, TEST = slice(0, 800), slice(800, 1800)  # of the faces in a fixed random order
COUNTS, DRAWS = (20, 50, 100), range(4)


def measure_draw(model, pool, test, features, count, draw, coverage=0.9):
    """Shares within the radius (faces, K) on test faces, and the radii in input px, of a fit on `count` faces."""
    chosen = pool[np.random.default_rng(draw).choice(len(pool), count, replace=False)]
    annotated = scemae.extract_features(model, [face.image() for face in chosen.samples], boxes=chosen.boxes)
    regressor = scemae.fit_regressor(model, annotated, chosen.landmarks, names=chosen.names, normalizer=chosen.eyes)
    found = regressor.predict(features)
    radii, scales = found.radius(coverage), np.array([[face.crop.scale] for face in found.faces])
    return np.linalg.norm(found.xy - test.landmarks, axis=-1) <= radii, radii / scales


def mean_of_fifths(values, by):
    """The mean of `values` in each fifth of the points, the smallest `by` first."""
    return np.array([part.mean() for part in np.array_split(values.ravel()[np.argsort(by.ravel())], 5)])


def main(root, name="scemae-tiny"):
    model, faces = scemae.load_model(name), read_dataset("mtfl", Path(root), "net_7876")
    faces = faces[np.random.default_rng(28).permutation(len(faces))]
    pool, test = faces[POOL], faces[TEST]
    features = scemae.extract_features(model, [face.image() for face in test.samples], boxes=test.boxes)
    for count in COUNTS:
        draws = [measure_draw(model, pool, test, features, count, draw) for draw in DRAWS]
        by_draw = [100 * within.mean() for within, _ in draws]
        by_landmark = 100 * np.mean([within.mean(axis=0) for within, _ in draws], axis=0)
        by_fifth = 100 * np.mean([mean_of_fifths(within, radii) for within, radii in draws], axis=0)
        ratio = np.mean([np.divide(*mean_of_fifths(radii, radii)[[-1, 0]]) for _, radii in draws])
        print(
            f"{count} annotated: {np.mean(by_draw):.1f} % within ({min(by_draw):.1f} to {max(by_draw):.1f}), of each "
            f"landmark {by_landmark.min():.1f} to {by_landmark.max():.1f}, of each fifth {by_fifth.round(1).tolist()}; "
            f"the least sure fifth has {ratio:.2f} times the radius of the surest"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
