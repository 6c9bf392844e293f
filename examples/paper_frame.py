"""Bring MTFL's training faces to the frame of CelebA's aligned images by their five labels, to diagnose stage 2 there.

python examples/paper_frame.py MTFL OUT, then --data OUT instead of MTFL: every face has its eyes, nose and mouth where
CelebA, which the paper trains and tests on, has them. It uses labels, so nothing that is trained on it is released.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scemae.datasets import read_dataset
from scemae.geometry import apply_affine, fit_similarity, invert, sample_views
from scemae.images import iter_photos

SIDE = 150  # px of the written pictures, as MTFL's are
# Eyes, nose, mouth corners of an aligned CelebA image of 178 x 218 px, of which DVE keeps the rows 30 to 207.
CELEBA = np.array([(69.5, 81.3), (107.8, 81.4), (88.0, 105.0), (71.5, 122.0), (105.0, 122.0)])


def main() -> None:
    """Write the pictures, and their list with the moved labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mtfl", type=Path, metavar="MTFL", help="Folder of MTFL, cropped as in docs/benchmarks.md.")
    parser.add_argument("out", type=Path, metavar="OUT", help="Folder to write.")
    args = parser.parse_args()
    frame = (CELEBA + 0.5) * SIDE / 178 - 0.5
    lines = []
    for split in ("lfw_5590", "net_7876"):
        (args.out / split).mkdir(parents=True)
        for sample in read_dataset("mtfl", args.mtfl, split).samples:
            to_frame = fit_similarity(sample.landmarks, frame)
            photo = np.asarray(next(iter_photos(sample.path)).image)
            pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].double()
            to_photo = torch.from_numpy(invert(to_frame))[None]
            view = sample_views(pixels, to_photo, SIDE)[0]
            name = f"{split}/{sample.path.stem}.png"
            Image.fromarray(view.round().byte().permute(1, 2, 0).numpy()).save(args.out / name)
            moved = apply_affine(to_frame, sample.landmarks) + 1  # MTFL counts pixels from 1
            lines.append(" ".join([name, *(f"{value:.4f}" for value in moved.T.ravel()), "0 0 0 3"]))
    (args.out / "training.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
