"""Landmarks and LandmarkMatches: where landmarks are on faces. Frozen values that can draw themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scemae import draw
from scemae.calibration import Calibration, needed_groups
from scemae.errors import ImageInputError, OptionError, warn_user
from scemae.features import Face, Index, chosen_rows, draw_crop, name_faces
from scemae.geometry import Crop
from scemae.photo import read_photo

PANEL_OVER_CROP = 1.4  # side of a drawn face over the side of its crop
COVERAGE = 0.9  # of a radius, unless another is asked for


@dataclass(frozen=True, eq=False, kw_only=True)
class Landmarks:
    """K points on each of B faces. `landmarks[0]`, `landmarks[1:]`, `landmarks[[3, 5]]` are Landmarks too.

    Attributes:
        xy: (B, K, 2), pixels of each face's own upright image.
        scores: (B, K); the function that returned them says what they mean.
        names: the names of the K landmarks, or None.
        faces: the B faces.
        expected_errors: (B, K), how far off each point is expected to be, image px; nan on a face that was not found.
            None if that is not known, as of matches.
        calibration: how errors compare with what was expected, on faces that the detector had not seen; or None.
    """

    xy: NDArray[np.float64]
    scores: NDArray[np.float64]
    names: tuple[str, ...] | None
    faces: tuple[Face, ...] = field(repr=False)
    expected_errors: NDArray[np.float64] | None = field(default=None, repr=False)
    calibration: Calibration | None = field(default=None, repr=False)

    @classmethod
    def concatenate(cls, parts: Sequence[Landmarks]) -> Landmarks:
        """Join what one detector found."""
        first = parts[0]
        expected = [part.expected_errors for part in parts if part.expected_errors is not None]
        return replace(
            first,
            xy=np.concatenate([part.xy for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
            faces=tuple(face for part in parts for face in part.faces),
            expected_errors=np.concatenate(expected) if expected else None,
        )

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, index: Index) -> Self:
        chosen = chosen_rows(index, len(self))
        expected = None if self.expected_errors is None else self.expected_errors[chosen]
        faces = tuple(self.faces[i] for i in chosen)
        return replace(self, xy=self.xy[chosen], scores=self.scores[chosen], faces=faces, expected_errors=expected)

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    @property
    def ok(self) -> NDArray[np.bool_]:
        """(B,) bool, the faces that were found, as far as that is known; landmarks of the others mean nothing."""
        return np.array([face.found is not False for face in self.faces], dtype=bool)

    def labels(self) -> list[str]:
        """The names, or "0", "1", ... if the landmarks have none."""
        return list(self.names) if self.names else [str(k) for k in range(self.xy.shape[1])]

    def radius(self, coverage: float = COVERAGE) -> NDArray[np.float64]:
        """How far off each point may be (B, K), image px: of new points like the annotated ones, `coverage` are nearer.

        Conformal, from the errors on held-out faces (docs/few-shot.md). nan on a face that was not found, and
        everywhere, with a warning, where the detector was fitted on too few faces to tell: 0.9 takes 9, 0.95 takes 19.

        Raises OptionError where nothing is known of the errors: of matches, or of a detector of an older version.
        """
        radii = self._radii(coverage)
        if self.calibration is not None and (needed := needed_groups(coverage)) > self.calibration.count:
            warn_user(
                f"Not enough faces for a radius that covers {coverage:g}: it takes {needed} that can be held out on "
                f"their own, the detector was fitted on {self.calibration.count}. Annotate more, or lower the coverage."
            )
        return radii

    def _radii(self, coverage: float) -> NDArray[np.float64]:
        validate_coverage(coverage)
        if self.expected_errors is None or self.calibration is None:
            raise OptionError(
                "These landmarks have no radius: it is known of what a fitted detector finds, if this version of "
                "scemae fitted it. Fit it again on its annotated faces."
            )
        return self.calibration.quantile(coverage) * self.expected_errors

    def to_dict(self, coverage: float = COVERAGE) -> list[dict[str, Any]]:
        """JSON-ready: of each face its source, number, image size, whether it was found, and its landmarks by name.

        Where the radius is known, a landmark has it too, and the face the coverage that it is for. nan becomes null;
        "found" is null where that is not known.
        """
        radii = None if self.calibration is None else self._radii(coverage)
        known: dict[str, Any] = {} if radii is None else {"coverage": coverage}
        return [
            {
                "source": face.source,
                "face": face.number,
                "image_size": list(face.image_size),
                "found": face.found,
                "face_score": _finite(face.score),
                **known,
                "landmarks": {
                    label: {"x": _finite(x), "y": _finite(y), "score": _finite(score)}
                    | ({} if radii is None else {"radius": _finite(radii[row, k])})
                    for k, (label, (x, y), score) in enumerate(
                        zip(self.labels(), self.xy[row], self.scores[row], strict=True)
                    )
                },
            }
            for row, face in enumerate(self.faces)
        ]

    def draw(self, radius: bool | float = False) -> Image.Image:
        """The faces, eight in a row, with their landmarks; a fainter dot is a lower score.

        Several faces of a photo are shown on it, if its file can be opened again, in the squares that the model saw: in
        red where no face was found. `radius` adds circles, in each of which its point lies with a probability of 0.9
        (True), or of that number. Raises OptionError for more than 200 faces, and what the method `radius` raises.
        """
        draw.check_count(len(self))
        radii = self._drawn_radii(radius)
        photos, others = self._draw_photos(radii)
        names = name_faces(self.faces)
        panels = [
            draw.points(*_face_panel(face, self.xy[i]), self.scores[i], radii[i] / _panel_crop(face).scale)
            for i, face in ((i, self.faces[i]) for i in others)
        ]
        rows = [draw.grid(panels, [Path(names[i]).name for i in others])] if others else []
        return draw.row([draw.columns(rows + photos), *self._legend()])

    def _draw_photos(self, radii: NDArray[np.float64]) -> tuple[list[Image.Image], list[int]]:
        """Each photo of several faces that can be opened again, with these in place, and the rows of the others."""
        rows_of: dict[str, list[int]] = {}
        for i, face in enumerate(self.faces):
            rows_of.setdefault(face.source, []).append(i)
        several = [rows for rows in rows_of.values() if len(rows) > 1]
        photos, shown = [], set()
        for rows in several:
            if (photo := _open_again(self.faces[rows[0]])) is not None:
                panel = self._draw_in_place(photo, rows, radii, draw.photo_side(photo, len(several)))
                photos.append(draw.row([panel], [_file_name(self.faces[rows[0]])]))
                shown.update(rows)
        return photos, [i for i in range(len(self)) if i not in shown]

    def _draw_in_place(self, photo: Image.Image, rows: list[int], radii: NDArray[np.float64], side: int) -> Image.Image:
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
            draw.points_in_place(panel, square, shown.to_input(self.xy[i]), self.scores[i], radii[i] / shown.scale)
        return panel

    def _drawn_radii(self, radius: bool | float) -> NDArray[np.float64]:
        """The radii (B, K) as `draw` is asked for them, image px; nan for none."""
        if radius is False:
            return np.full(self.scores.shape, np.nan)
        return self.radius(COVERAGE if radius is True else radius)

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

    def draw(self, radius: bool | float = False) -> Image.Image:
        """The reference beside each target, each landmark joined to its match; a fainter line is a lower score.

        Several targets of a photo are shown on it, as in `Landmarks.draw`, without lines. Raises OptionError for more
        than 200 targets, and for a radius, which matches do not have.
        """
        draw.check_count(len(self))
        radii = self._drawn_radii(radius)
        left, places = _face_panel(self.reference.faces[0], self.reference.xy[0])
        photos, others = self._draw_photos(radii)
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


def validate_coverage(coverage: object) -> None:
    """Raise OptionError for what is no coverage of a radius."""
    if isinstance(coverage, bool) or not isinstance(coverage, (int, float)) or not 0 < coverage < 1:
        raise OptionError(f"coverage is {coverage!r}; it must be a number between 0 and 1, such as 0.9.")


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
    crop = _panel_crop(face)
    return draw_crop(face.patch, crop), crop.to_input(xy)


def _panel_crop(face: Face) -> Crop:
    centre = face.crop.centre
    half = PANEL_OVER_CROP * face.crop.size * face.crop.scale / 2
    return Crop.from_box((*(centre + 0.5 - half), *(centre + 0.5 + half)), draw.PANEL)


def _to_view(face: Face, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Image points in pixels of `face.view(draw.PANEL)`."""
    return face.crop.resample(draw.PANEL).to_input(xy)


def _finite(value: float) -> float | None:
    """The value as JSON has it: None for nan."""
    return float(value) if np.isfinite(value) else None
