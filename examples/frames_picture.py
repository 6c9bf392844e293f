"""One point in each frame it passes through, for docs/concepts.md: python examples/frames_picture.py [OUT.png]"""

import sys

import numpy as np
import torch
from PIL import Image, ImageDraw

import scemae
from scemae import draw
from scemae.features import draw_crop
from scemae.geometry import Crop, Patch
from scemae.samples import sample_faces

SIZE, FINE = draw.PANEL, 3  # px of a panel; how much larger it is drawn, for smooth lines
BOX, PATCH, INPUT, CELL = (255, 255, 255), *draw.palette(3)


def panel(patch, frame, outlines=(), dots=()):
    """What the crop `frame` shows, with the nose tip, the outlines (crop, colour), and dots in pixels of the frame."""
    large = frame.resample(SIZE * FINE)
    picture = draw_crop(patch, frame).resize((large.size, large.size), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for crop, colour in outlines:
        corners = large.to_input(crop.to_image(crop.corners))
        pen.line([tuple(corners[i]) for i in (0, 1, 2, 3, 0, 1)], fill=colour, width=2 * FINE)
    for x, y in dots:
        x, y = ((place + 0.5) * large.size / frame.size for place in (x, y))
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=CELL)
    reduced = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    return draw.points(reduced, frame.resample(SIZE).to_input([nose]))


# The first sample face with its head turned by 20 degrees, and a rough box.
sample = sample_faces()[0]
photo = Patch(np.array(Image.open(sample.path).convert("RGB")), np.eye(2, 3))
cosine, sine = np.cos(np.radians(20)), np.sin(np.radians(20))
whole = Crop.from_box((0, 0, 512, 512), 512)
turned = whole.refine(np.array([[cosine, sine, 256 * (1 - cosine - sine)], [-sine, cosine, 256 * (1 + sine - cosine)]]))
image, nose, box = draw_crop(photo, turned), turned.to_input(sample.landmarks["nose_tip"]), (170, 150, 350, 330)

faces = scemae.extract_features(scemae.load_model(), image, boxes=box)
face, grid = faces.faces[0], faces.grid
patch = Crop(face.patch.to_image_affine, len(face.patch.pixels))
start, aligned = (Crop.from_box(box), BOX), (face.crop, INPUT)
cells = torch.cartesian_prod(*[grid.centres(faces.backbone_map.shape[-1])] * 2).tolist()
panels = {
    "image, nose tip at": panel(Patch(np.array(image), np.eye(2, 3)), whole, [start, (patch, PATCH), aligned]),
    "patch,": panel(face.patch, patch, [start, aligned]),
    "view, in it the input:": panel(face.patch, face.crop.pad(4), [aligned]),
    "input and its cells, in cells": panel(face.patch, face.crop, (), cells),
}
nose_input = face.crop.to_input(nose)
places = nose, patch.to_input(nose), nose_input, grid.to_cells(torch.from_numpy(nose_input))
captions = [f"{name} ({x:.1f}, {y:.1f})" for name, (x, y) in zip(panels, places, strict=True)]
pictures = list(panels.values())
rows = [draw.row(pictures[i : i + 2], captions[i : i + 2]) for i in (0, 2)]
out = sys.argv[1] if len(sys.argv) > 1 else "frames.png"
draw.stack_rows(rows).quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)
print(face.alignment, out, sep="\n")
