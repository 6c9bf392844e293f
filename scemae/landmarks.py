"""Landmarks and LandmarkMatches: where landmarks are on faces. Frozen values that can draw themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scemae import draw
from scemae.errors import ImageInputError, OptionError
from scemae.features import Face, Index, chosen_rows, draw_crop, name_faces
from scemae.geometry import Crop
from scemae.photo import read_photo

PANEL_OVER_CROP = 1.4  # side of a drawn face over the side of its crop


@dataclass(frozen=True, eq=False, kw_only=True)
class Landmarks:
    """K points on each of B faces. `landmarks[0]`, `landmarks[1:]`, `landmarks[[3, 5]]` are Landmarks too.

    Attributes:
        xy: (B, K, 2), pixels of each face's own upright image.
        scores: (B, K); the function that returned them says what they mean.
        names: the names of the K landmarks, or None.
        faces: the B faces.
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

    @property
    def ok(self) -> NDArray[np.bool_]:
        """(B,) bool, the faces that were found, as far as that is known; landmarks of the others mean nothing."""
        return np.array([face.found is not False for face in self.faces], dtype=bool)

    def labels(self) -> list[str]:
        """The names, or "0", "1", ... if the landmarks have none."""
        return list(self.names) if self.names else [str(k) for k in range(self.xy.shape[1])]

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON-ready: of each face its source, number, image size, whether it was found, and its landmarks by name.

        nan becomes null; "found" is null where that is not known.
        """
        return [
            {
                "source": face.source,
                "face": face.number,
                "image_size": list(face.image_size),
                "found": face.found,
                "face_score": _finite(face.score),
                "landmarks": {
                    label: {"x": _finite(x), "y": _finite(y), "score": _finite(score)}
                    for label, (x, y), score in zip(self.labels(), xy, scores, strict=True)
                },
            }
            for face, xy, scores in zip(self.faces, self.xy, self.scores, strict=True)
        ]

    def draw(self) -> Image.Image:
        """The faces, eight in a row, with their landmarks; a fainter dot is a lower score.

        Several faces of a photo are shown on it, if its file can be opened again, in the squares that the model saw: in
        red where no face was found. Raises OptionError for more than 200 faces.
        """
        draw.check_count(len(self))
        photos, others = self._draw_photos()
        names = name_faces(self.faces)
        panels = [draw.points(*_face_panel(self.faces[i], self.xy[i]), self.scores[i]) for i in others]
        rows = [draw.grid(panels, [Path(names[i]).name for i in others])] if others else []
        return draw.row([draw.columns(rows + photos), *self._legend()])

    def _draw_photos(self) -> tuple[list[Image.Image], list[int]]:
        """Each photo of several faces that can be opened again, with these in place, and the rows of the others."""
        rows_of: dict[str, list[int]] = {}
        for i, face in enumerate(self.faces):
            rows_of.setdefault(face.source, []).append(i)
        several = [rows for rows in rows_of.values() if len(rows) > 1]
        photos, shown = [], set()
        for rows in several:
            if (photo := _open_again(self.faces[rows[0]])) is not None:
                panel = self._draw_in_place(photo, rows, draw.photo_side(photo, len(several)))
                photos.append(draw.row([panel], [_file_name(self.faces[rows[0]])]))
                shown.update(rows)
        return photos, [i for i in range(len(self)) if i not in shown]

    def _draw_in_place(self, photo: Image.Image, rows: list[int], side: int) -> Image.Image:
        """A photo, its longer side `side` px, with the squares and landmarks of the faces number `rows`."""
        extent = max(photo.size)
        shown = Crop.from_box((0, 0, extent, extent), side)
        size = [max(round(length * side / extent), 1) for length in photo.size]
        faces = [self.faces[i] for i in rows]
        corners = np.stack([shown.to_input(face.crop.to_image(face.crop.corners)) for face in faces])
        labels = [f"{face.number}: no face found" if face.found is False else str(face.number) for face in faces]
        panel = photo.resize((size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=2.0)
        panel = draw.squares(panel, corners, labels, [face.found is False for face in faces])
        for square, i in zip(corners, rows, strict=True):
            draw.points_in_place(panel, square, shown.to_input(self.xy[i]), self.scores[i])
        return panel

    def _legend(self, values: NDArray[np.float64] | None = None) -> list[Image.Image]:
        """A legend to put beside a face, if the landmarks have names."""
        return [draw.legend(self.names, draw.PANEL, values)] if self.names else []


@dataclass(frozen=True, eq=False, kw_only=True)
class LandmarkMatches(Landmarks):
    """Landmarks of a reference face, found on B target faces; `scores` are cosine similarities.

    Attributes:
        reference: the landmarks that were searched for.
        similarity: (B, K, 96, 96), each target's cosine maps in its input pixels; None without `keep_similarity`.
    """

    reference: Landmarks
    similarity: NDArray[np.float32] | None = field(default=None, repr=False)

    def __getitem__(self, index: Index) -> Self:
        chosen = super().__getitem__(index)
        similarity = None if self.similarity is None else self.similarity[chosen_rows(index, len(self))]
        return replace(chosen, similarity=similarity)

    def draw(self) -> Image.Image:
        """The reference beside each target, each landmark joined to its match; a fainter line is a lower score.

        Several targets of a photo are shown on it, as in `Landmarks.draw`, without lines. Raises OptionError for more
        than 200 targets.
        """
        draw.check_count(len(self))
        left, places = _face_panel(self.reference.faces[0], self.reference.xy[0])
        photos, others = self._draw_photos()
        rows = []
        for i in others:
            right, found = _face_panel(self.faces[i], self.xy[i])
            joined = draw.matches(left, places, right, found, self.scores[i])
            rows.append(draw.row([joined, *self._legend(self.scores[i])]))
        reference = draw.points(left, places)
        return draw.columns(rows + [draw.row([reference, photo, *self._legend()]) for photo in photos])

    def draw_similarity(self, landmark: int | str = 0) -> Image.Image:
        """The similarity heat map of one landmark over the crop of each target, with its match.

        Raises OptionError for more than 200 targets, or a landmark or maps that are not there.
        """
        draw.check_count(len(self))
        if self.similarity is None:
            raise OptionError("These matches have no similarity maps; call match_landmarks(..., keep_similarity=True).")
        labels = self.labels()
        known = {name: k for k, label in enumerate(labels) for name in (label, k)}
        if landmark not in known:
            raise OptionError(f"There is no landmark {landmark!r}; there are {', '.join(labels)}.")
        k = known[landmark]
        reference = self.reference.faces[0]
        place = _to_view(reference, self.reference.xy[0, [k]])
        panels = [draw.points(reference.view(draw.PANEL), place)]
        for face, xy, similarity in zip(self.faces, self.xy[:, [k]], self.similarity[:, k], strict=True):
            panels.append(draw.points(draw.heat(face.view(draw.PANEL), similarity), _to_view(face, xy)))
        scores = [f"{_file_name(face)}: {score:.2f}" for face, score in zip(self.faces, self.scores[:, k], strict=True)]
        return draw.grid(panels, [f"{_file_name(reference)}: {labels[k]}", *scores])


def _file_name(face: Face) -> str:
    """The caption of a face: the name of its file, without the folders."""
    return Path(face.source).name


def _open_again(face: Face) -> Image.Image | None:
    """The photo of a face, upright, from its file; None where there is none, or another picture."""
    try:
        photo = read_photo(face.source, face.source).image
    except ImageInputError:
        return None
    return photo if photo.size == face.image_size else None


def _face_panel(face: Face, xy: NDArray[np.float64]) -> tuple[Image.Image, NDArray[np.float64]]:
    """The face with its surroundings, parallel to its photo, and the image points `xy` in pixels of that panel."""
    centre = face.crop.centre
    half = PANEL_OVER_CROP * face.crop.size * face.crop.scale / 2
    crop = Crop.from_box((*(centre + 0.5 - half), *(centre + 0.5 + half)), draw.PANEL)
    return draw_crop(face.patch, crop), crop.to_input(xy)


def _to_view(face: Face, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Image points in pixels of `face.view(draw.PANEL)`."""
    return face.crop.resample(draw.PANEL).to_input(xy)


def _finite(value: float) -> float | None:
    """The value as JSON has it: None for nan."""
    return float(value) if np.isfinite(value) else None
