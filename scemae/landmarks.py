"""Landmarks and LandmarkMatches: where landmarks were found on faces; frozen values that can draw themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scemae import draw
from scemae.errors import OptionError
from scemae.features import Face, Index, chosen_rows, draw_crop
from scemae.geometry import Crop

SURROUNDINGS = 1.4  # side of a drawn face over the side of its crop


@dataclass(frozen=True, eq=False)
class Landmarks:
    """K points on each of B faces: `xy` (B, K, 2) in pixels of each face's own upright image, `scores` (B, K).

    What a score means is said by the verb that gave it. `names` are the landmarks' names, or None.
    """

    xy: NDArray[np.float64]
    scores: NDArray[np.float64]
    names: tuple[str, ...] | None
    faces: tuple[Face, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, index: Index) -> Self:
        chosen = chosen_rows(index, len(self))
        return replace(self, xy=self.xy[chosen], scores=self.scores[chosen], faces=tuple(self.faces[i] for i in chosen))

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def labels(self) -> list[str]:
        """The names, or "0", "1", ... where there are none."""
        return list(self.names) if self.names else [str(k) for k in range(self.xy.shape[1])]

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON-ready: for each face its source, its image size and the landmarks by name; nan becomes null."""
        return [
            {
                "source": face.source,
                "image_size": list(face.image_size),
                "landmarks": {
                    label: {"x": _number(x), "y": _number(y), "score": _number(score)}
                    for label, (x, y), score in zip(self.labels(), xy, scores, strict=True)
                },
            }
            for face, xy, scores in zip(self.faces, self.xy, self.scores, strict=True)
        ]

    def draw(self) -> Image.Image:
        """The faces, eight in a row, with their landmarks; a fainter dot is a lower score."""
        framed = [_framed(face, xy) for face, xy in zip(self.faces, self.xy, strict=True)]
        panels = [
            draw.points(picture, places, scores) for (picture, places), scores in zip(framed, self.scores, strict=True)
        ]
        return draw.row([draw.grid(panels, [face.source for face in self.faces]), *self._legend()])

    def _legend(self, values: NDArray[np.float64] | None = None) -> list[Image.Image]:
        """A legend to put beside a face, if the landmarks have names."""
        return [draw.legend(self.names, draw.PANEL, values)] if self.names else []


@dataclass(frozen=True, eq=False)
class LandmarkMatches(Landmarks):
    """Landmarks of a reference, found again on B targets; `scores` are cosine similarities.

    `similarity` (B, K, 96, 96), each target's cosine map in its input pixels, is there if it was asked for.
    """

    reference: Landmarks
    similarity: NDArray[np.float32] | None = field(default=None, repr=False)

    def __getitem__(self, index: Index) -> Self:
        chosen = super().__getitem__(index)
        similarity = None if self.similarity is None else self.similarity[chosen_rows(index, len(self))]
        return replace(chosen, similarity=similarity)

    def draw(self) -> Image.Image:
        """The reference beside each target, each landmark joined to its match; a fainter line is a lower score."""
        left, places = _framed(self.reference.faces[0], self.reference.xy[0])
        rows = []
        for face, xy, scores in zip(self.faces, self.xy, self.scores, strict=True):
            right, found = _framed(face, xy)
            rows.append(draw.row([draw.matches(left, places, right, found, scores), *self._legend(scores)]))
        return draw.stack_rows(rows)

    def draw_similarity(self, landmark: int | str = 0) -> Image.Image:
        """The similarity heat map of one landmark over each target's view, the match marked."""
        if self.similarity is None:
            raise OptionError("These matches kept no similarity maps; call match_landmarks(..., keep_similarity=True).")
        labels = self.labels()
        known = {name: k for k, label in enumerate(labels) for name in (label, k)}
        if landmark not in known:
            raise OptionError(f"There is no landmark {landmark!r}; there are {', '.join(labels)}.")
        k = known[landmark]
        reference = self.reference.faces[0]
        place = _on_view(reference, self.reference.xy[0, [k]])
        panels = [draw.points(reference.view(draw.PANEL), place)]
        for face, xy, similarity in zip(self.faces, self.xy[:, [k]], self.similarity[:, k], strict=True):
            panels.append(draw.points(draw.heat(face.view(draw.PANEL), similarity), _on_view(face, xy)))
        scores = [f"{face.source}: {score:.2f}" for face, score in zip(self.faces, self.scores[:, k], strict=True)]
        return draw.grid(panels, [f"{reference.source}: {labels[k]}", *scores])


def _framed(face: Face, xy: NDArray[np.float64]) -> tuple[Image.Image, NDArray[np.float64]]:
    """The face upright as in its photo, with some of its surroundings, and where image points lie in that picture."""
    centre = face.crop.centre
    half = SURROUNDINGS * face.crop.size * face.crop.scale / 2
    crop = Crop.from_box((*(centre + 0.5 - half), *(centre + 0.5 + half)), draw.PANEL)
    return draw_crop(face.patch, crop), crop.to_input(xy)


def _on_view(face: Face, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Image points as places on `face.view(draw.PANEL)`."""
    return face.crop.resample(draw.PANEL).to_input(xy)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
