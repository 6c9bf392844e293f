"""Pictures of "faces" whose colours are places, and an aligner and a finder that read them: no training, exact.

A face is a square of any roll. Blue, the same all over it, says how sure one can be of it; red and green are the
column and the row. The picture around it is black.
"""

import numpy as np
import torch
from small_models import ALIGNER, FINDER

from scemae.geometry import similarity
from scemae.model.aligner import FaceAligner, Located
from scemae.model.face_finder import STRIDE, FaceFinder, FirstLook

NOTHING = 0.5  # log error of a view without a face
SURENESS = 6.0  # log error of a face over minus its blue


def draw_face(pixels, centre, side, roll=0.0, blue=1.0):
    """Draw a face into pixels (H, W, 3), uint8: its centre (x, y) and side in px, its roll in degrees, clockwise."""
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    turn = similarity(np.radians(-roll), 2 / side, np.zeros(2), np.zeros(2))[:, :2]
    places = (np.stack([columns, rows], -1) - centre) @ turn.T  # half-sides of the face
    inside = (np.abs(places) <= 1).all(-1)
    colours = np.concatenate([(places + 1) / 2, np.full((*inside.shape, 1), blue)], -1)
    pixels[inside] = (colours[inside] * 255).round().astype(np.uint8)
    return pixels


class PlaceAligner(FaceAligner):
    """Reads of the surest face in a view where its canonical points are; `views` counts what it was shown."""

    def __init__(self, config=ALIGNER, input_size=64):
        super().__init__(config, input_size)
        self.views = 0

    def forward(self, views):
        self.views += len(views)
        points = self.canonical.expand(len(views), -1, -1).clone()
        log_errors = torch.full((len(views),), NOTHING)
        axis = (torch.arange(views.shape[-1]) + 0.5) * 2 / views.shape[-1] - 1
        places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
        for row, view in enumerate(views):
            blue = view[2].max()
            seen = (view[2] > 0.99 * blue) & (blue > 0.1)
            if seen.sum() > 0.02 * seen.numel():
                face = view[:2, seen].T * 2 - 1
                fit = torch.linalg.lstsq(torch.cat([face, torch.ones(len(face), 1)], 1), places[seen]).solution
                points[row] = torch.cat([self.canonical, torch.ones(len(self.canonical), 1)], 1) @ fit
                log_errors[row] = -SURENESS * blue
        return Located(points, log_errors)


class PlaceFinder(FaceFinder):
    """Sees a face in each cell whose middle shows one, its middle in the cell: it knows neither side nor roll."""

    def __init__(self, config=FINDER):
        super().__init__(config)

    def forward(self, pictures):
        blue = pictures[:, 2, ::STRIDE, ::STRIDE]
        rows, columns = torch.meshgrid(*(torch.arange(n) * float(STRIDE) for n in blue.shape[1:]), indexing="ij")
        centres = torch.stack([columns, rows]).expand(len(blue), -1, -1, -1)
        logits = torch.where(blue > 0.1, 1.0, -1.0)
        return FirstLook(logits, centres, torch.full_like(blue, self.config.typical_side), torch.zeros_like(blue))


def read_places(model):
    """The model, with this aligner and finder."""
    model.aligner, model.finder = PlaceAligner(input_size=model.config.input_size), PlaceFinder()
    return model
