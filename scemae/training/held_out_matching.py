"""What stage 2 measures and shows: matching of held-out faces with warped copies of them, and similarity maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

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
from scemae.training.model_writer import draw_view
from scemae.training.pack import Pack
from scemae.warps import draw_warps

FACES_SHOWN = 5
# Places in a view of 96 px: those of the similarity maps (about the eyes, the nose, a mouth corner), those matched.
QUERIES = ((29.0, 30.0), (66.0, 30.0), (48.0, 50.0), (36.0, 69.0))
PLACES = tuple((float(x), float(y)) for y in range(24, 73, 12) for x in range(24, 73, 12))


class HeldOutFaces:
    """Central views of faces that a projector has not seen, and their backbone maps at expansion 1."""

    def __init__(self, model: SceMae, pack: Pack, rows: NDArray[np.int64]) -> None:
        self.model, self.size = model, pack.input_size
        self.views = pack.central_views(torch.from_numpy(pack.squares[rows]))
        self.warps = draw_warps(range(len(rows)))
        self.source, self.target = self._encode(self.views), self._encode(self.warps.images(self.views))

    @torch.no_grad()
    def measure(self, projector: Projector) -> dict[str, float]:
        """Mean errors, input px, of either kind of features.

        `warped_*_error`: of matching places of the faces to the warped copies of the same faces. `cycle_*_error`: of
        matching them to another face, and from what was found there to the warped copies, which also sees whether
        different faces match, without labels.
        """
        source, target = (_project_maps(projector, maps) for maps in (self.source, self.target))
        return {**self._backbone_errors, **self._measure("projected", source, target)}

    @cached_property
    def _backbone_errors(self) -> dict[str, float]:
        return self._measure("backbone", self.source, self.target)

    def _measure(self, name: str, source: Tensor, target: Tensor) -> dict[str, float]:
        places = self._scale(PLACES).expand(len(source), -1, -1)
        truth, others = self.warps.landmarks(places, self.size), source.roll(-1, 0)
        found = {"warped": self._match(places, source, target)}
        found["cycle"] = self._match(self._match(places, source, others), others, target)
        return {f"{kind}_{name}_error": float((xy - truth).norm(dim=-1).nanmean()) for kind, xy in found.items()}

    @torch.no_grad()
    def draw_similarity(self, projector: Projector) -> Image.Image:
        """A row for each query: the first face with the place marked, then the similarity of all faces to it."""
        maps = _project_maps(projector, self.source[:FACES_SHOWN])
        pictures = [draw_view(view) for view in self.views[:FACES_SHOWN]]
        rows = []
        for place in self._scale(QUERIES):
            similarity = [self._similarity(place[None], maps[0], target)[0].numpy() for target in maps]
            marked = draw.points(pictures[0], place[None].numpy() * 2 + 0.5)
            rows.append(draw.row([marked, *(draw.heat(p, s) for p, s in zip(pictures, similarity, strict=True))]))
        return draw.stack_rows(rows)

    def _scale(self, places: Sequence[tuple[float, float]]) -> Tensor:
        """Places (P, 2) of a view of 96 px as pixels of this model's views."""
        return torch.tensor(places, dtype=torch.float64) * (self.size / 96)

    def _encode(self, views: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.model.backbone(self.model.normalise(part)).cpu() for part in views.split(50)])

    def _similarity(self, places: Tensor, source: Tensor, target: Tensor) -> Tensor:
        grid = self.model.grid(1)
        queries = sample_at(source[None], grid, places[None].float())[0]
        return similarity_maps(F.normalize(queries, dim=-1), target, grid, self.size)

    def _match(self, places: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """The most similar pixels (n, P, 2) of the target of each face to its places (n, P, 2) in the source."""
        best = torch.stack(
            [self._similarity(*face).flatten(1).argmax(1) for face in zip(places, source, target, strict=True)]
        )
        return torch.stack([best % self.size, best // self.size], dim=-1).double()


def _project_maps(projector: Projector, maps: Tensor) -> Tensor:
    return projector(maps.to(projector.weight.device)).cpu()
