"""FaceFeatures: dense features of faces, frozen values that carry their geometry and can draw themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scemae import draw
from scemae.errors import IncompatibleFeaturesError, OptionError, name_face
from scemae.geometry import Alignment, CellGrid, Crop, FaceShapes, Patch, sample_at, sample_view
from scemae.metrics import fill_masked
from scemae.model.config import ModelConfig, ModelId, Use, validate_use
from scemae.model.dense_shape import DenseShape
from scemae.model.projector import concatenate_maps
from scemae.numerics import default_numerics

FOUND = 0.5  # the score from which on a face counts as found
Index = int | slice | Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Face:
    """One face of an image, and what the model saw of it.

    Attributes:
        source: the name of the image.
        number: which face of that image it is, from 0: as numbered in a table of boxes, as found, or as listed.
        image_size: (width, height) of the upright image, px.
        crop: the square that the model saw.
        patch: the pixels around it.
        alignment: what alignment did to the crop of the box; None if it was off.
        score: the probability that there is a face in the crop, 0..1; nan if it was not aligned, or by an aligner that
            cannot tell.
    """

    source: str
    number: int = 0
    image_size: tuple[int, int]
    crop: Crop
    patch: Patch
    alignment: Alignment | None = None
    score: float = math.nan

    @property
    def found(self) -> bool | None:
        """Whether there is a face in the crop; None if that is not known."""
        return None if math.isnan(self.score) else self.score >= FOUND

    def view(self, size: int = 288) -> Image.Image:
        """The square that the model saw (upright and centred if aligned), as an image of `size` px."""
        return draw_crop(self.patch, self.crop.resample(size))


def name_faces(faces: Sequence[Face]) -> list[str]:
    """What each face is called: its image, and its number where there are several faces of that image."""
    counts = Counter(face.source for face in faces)
    several = [counts[face.source] > 1 or face.number > 0 for face in faces]
    return [name_face(face.source, face.number if many else None) for face, many in zip(faces, several, strict=True)]


def chosen_rows(index: Index, count: int) -> list[int]:
    """The rows, of `count`, that an index, a slice, or a list or mask of them names."""
    if isinstance(index, (int, np.integer)):
        return [range(count)[int(index)]]
    return [int(i) for i in np.arange(count)[index]]


@dataclass(frozen=True, kw_only=True)
class FeatureKind:
    """What features must have in common to be compared or regressed together."""

    model: ModelId  # that made them
    expansion: int  # cells per patch side
    aligned: bool  # whether the faces were aligned first
    margin: str  # "context" or "reflect", see `extract_features`

    def __str__(self) -> str:
        aligned = "aligned" if self.aligned else "not aligned"
        return f"{self.model}, expansion {self.expansion}, {aligned}, margin {self.margin}"

    def require(self, wanted: FeatureKind, own_name: str, wanted_name: str) -> None:
        """Raise IncompatibleFeaturesError unless this is the wanted kind; the names are for its message."""
        if self != wanted:
            raise IncompatibleFeaturesError(
                f"{own_name} were made with {self}; {wanted_name} with {wanted}. Extract both with the same settings."
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceFeatures:
    """Dense features of B faces.

    `features[0]`, `features[1:]` and `features[[3, 5]]` are FaceFeatures too; iterating gives one face at a time.

    Attributes:
        backbone_map: (B, D, h, w), float32.
        grid: where its cells are, in input pixels of each face's crop.
        faces: the B faces, with crops and patches.
        expansion: cells per patch side.
        aligned: whether the faces were aligned.
        margin: "context" or "reflect", see `extract_features`.
        model: the name and hash of the model.
        config: the model's configuration.
        project: the model's projector, from a backbone map to a projected map; None if it has none.
        shape_reader: what reads the dense shape from a backbone map; None if the model has none.
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
    shape_reader: DenseShape | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: Index) -> FaceFeatures:
        chosen = chosen_rows(index, len(self))
        return replace(self, backbone_map=self.backbone_map[chosen], faces=tuple(self.faces[i] for i in chosen))

    def __iter__(self) -> Iterator[FaceFeatures]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        aligned = "aligned" if self.aligned else "not aligned"
        shape = tuple(self.backbone_map.shape)
        return f"FaceFeatures({len(self)} faces, backbone_map {shape}, expansion {self.expansion}, {aligned})"

    @classmethod
    def concatenate(cls, parts: Sequence[FaceFeatures]) -> FaceFeatures:
        """Join features of the same kind (model, expansion, alignment, margin)."""
        first = parts[0]
        for part in parts[1:]:
            part.kind.require(first.kind, "These features", "the first ones")
        maps = torch.cat([part.backbone_map for part in parts])
        return replace(first, backbone_map=maps, faces=tuple(face for part in parts for face in part.faces))

    @property
    def scores(self) -> NDArray[np.float64]:
        """(B,), the probability that each crop shows a face, 0..1; nan where `Face.score` is."""
        return np.array([face.score for face in self.faces])

    @property
    def found(self) -> NDArray[np.bool_]:
        """(B,) bool, which faces were found, with a score of at least 1/2 or an unknown one."""
        return np.array([face.found is not False for face in self.faces], dtype=bool)

    @property
    def kind(self) -> FeatureKind:
        """The model and the settings of the extraction."""
        return FeatureKind(model=self.model, expansion=self.expansion, aligned=self.aligned, margin=self.margin)

    @property
    def projected_map(self) -> Tensor:
        """The projector's map (B, C, h, w), computed on access; raises OptionError for a model without projector."""
        if self.project is None:
            raise OptionError(f"Model {self.model.name!r} has no projector: use='backbone' is what it offers.")
        with torch.no_grad(), default_numerics():  # not inference mode: people train heads of their own on these maps
            return self.project(self.backbone_map)

    @property
    def has_shapes(self) -> bool:
        """Whether `read_shapes` can say where the mean face's places lie: the model can, and the faces are aligned."""
        return self.shape_reader is not None and self.aligned

    def read_shapes(self) -> FaceShapes:
        """Where the places of the mean face lie on these faces, input px; raises OptionError if that is not known."""
        if self.shape_reader is None:
            raise OptionError(f"Model {self.model.name!r} does not know the dense shape of a face.")
        if not self.aligned:
            raise OptionError("The dense shape is read from aligned faces: extract the features with align=True.")
        with torch.no_grad(), default_numerics():
            return FaceShapes(self.shape_reader.frame, self.shape_reader(self.backbone_map, self.grid))

    @property
    def dense_shape(self) -> NDArray[np.float64]:
        """(B, n, n, 2), where the n x n places of the mean face lie on these faces, pixels of each one's own image.

        Learned without labels (docs/registration.md); computed on access. The same place [i, j] is the same part of
        every face, as far as the model can tell. Raises OptionError for a model without it, or faces not aligned.
        """
        shapes = self.read_shapes()
        side = shapes.frame.count
        return self.to_image(shapes.xy.cpu().numpy()).reshape(len(self), side, side, 2)

    def map(self, use: Use) -> Tensor:
        """The map (B, C, h, w) that `use` names: "backbone", "projected", or "both" side by side (in that order)."""
        if validate_use(use) == "backbone":
            return self.backbone_map
        projected = self.projected_map
        if use == "projected":
            return projected
        return concatenate_maps(self.backbone_map, projected, self.config.projector_mode)

    def to_input(self, landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Landmarks (B, K, 2) in image pixels to input pixels of each face."""
        return np.stack([face.crop.to_input(fill_masked(xy)) for face, xy in zip(self.faces, landmarks, strict=True)])

    def to_image(self, landmarks_input: NDArray[np.float64]) -> NDArray[np.float64]:
        """Landmarks (B, K, 2) in input pixels of each face to pixels of its own image."""
        pairs = zip(self.faces, landmarks_input, strict=True)
        return np.stack([face.crop.to_image(fill_masked(xy)) for face, xy in pairs])

    def descriptors(self, landmarks: NDArray[np.float64], use: Use = "backbone") -> Tensor:
        """Descriptors (B, K, C) at landmarks (B, K, 2), image pixels: bilinear, not normalised; nan at nan, masked."""
        places = torch.from_numpy(self.to_input(landmarks))
        read = sample_at(self.map(use), self.grid, places)
        return read.masked_fill(places.isnan().any(-1, keepdim=True), torch.nan)

    def draw(self, use: Use = "backbone", dense_shape: bool = False) -> Image.Image:
        """The faces as the model saw them, above their maps: the first three principal components as RGB.

        `dense_shape`: instead, with the lattice of the mean face's places on each. Raises OptionError for more than 200
        faces, or where there is no dense shape.
        """
        draw.check_count(len(self))
        if dense_shape:
            return draw.grid([self._draw_mesh(*pair) for pair in zip(self.faces, self.dense_shape, strict=True)])
        maps = self.map(use).permute(0, 2, 3, 1).float().cpu().numpy()
        views = [draw.row([face.view()], [_caption(face)]) for face in self.faces]
        colours = draw.principal_colours(maps, (views[0].width, views[0].width))
        return draw.grid([draw.stack_rows(pair) for pair in zip(views, colours, strict=True)])

    @staticmethod
    def _draw_mesh(face: Face, places: NDArray[np.float64]) -> Image.Image:
        view = face.view()
        return draw.row([draw.mesh(view, face.crop.resample(view.width).to_input(places))], [_caption(face)])


def _caption(face: Face) -> str:
    if face.alignment is None:
        return "not aligned"
    turned = f"turned {face.alignment.rotation:+.0f}°, scale {face.alignment.scale:.2f}"
    if face.found is None:
        return turned
    return f"{turned}, face {face.score:.2f}" if face.found else f"no face found: {face.score:.2f}"


def draw_crop(patch: Patch, crop: Crop) -> Image.Image:
    """What a crop shows of a patch, as a picture of the crop's size."""
    return Image.fromarray((sample_view(patch, crop) * 255).round().byte().permute(1, 2, 0).numpy())
