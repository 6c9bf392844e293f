"""What stage 2 shows and measures: held-out faces, warped copies of them, and where they are similar to a place."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scemae import draw
from scemae.geometry import sample_at
from scemae.matching import similarity_maps
from scemae.model.projector import Projector
from scemae.model.sce_mae import SceMae
from scemae.training.model_writer import view_picture
from scemae.training.pack import INPUT, Pack
from scemae.warps import draw_warps

SHOWN = 5  # faces in a picture
QUERIES = ((29.0, 30.0), (66.0, 30.0), (48.0, 50.0), (36.0, 69.0))  # input px: about the eyes, the nose, a mouth corner
PLACES = tuple((float(x), float(y)) for y in range(24, 73, 12) for x in range(24, 73, 12))  # matched, input px


class HeldOutFaces:
    """Central views of faces that a projector has not seen, and their backbone maps at expansion 1."""

    def __init__(self, model: SceMae, pack: Pack, rows: NDArray[np.int64]) -> None:
        self.model = model
        self.views = pack.central_views(torch.from_numpy(pack.squares[rows]))
        self.warps = draw_warps(range(len(rows)))
        self.source, self.target = self._maps(self.views), self._maps(self.warps.images(self.views))

    @torch.no_grad()
    def measure(self, projector: Projector) -> dict[str, float]:
        """Mean error, input px, of finding places of the faces on the warped copies, by either kind of features."""
        places = torch.tensor(PLACES, dtype=torch.float64)
        truth = self.warps.landmarks(places.expand(len(self.views), -1, -1), INPUT)
        pairs = {"backbone": (self.source, self.target)}
        pairs["projected"] = (_projected(projector, self.source), _projected(projector, self.target))
        errors = {}
        for name, maps in pairs.items():
            found = torch.stack([self._best(places, *face) for face in zip(*maps, strict=True)])
            errors[f"warped_{name}_error"] = float((found - truth).norm(dim=-1).nanmean())
        return errors

    @torch.no_grad()
    def picture(self, projector: Projector) -> Image.Image:
        """A row for each query: the first face with the place marked, then where it and others are similar to it."""
        maps = _projected(projector, self.source[:SHOWN])
        pictures = [view_picture(view) for view in self.views[:SHOWN]]
        rows = []
        for place in QUERIES:
            similarity = [self._similarity(torch.tensor([place]), maps[0], target)[0].numpy() for target in maps]
            asked = draw.points(pictures[0], np.array([place]) * 2 + 0.5)
            rows.append(draw.row([asked, *(draw.heat(p, s) for p, s in zip(pictures, similarity, strict=True))]))
        return draw.stack_rows(rows)

    def _maps(self, views: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.model.backbone(self.model.normalise(part)).cpu() for part in views.split(50)])

    def _similarity(self, places: Tensor, source: Tensor, target: Tensor) -> Tensor:
        grid = self.model.grid(1)
        queries = sample_at(source[None], grid, places[None].float())[0]
        return similarity_maps(F.normalize(queries, dim=-1), target, grid, INPUT)

    def _best(self, places: Tensor, source: Tensor, target: Tensor) -> Tensor:
        best = self._similarity(places, source, target).flatten(1).argmax(1)
        return torch.stack([best % INPUT, best // INPUT], dim=-1)


def _projected(projector: Projector, maps: Tensor) -> Tensor:
    projected: Tensor = projector(maps.to(projector.weight.device))
    return projected.cpu()
