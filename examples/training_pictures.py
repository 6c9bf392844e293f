"""What each stage of a training made, shown on the two sample faces, which none of them has seen.

python examples/training_pictures.py RUN1 RUN2 RUN3 FOLDER   (runs of stage 1, alignment, stage 2)
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import scemae
from scemae.geometry import Crop
from scemae.images import cut_square, iter_photos
from scemae.samples import sample_faces
from scemae.training.alignment import before_and_after, token_encoder
from scemae.training.config import AlignConfig, Label, Stage1Config
from scemae.training.data import PROTOCOL, write_pack
from scemae.training.held_out import HeldOutFaces
from scemae.training.stage1 import Stage1

COPIES = 4  # of each face, each moved in its own way before it is aligned

first, second, third, out = (Path(word) for word in sys.argv[1:])
squares = []
for sample in sample_faces():
    photo = next(iter_photos(sample.path)).image
    squares.append(cut_square(photo, Crop.from_box(sample.box), PROTOCOL))


def pack_of(faces, folder):
    """A pack of some squares."""
    named = zip(map(str, range(len(faces))), faces, strict=True)
    return write_pack(Path(folder), named, len(faces), PROTOCOL, "sample faces", 0.0)


with tempfile.TemporaryDirectory() as folder:
    pair = pack_of(squares, Path(folder, "pair"))
    card = (first / "model" / "README.md").read_text(encoding="utf-8")
    settings = Stage1Config.from_json(card.split("```json")[1].split("```")[0])
    settings = replace(settings, continue_from=f"local-dir:{first / 'model'}")
    Stage1(settings, pair, Label(name="picture", training_data="")).picture().save(out / "stage1.png")

    copies = pack_of([*squares * COPIES, squares[0]], Path(folder, "copies"))
    aligned = scemae.load_model(f"local-dir:{second / 'model'}")
    moved = AlignConfig(held_out=2 * COPIES)
    before_and_after(aligned.aligner, token_encoder(aligned), copies, moved).save(out / "align.png")

    projected = scemae.load_model(f"local-dir:{third / 'model'}")
    HeldOutFaces(projected, pair, np.arange(2)).picture(projected.projector).save(out / "stage2.png")
print(*(out / name for name in ("stage1.png", "align.png", "stage2.png")), sep="\n")
