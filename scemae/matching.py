"""match_landmarks: a point on one face -> the same point on another, by cosine similarity (paper Sec. 4.1)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scemae.errors import ImageInputError, LandmarkInputError, OptionError
from scemae.features import FaceFeatures
from scemae.geometry import CellGrid
from scemae.landmark_input import validate_landmarks
from scemae.landmarks import LandmarkMatches, Landmarks
from scemae.model.config import Use, validate_use
from scemae.numerics import default_numerics

Array = NDArray[Any]
REACH = 8  # input px, one patch: so far beyond the view a landmark still gets the descriptor of its edge
FLAT = 1e-12  # squared norm below which a descriptor has no direction


@default_numerics()
def match_landmarks(
    reference: FaceFeatures,
    landmarks: Any,
    targets: FaceFeatures,
    *,
    use: Use | None = None,
    prior: float | None = None,
    combine: Literal["mean", "best"] = "mean",
    subpixel: bool = False,
    keep_similarity: bool = False,
) -> LandmarkMatches:
    """Find the landmarks of a reference face on other faces.

    Args:
        reference: features of the face, or of several faces that show the same landmarks.
        landmarks: (K, 2) for one reference, (R, K, 2) for R of them, pixels of their images, or a dict (list of
            dicts) of name -> (x, y). With several references nan marks what one of them does not show.
        targets: features of B faces, made by the same model with the same settings.
        use: which features: "backbone", "projected" or "both". Default: the model's choice.
        prior: aligned faces have their parts at about the same place: the similarity of a place competes with
            a handicap of d^2 / (2 prior^2), d its distance in input pixels from the reference's place. 0 is off, as
            in the paper; default: the model's choice if aligned. It never is part of the score.
        combine: several references: "mean" averages their unit descriptors, "best" takes for each
            landmark on each target the best one.
        subpixel: refine the place by a parabola through its neighbours (the protocol's is a whole input pixel).
        keep_similarity: keep the cosine maps, for `draw_similarity`.

    Returns:
        LandmarkMatches: `xy` (B, K, 2) in each target's own pixels; `scores` (B, K), cosine similarity -1..1.

    Raises:
        LandmarkInputError: wrong shape or count, outside the image or the view.
        ImageInputError: something else than features, or targets without a face.
        IncompatibleFeaturesError: features of different models or settings.
    """
    for name, given in (("reference", reference), ("targets", targets)):
        if not isinstance(given, FaceFeatures):
            raise ImageInputError(f"{name} is a {type(given).__name__}; wanted FaceFeatures, from extract_features.")
    targets.kind.require(reference.kind, "The targets' features", "the reference's")
    use = reference.config.matching_use if use is None else validate_use(use)
    sigma = _sigma(reference, prior)
    if combine not in ("mean", "best"):
        raise OptionError(f"combine is {combine!r}; it must be 'mean' or 'best'.")
    if not len(targets):
        raise ImageInputError("targets has no faces: there is nothing to find the landmarks on.")
    xy, names = validate_landmarks(landmarks, reference.faces, allow_missing=len(reference) > 1)
    places = reference.to_input(xy)
    _check_in_view(reference, places, xy)
    descriptors = F.normalize(reference.descriptors(xy, use), dim=-1, eps=FLAT**0.5)
    queries, origins = (descriptors, places) if combine == "best" else _means(descriptors, places)
    found, similarity = [], []
    for one in targets:
        maps = similarity_maps(queries, one.map(use)[0], one.grid, one.faces[0].crop.size)
        place, score, chosen = _find(maps, origins, sigma, subpixel)
        found.append((place, score))
        if keep_similarity:  # most of the memory
            similarity.append(chosen)
    shown = Landmarks(xy, np.ones(xy.shape[:2]), names, reference.faces)
    return LandmarkMatches(
        xy=targets.to_image(np.stack([place for place, _ in found])),
        scores=np.stack([score for _, score in found]),
        names=names,
        faces=targets.faces,
        reference=shown,
        similarity=np.stack(similarity) if keep_similarity else None,
    )


def similarity_maps(descriptors: Tensor, feature_map: Tensor, grid: CellGrid, size: int) -> Tensor:
    """Cosine similarity (..., K, size, size) of unit descriptors (..., K, C) with a map (C, h, w) at every input pixel.

    Equal to upsampling the map bilinearly to size x size and normalising each pixel, without ever holding that
    (C, size, size) array: a product with the upsampled map is the upsampled product, and the squared norm of a mix of
    four cells is a mix of their ten inner products, which only neighbouring cells have to supply.
    """
    height, width = feature_map.shape[-2:]
    rows, columns = grid.interpolation(height, size), grid.interpolation(width, size)
    products = torch.einsum("...kc,chw->...khw", descriptors, feature_map)
    norms = _upsampled_norms(feature_map, rows, columns)
    return (rows @ products @ columns.T) / norms


def _upsampled_norms(feature_map: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Norm (H, W) of a map (C, h, w) upsampled with weights rows (H, h) and columns (W, w)."""

    def inner(first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum(0)

    m = feature_map
    diagonals = inner(m[:, :-1, :-1], m[:, 1:, 1:]) + inner(m[:, :-1, 1:], m[:, 1:, :-1])
    # A pixel mixes two neighbours along each axis: squares of its two weights, and twice their product.
    rows_same, rows_cross = rows**2, 2 * rows[:, :-1] * rows[:, 1:]
    columns_same, columns_cross = columns**2, 2 * columns[:, :-1] * columns[:, 1:]
    squared = (
        rows_same @ inner(m, m) @ columns_same.T
        + rows_same @ inner(m[:, :, :-1], m[:, :, 1:]) @ columns_cross.T
        + rows_cross @ inner(m[:, :-1], m[:, 1:]) @ columns_same.T
        + rows_cross @ diagonals @ columns_cross.T / 2
    )
    return squared.clamp(min=FLAT).sqrt()


def _sigma(reference: FaceFeatures, prior: float | None) -> float:
    if prior is None:
        return reference.config.prior_sigma if reference.aligned else 0.0
    if prior < 0:
        raise OptionError(f"prior is {prior:g}; it must be 0 (off) or a distance in input pixels.")
    if prior and not reference.aligned:
        raise OptionError("prior needs aligned faces: pass prior=0, or extract the features with align=True.")
    return prior


def _check_in_view(reference: FaceFeatures, places: Array, xy: Array) -> None:
    size = reference.faces[0].crop.size
    outside = ((places < -REACH) | (places > size - 1 + REACH)).any(axis=2)
    if outside.any():
        face, k = np.argwhere(outside)[0]
        raise LandmarkInputError(
            f"Landmark {k} of {reference.faces[face].source}, at ({xy[face, k, 0]:g}, {xy[face, k, 1]:g}), lies "
            "outside the square that the model looked at (features.draw() shows it); pass align=False and a larger box."
        )
    never = np.isnan(places[..., 0]).all(axis=0)
    if never.any():
        k = int(never.argmax())
        raise LandmarkInputError(f"Landmark {k} is nan on every reference; at least one has to show it.")


def _means(descriptors: Tensor, places: Array) -> tuple[Tensor, Array]:
    """One reference (1, K, C) and (1, K, 2) from several: unit mean descriptors, mean places, nan left out."""
    mean = F.normalize(torch.nanmean(descriptors, dim=0, keepdim=True), dim=-1)
    return mean, np.nanmean(places, axis=0, keepdims=True)


def _find(similarity: Tensor, origins: Array, sigma: float, subpixel: bool) -> tuple[Array, Array, Array]:
    """Best places (K, 2) in input px, their scores (K,) and the similarity (K, size, size) of the best references.

    `similarity` (R, K, size, size): of every reference.
    """
    size = similarity.shape[-1]
    objective = similarity if sigma == 0 else similarity - _handicap(torch.from_numpy(origins), size, sigma)
    objective = objective.nan_to_num(-torch.inf)
    chosen = objective.flatten(2).amax(-1).argmax(0)
    landmarks = torch.arange(len(chosen))
    similarity, objective = similarity[chosen, landmarks], objective[chosen, landmarks]
    flat = objective.flatten(1).argmax(-1)
    rows, columns = flat // size, flat % size
    places = torch.stack([columns, rows], dim=-1).double()
    if subpixel:
        places += _parabola_offsets(objective, rows, columns)
    return places.numpy(), similarity[landmarks, rows, columns].double().numpy(), similarity.numpy()


def _handicap(origins: Tensor, size: int, sigma: float) -> Tensor:
    """d^2 / (2 sigma^2), (R, K, size, size), of every input pixel from origins (R, K, 2)."""
    axis = torch.arange(size, dtype=torch.float64)
    x, y = ((axis - origins[..., i, None]) ** 2 for i in (0, 1))
    return ((y[..., :, None] + x[..., None, :]) / (2 * sigma**2)).float()


def _parabola_offsets(objective: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(K, 2) offsets within half a pixel to the top of the parabola through each peak and its neighbours, per axis."""
    padded = F.pad(objective, (1, 1, 1, 1), value=-torch.inf).double()
    k = torch.arange(len(rows))
    middle = padded[k, rows + 1, columns + 1]
    offsets = []
    for dy, dx in ((0, 1), (1, 0)):
        before, after = padded[k, rows + 1 - dy, columns + 1 - dx], padded[k, rows + 1 + dy, columns + 1 + dx]
        curvature = (before + after - 2 * middle).clamp(max=-FLAT)
        inside = before.isfinite() & after.isfinite()  # at the border there is no parabola
        offsets.append(((before - after) / (2 * curvature)).clamp(-0.5, 0.5).where(inside, 0.0))
    return torch.stack(offsets, dim=-1)
