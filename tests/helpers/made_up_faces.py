"""Small data sets for the tests of evaluation, of the two sample faces or of no faces at all."""

import numpy as np
from PIL import Image

from scemae.datasets import FaceDataset, Sample
from scemae.datasets.annotated_face import FIVE
from scemae.geometry import Crop, Patch, sample_view
from scemae.images import iter_photos
from scemae.patches import cut_square
from scemae.samples import sample_faces

FIVE_NAMES = ("left_eye", "right_eye", "nose_tip", "left_mouth", "right_mouth")  # the names of FIVE in the samples


def mtfl_folder(root, test=11, training=4):
    """A folder laid out as MTFL: crops of the sample faces, each shifted and scaled a little; its counts by split."""
    rng = np.random.default_rng(0)
    lines = {"testing.txt": [], "training.txt": []}
    for i in range(test + 2 * training):
        folder = "AFLW" if i < test else "lfw_5590" if i < test + training else "net_7876"
        name = f"{folder}/{i:04d}.png"
        xy = write_crop(sample_faces()[i % 2], root / name, rng)
        values = " ".join(f"{value:.6f}" for value in (xy + 1).T.ravel())
        lines["testing.txt" if i < test else "training.txt"].append(f"{name} {values} 1 1 2 {i % 5 + 1}")
    for file, text in lines.items():
        (root / file).write_text("\n".join(text) + "\n")
    pool = -(-test // 6)
    return {
        "lfw_5590": training, "net_7876": training, "train": 2 * training,
        "pool": pool, "test": test - pool, "aflw": test,
    }  # fmt: skip


def write_crop(face, path, rng):
    """Write a 150 x 150 crop in the framing of AFLW; returns its landmarks (5, 2), pixels counted from 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x0, y0, x1, y1 = face.box
    side = (x1 - x0) * 136 / 96 * rng.uniform(0.9, 1.1)
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + rng.uniform(-0.05, 0.05, 2) * side
    crop = Crop.from_box((*(centre - side / 2), *(centre + side / 2)), 150)
    Image.fromarray(cut_square(next(iter_photos(face.path)).image, crop, 150)).save(path)
    return crop.to_input([face.landmarks[name] for name in FIVE_NAMES])


def coloured_faces(root, count):
    """`count` images of one colour each, red = 10 x their number, all with about the same five landmarks."""
    xy = np.array([(55, 60), (95, 62), (75, 80), (60, 98), (92, 99)], dtype=float)
    samples = []
    for i in range(count):
        path = root / f"{i:03d}.png"
        Image.new("RGB", (150, 150), (10 * i, 100, 100)).save(path)
        inset = 150 * 20 / 136
        box = (inset, inset, 150 - inset, 150 - inset)
        samples.append(Sample(path=path, box=box, landmarks=xy + i % 3, size=(150, 150)))
    return FaceDataset(name="made-up", split="test", samples=tuple(samples), names=FIVE, eyes=(0, 1))


def frames_of_people(people=5, frames=3, side=136):
    """`frames` pictures that hardly differ of each "person", a sample face turned, stretched and recoloured.

    Returns the pictures, their landmarks (n, 8, 2) and the person of each (n,); the faces fill the pictures.
    """
    rng = np.random.default_rng(0)
    pictures, landmarks = [], []
    for person in range(people):
        sample = sample_faces()[person % 2]
        photo = Patch(np.array(next(iter_photos(sample.path)).image), np.eye(2, 3))
        angle, stretch, colours = rng.normal(0, 0.2), np.exp(rng.normal(0, 0.15, 2)), rng.uniform(0.4, 1.0, 3)
        for _ in range(frames):
            turn = angle + rng.normal(0, 0.01)
            linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * stretch * 1.4
            middle = np.full(2, (side - 1) / 2)
            shift = middle - linear @ middle + rng.normal(0, 0.5, 2)
            crop = Crop.from_box(sample.box, side).refine(np.column_stack([linear, shift]))
            view = sample_view(photo, crop).permute(1, 2, 0).numpy() * colours
            pictures.append((view * 255).astype(np.uint8))
            landmarks.append(crop.to_input(list(sample.landmarks.values())))
    return pictures, np.array(landmarks), np.repeat(np.arange(people), frames)
