"""Write a made-up MAFL, to try the commands without CelebA: python examples/made_up_mafl.py FOLDER [TRAIN [TEST]]

Laid out as CelebA comes, with MAFL's lists: 178 x 218 px crops of the two sample faces, each shifted, scaled and
darkened a little. Errors on them mean nothing.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from scemae.datasets.annotated_face import FIVE
from scemae.geometry import Crop
from scemae.images import iter_photos
from scemae.patches import cut_square
from scemae.samples import sample_faces

folder = Path(sys.argv[1])
counts = dict(zip(("training", "testing"), [*map(int, sys.argv[2:]), 19_000, 1_000][:2], strict=True))
NOSE = {"nose": "nose_tip"}  # the sample faces' name for it
rng = np.random.default_rng(0)
faces = [(next(iter_photos(face.path)).image, face) for face in sample_faces()]
for name in ("Img/img_align_celeba", "Anno", "MAFL"):
    (folder / name).mkdir(parents=True, exist_ok=True)

lines = []
for number in range(sum(counts.values())):
    photo, face = faces[number % 2]
    x0, y0, x1, y1 = face.box
    side = (x1 - x0) * 218 / 126 * rng.uniform(0.9, 1.1)  # the box is the central 126 of the picture's 218 px
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + rng.uniform(-0.05, 0.05, 2) * side
    crop = Crop.from_box((*(centre - side / 2), *(centre + side / 2)), 218)
    pixels = cut_square(photo, crop, 218)[:, 20:198] * rng.uniform(0.6, 1.0)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"Img/img_align_celeba/{number:06d}.jpg")
    xy = crop.to_input([face.landmarks[NOSE.get(name, name)] for name in FIVE]) - (20, 0)
    lines.append(f"{number:06d}.jpg {' '.join(f'{value:.0f}' for value in xy.ravel())}")

header = [str(len(lines)), " ".join(f"{name}_{axis}" for name in FIVE for axis in "xy")]
(folder / "Anno/list_landmarks_align_celeba.txt").write_text("\n".join([*header, *lines]) + "\n")
names = [line.split()[0] for line in lines]
for part, some in (("training", names[: counts["training"]]), ("testing", names[counts["training"] :])):
    (folder / f"MAFL/{part}.txt").write_text("\n".join(some) + "\n")
print(f"{len(lines):,} faces in {folder}")
