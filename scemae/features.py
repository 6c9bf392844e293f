"""What the verbs return: frozen values that carry their geometry and can draw themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scemae import draw
from scemae.arithmetic import concatenated, own_arithmetic
from scemae.config import ModelConfig, ModelId, Use, checked_use
from scemae.errors import IncompatibleFeaturesError, OptionError
from scemae.geometry import Alignment, CellGrid, Crop, Patch, sample_at, sample_view

SURROUNDINGS = 1.4  # side of a drawn face over the side of its crop
Index = int | slice | Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Face:
    """Where one face was looked at: its photo, the crop that the model saw, the pixels around it.

    `source` names the photo, `image_size` is its upright (width, height), `alignment` is None where it was off.
    """

    source: str
    image_size: tuple[int, int]
    crop: Crop
    patch: Patch
    alignment: Alignment | None = None

    def view(self, size: int = 288) -> Image.Image:
        """The square that the model saw (upright and centred if aligned), as a picture of `size` px."""
        return _picture(self.patch, resampled(self.crop, size))


def resampled(crop: Crop, size: int) -> Crop:
    """The same square with `size` pixels a side."""
    scale = crop.size / size
    shift = scale / 2 - 0.5
    return Crop(crop.refined(np.array([[scale, 0, shift], [0, scale, shift]])).to_image_affine, size)


def _chosen(index: Index, count: int) -> list[int]:
    if isinstance(index, (int, np.integer)):
        return [range(count)[int(index)]]
    return [int(i) for i in np.arange(count)[index]]


@dataclass(frozen=True)
class FeatureKind:
    """What features share that may be compared or regressed together: the model, and how they were extracted."""

    model: ModelId
    expansion: int
    aligned: bool
    margin: str

    def __str__(self) -> str:
        aligned = "aligned" if self.aligned else "not aligned"
        return f"{self.model}, expansion {self.expansion}, {aligned}, margin {self.margin}"

    def require(self, wanted: FeatureKind, own_name: str, wanted_name: str) -> None:
        """Raise IncompatibleFeaturesError unless this is the kind that is wanted."""
        if self != wanted:
            raise IncompatibleFeaturesError(
                f"{own_name} were made with {self}; {wanted_name} with {wanted}. Extract both with the same settings."
            )


@dataclass(frozen=True, eq=False)
class FaceFeatures:
    """Dense features of B faces.

    `backbone_map` (B, D, h, w) float; its cells lie at `grid`, in input pixels of each face's `crop`. `faces[0]`,
    `faces[1:]`, `faces[[3, 5]]` are FaceFeatures too; iterating gives one face at a time.
    """

    backbone_map: Tensor
    grid: CellGrid
    faces: tuple[Face, ...]
    expansion: int
    aligned: bool
    margin: str
    model: ModelId
    config: ModelConfig = field(repr=False)
    project: Callable[[Tensor], Tensor] | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: Index) -> FaceFeatures:
        chosen = _chosen(index, len(self))
        return replace(self, backbone_map=self.backbone_map[chosen], faces=tuple(self.faces[i] for i in chosen))

    def __iter__(self) -> Iterator[FaceFeatures]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        aligned = "aligned" if self.aligned else "not aligned"
        shape = tuple(self.backbone_map.shape)
        return f"FaceFeatures({len(self)} faces, backbone_map {shape}, expansion {self.expansion}, {aligned})"

    @classmethod
    def concatenate(cls, parts: Sequence[FaceFeatures]) -> FaceFeatures:
        """One value from several of the same model, expansion and alignment."""
        first = parts[0]
        for part in parts[1:]:
            part.kind.require(first.kind, "These features", "the first ones")
        maps = torch.cat([part.backbone_map for part in parts])
        return replace(first, backbone_map=maps, faces=tuple(face for part in parts for face in part.faces))

    @property
    def kind(self) -> FeatureKind:
        """The model and the settings of the extraction."""
        return FeatureKind(self.model, self.expansion, self.aligned, self.margin)

    @property
    def projected_map(self) -> Tensor:
        """The projector's map (B, C, h, w), computed now; raises OptionError for a model without projector."""
        if self.project is None:
            raise OptionError(f"Model {self.model.name!r} has no projector: use='backbone' is what it offers.")
        with torch.no_grad(), own_arithmetic():  # not inference mode: people train heads of their own on these maps
            return self.project(self.backbone_map)

    def map(self, use: Use) -> Tensor:
        """The map (B, C, h, w) that `use` names: "backbone", "projected", or "both" side by side (in that order)."""
        if checked_use(use) == "backbone":
            return self.backbone_map
        projected = self.projected_map
        if use == "projected":
            return projected
        return concatenated(self.backbone_map, projected, self.config.projector_mode)

    def to_input(self, landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Landmarks (B, K, 2) in image pixels to input pixels of each face."""
        return np.stack([face.crop.to_input(xy) for face, xy in zip(self.faces, landmarks, strict=True)])

    def to_image(self, landmarks_input: NDArray[np.float64]) -> NDArray[np.float64]:
        """Landmarks (B, K, 2) in input pixels of each face to pixels of its own image."""
        return np.stack([face.crop.to_image(xy) for face, xy in zip(self.faces, landmarks_input, strict=True)])

    def descriptors(self, landmarks: NDArray[np.float64], use: Use = "backbone") -> Tensor:
        """Descriptors (B, K, C) at landmarks (B, K, 2) in image pixels, read bilinearly, not normalised; nan at nan."""
        places = torch.from_numpy(self.to_input(landmarks))
        read = sample_at(self.map(use), self.grid, places)
        return read.masked_fill(places.isnan().any(-1, keepdim=True), torch.nan)

    def draw(self, use: Use = "backbone") -> Image.Image:
        """The faces as the model saw them, above their maps: three principal components as red, green and blue."""
        maps = self.map(use).permute(0, 2, 3, 1).float().cpu().numpy()
        views = [draw.row([face.view()], [_alignment_caption(face.alignment)]) for face in self.faces]
        colours = draw.principal_colours(maps, (views[0].width, views[0].width))
        return draw.grid([draw.stack_rows(pair) for pair in zip(views, colours, strict=True)])


def _alignment_caption(alignment: Alignment | None) -> str:
    if alignment is None:
        return "not aligned"
    return f"turned {alignment.rotation:+.0f}°, scale {alignment.scale:.2f}, confidence {alignment.confidence:.2f}"


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
        chosen = _chosen(index, len(self))
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


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _framed(face: Face, xy: NDArray[np.float64]) -> tuple[Image.Image, NDArray[np.float64]]:
    """The face upright as in its photo, with some of its surroundings, and where image points lie in that picture."""
    centre = face.crop.to_image([(face.crop.size - 1) / 2] * 2)
    half = SURROUNDINGS * face.crop.size * face.crop.scale / 2
    crop = Crop.from_box((*(centre + 0.5 - half), *(centre + 0.5 + half)), draw.PANEL)
    return _picture(face.patch, crop), crop.to_input(xy)


def _picture(patch: Patch, crop: Crop) -> Image.Image:
    return Image.fromarray((sample_view(patch, crop) * 255).round().byte().permute(1, 2, 0).numpy())


@dataclass(frozen=True, eq=False)
class LandmarkMatches(Landmarks):
    """Landmarks of a reference, found again on B targets; `scores` are cosine similarities.

    `similarity` (B, K, 96, 96), each target's cosine map in its input pixels, is there if it was asked for.
    """

    reference: Landmarks
    similarity: NDArray[np.float32] | None = field(default=None, repr=False)

    def __getitem__(self, index: Index) -> Self:
        chosen = super().__getitem__(index)
        similarity = None if self.similarity is None else self.similarity[_chosen(index, len(self))]
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


def _on_view(face: Face, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Image points as places on `face.view(draw.PANEL)`."""
    return (face.crop.to_input(xy) + 0.5) * draw.PANEL / face.crop.size - 0.5
