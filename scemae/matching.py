"""match_landmarks: find points of one face on other faces by cosine similarity (paper Sec. 4.1)."""

from __future__ import annotations

from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scemae.errors import ImageInputError, LandmarkInputError, OptionError
from scemae.features import FaceFeatures
from scemae.geometry import CellGrid, sample_at, symmetrise
from scemae.landmark_input import validate_landmarks
from scemae.landmarks import LandmarkMatches, Landmarks
from scemae.model.config import Use, validate_switch, validate_use
from scemae.numerics import default_numerics
from scemae.symmetry import left_right_pairs, mirror_pairs

Array = NDArray[Any]
Method = Literal["shape", "argmax"]
REACH = 20.0  # input px: standard deviation of the prior on the most similar place around where the shape leads
TRUST = (0.92, 0.96)  # similarities up to which the shape alone is followed, and from which on the descriptors alone
MIN_SQUARED_NORM = 1e-12  # a descriptor below it has no direction, and similarity 0 with everything
MIN_CURVATURE = 1e-12  # a parabola below it is flat: the refined place stays within half a pixel


@default_numerics()
def match_landmarks(
    reference: FaceFeatures,
    landmarks: Any,
    targets: FaceFeatures,
    *,
    use: Use | None = None,
    method: Method | None = None,
    prior: float | None = None,
    combine: Literal["mean", "best"] = "mean",
    subpixel: bool = False,
    keep_similarity: bool = False,
) -> LandmarkMatches:
    """Find the landmarks of a reference face on other faces.

    Args:
        reference: features of one face, or of several faces with the same landmarks.
        landmarks: (K, 2) for one reference, (R, K, 2) for R of them, in pixels of their images; or a dict name ->
            (x, y), or a list of dicts. With several references nan marks landmarks that one of them does not show.
        targets: features of B faces, from the same model and settings.
        use: which features: "backbone", "projected" or "both". Default: the model's choice.
        method: "shape" carries the landmarks by the dense shapes of the faces (docs/registration.md), where those that
            are left and right of each other correct each other, and follows the most similar place nearby the more,
            the more similar it is. "argmax" takes the most similar place, as in the paper. Default: "shape" where
            features have shapes and no `prior` is given.
        prior: for "argmax", standard deviation, input pixels, of a Gaussian prior on position. Parts of aligned faces
            are at about the same position, so d^2 / (2 prior^2) is subtracted from the similarity at distance d from
            the reference's position. 0 turns it off; the paper has none. Default: the model's choice, 0 without
            alignment. Scores never include it.
        combine: with several references, "mean" averages their unit descriptors; "best" takes the most similar
            reference for each landmark on each target.
        subpixel: refine each match by a parabola through its neighbours; otherwise it is a whole input pixel, as in
            the paper.
        keep_similarity: keep the cosine maps, for `draw_similarity`.

    Returns:
        LandmarkMatches: `xy` (B, K, 2) in each target's own pixels; `scores` (B, K), cosine similarity -1..1, of the
        most similar place.

    Raises:
        LandmarkInputError: wrong shape or count, outside the image or the crop.
        ImageInputError: not features, or no target faces.
        IncompatibleFeaturesError: features of different models or settings.
        OptionError: an option has a value that is not allowed.
    """
    for name, given in (("reference", reference), ("targets", targets)):
        if not isinstance(given, FaceFeatures):
            raise ImageInputError(f"{name} is a {type(given).__name__}; wanted FaceFeatures, from extract_features.")
    targets.kind.require(reference.kind, "The targets' features", "the reference's")
    use = reference.config.matching_use if use is None else validate_use(use)
    by_shape = _choose_method(reference, method, prior) == "shape"
    sigma = REACH if by_shape else _choose_prior(reference, prior)
    validate_switch("subpixel", subpixel)
    validate_switch("keep_similarity", keep_similarity)
    if combine not in ("mean", "best"):
        raise OptionError(f"combine is {combine!r}; it must be 'mean' or 'best'.")
    if not len(targets):
        raise ImageInputError("targets has no faces: there is nothing to find the landmarks on.")
    xy, names = validate_landmarks(landmarks, reference.faces, allow_missing=len(reference) > 1)
    xy_input = reference.to_input(xy)
    _check_inside_crop(reference, xy_input, xy)
    descriptors = _read_descriptors(reference, xy_input, use)
    mean_places = _find_mean_places(reference, xy_input, names) if by_shape else None  # (1, K, 2)
    if combine == "mean":
        descriptors, xy_input = _average_references(descriptors, xy_input)
    found, scores, similarity = [], [], []
    for target in targets:
        maps = similarity_maps(descriptors, target.map(use)[0], target.grid, target.faces[0].crop.size)
        led = None if mean_places is None else target.read_shapes().to_face(mean_places).numpy()
        centres = xy_input if led is None else np.repeat(led, len(maps), axis=0)
        place, score, chosen = _find_peaks(maps, centres, sigma, subpixel)
        if led is not None:
            trust = ((score - TRUST[0]) / (TRUST[1] - TRUST[0])).clip(0, 1)[:, None]
            place = trust * place + (1 - trust) * led[0]
        found.append(place)
        scores.append(score)
        if keep_similarity:  # most of the memory
            similarity.append(chosen)
    return LandmarkMatches(
        xy=targets.to_image(np.stack(found)),
        scores=np.stack(scores),
        names=names,
        faces=targets.faces,
        reference=Landmarks(xy=xy, scores=np.ones(xy.shape[:2]), names=names, faces=reference.faces),
        similarity=np.stack(similarity) if keep_similarity else None,
    )


def similarity_maps(descriptors: Tensor, feature_map: Tensor, grid: CellGrid, size: int) -> Tensor:
    """Cosine similarity (..., K, size, size) of unit descriptors (..., K, C) with a map (C, h, w) at every input pixel.

    The result is that of upsampling the map bilinearly to size x size and normalising each pixel, but the
    (C, size, size) array never exists. Upsampling is linear, so products can be taken first and upsampled then; the
    squared norm of a mix of four cells needs only the inner products of neighbouring cells (docs/coordinates.md).
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
    # A pixel mixes two neighbours a, b along each axis: |u a + v b|^2 = u^2 a.a + v^2 b.b + 2 u v a.b.
    rows_same, rows_cross = rows**2, 2 * rows[:, :-1] * rows[:, 1:]
    columns_same, columns_cross = columns**2, 2 * columns[:, :-1] * columns[:, 1:]
    squared = (
        rows_same @ inner(m, m) @ columns_same.T
        + rows_same @ inner(m[:, :, :-1], m[:, :, 1:]) @ columns_cross.T
        + rows_cross @ inner(m[:, :-1], m[:, 1:]) @ columns_same.T
        + rows_cross @ diagonals @ columns_cross.T / 2
    )
    return squared.clamp(min=MIN_SQUARED_NORM).sqrt()


def validate_prior(prior: float) -> None:
    """Raise OptionError unless this is 0 or a distance."""
    if isinstance(prior, bool) or not isinstance(prior, Real) or not 0 <= prior < np.inf:  # nan is neither
        raise OptionError(f"prior is {prior!r}; it must be 0 (off) or a distance in input pixels.")


def _choose_prior(reference: FaceFeatures, prior: float | None) -> float:
    """The prior's standard deviation in input px, 0 for none; raises OptionError."""
    if prior is None:
        return reference.config.prior_sigma if reference.aligned else 0.0
    validate_prior(prior)
    if prior and not reference.aligned:
        raise OptionError("prior needs aligned faces: pass prior=0, or extract the features with align=True.")
    return float(prior)


def _choose_method(reference: FaceFeatures, method: Method | None, prior: float | None) -> Method:
    """The method, by default that which these features and a given prior allow; raises OptionError."""
    if method not in ("shape", "argmax", None):
        raise OptionError(f"method is {method!r}; it must be 'shape' or 'argmax'.")
    if method == "shape" and prior is not None:
        raise OptionError("prior is for method='argmax'; method='shape' has the faces' shapes instead.")
    if method is not None:
        return method
    return "shape" if reference.has_shapes and prior is None else "argmax"


def _find_mean_places(reference: FaceFeatures, xy_input: Array, names: tuple[str, ...] | None) -> Tensor:
    """The places (1, K, 2) of the mean face that landmarks (R, K, 2), input px, of R references stand for.

    Where they are pairs of left and right, both sides say where (`symmetrise`).
    """
    shapes = reference.read_shapes()
    places = shapes.to_mean(torch.from_numpy(xy_input))
    middle = torch.nanmean(places, dim=0).numpy()
    swap = mirror_pairs(middle, reference.config.input_size, left_right_pairs(names or ()))
    if swap is not None:
        places = symmetrise(shapes, places, swap, 1.0)
    return torch.nanmean(places, dim=0, keepdim=True)


def _check_inside_crop(reference: FaceFeatures, xy_input: Array, xy: Array) -> None:
    """Raise LandmarkInputError for a landmark outside its crop, or one that is nan on every reference."""
    # A landmark up to one patch outside the crop gets the descriptor of the crop's edge.
    size, reach = reference.faces[0].crop.size, reference.config.patch_size
    outside = ((xy_input < -reach) | (xy_input > size - 1 + reach)).any(axis=2)
    if outside.any():
        face, k = np.argwhere(outside)[0]
        raise LandmarkInputError(
            f"Landmark {k} of {reference.faces[face].source}, at ({xy[face, k, 0]:g}, {xy[face, k, 1]:g}), is outside "
            "the square that the model sees (features.draw() shows it); pass align=False and a larger box."
        )
    never = np.isnan(xy_input[..., 0]).all(axis=0)
    if never.any():
        k = int(never.argmax())
        raise LandmarkInputError(f"Landmark {k} is nan on every reference; at least one has to show it.")


def _read_descriptors(reference: FaceFeatures, xy_input: Array, use: Use) -> Tensor:
    """Unit descriptors (R, K, C) at landmarks (R, K, 2) in input px; nan at nan."""
    places = torch.from_numpy(xy_input)
    read = sample_at(reference.map(use), reference.grid, places).masked_fill(
        places.isnan().any(-1, keepdim=True), torch.nan
    )
    return F.normalize(read, dim=-1, eps=MIN_SQUARED_NORM**0.5)


def _average_references(descriptors: Tensor, xy_input: Array) -> tuple[Tensor, Array]:
    """R references as one: unit mean descriptors (1, K, C) and mean positions (1, K, 2), ignoring nan."""
    mean = F.normalize(torch.nanmean(descriptors, dim=0, keepdim=True), dim=-1)
    return mean, np.nanmean(xy_input, axis=0, keepdims=True)


def _find_peaks(similarity: Tensor, xy_input: Array, sigma: float, subpixel: bool) -> tuple[Array, Array, Array]:
    """Best positions (K, 2) in input px, their scores (K,), and the maps (K, size, size) of the chosen references.

    `similarity` (R, K, size, size) has a map for each reference, whose landmarks are at `xy_input` (R, K, 2).
    """
    size = similarity.shape[-1]
    objective = similarity if sigma == 0 else similarity - _prior_penalty(torch.from_numpy(xy_input), size, sigma)
    objective = objective.nan_to_num(-torch.inf)  # a reference that lacks the landmark never wins
    chosen = objective.flatten(2).amax(-1).argmax(0)
    landmarks = torch.arange(len(chosen))
    similarity, objective = similarity[chosen, landmarks], objective[chosen, landmarks]
    flat = objective.flatten(1).argmax(-1)
    rows, columns = flat // size, flat % size
    places = torch.stack([columns, rows], dim=-1).double()
    if subpixel:
        places += _parabola_offsets(objective, rows, columns)
    similarity = similarity.clamp(-1, 1)  # rounding leads beyond; only now, so that it makes no two places equal
    return places.numpy(), similarity[landmarks, rows, columns].double().numpy(), similarity.numpy()


def _prior_penalty(xy_input: Tensor, size: int, sigma: float) -> Tensor:
    """d^2 / (2 sigma^2), (R, K, size, size), d the distance of every input pixel from positions (R, K, 2)."""
    axis = torch.arange(size, dtype=torch.float64)
    x, y = ((axis - xy_input[..., i, None]) ** 2 for i in (0, 1))
    return ((y[..., :, None] + x[..., None, :]) / (2 * sigma**2)).float()


def _parabola_offsets(objective: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Offsets (K, 2) from each peak to the top of the parabola through it and its neighbours: at most 0.5 per axis."""
    padded = F.pad(objective, (1, 1, 1, 1), value=-torch.inf).double()
    k = torch.arange(len(rows))
    middle = padded[k, rows + 1, columns + 1]
    offsets = []
    for dy, dx in ((0, 1), (1, 0)):
        before, after = padded[k, rows + 1 - dy, columns + 1 - dx], padded[k, rows + 1 + dy, columns + 1 + dx]
        curvature = (before + after - 2 * middle).clamp(max=-MIN_CURVATURE)
        inside = before.isfinite() & after.isfinite()  # a peak at the border has one neighbour only: no parabola
        offsets.append(((before - after) / (2 * curvature)).clamp(-0.5, 0.5).where(inside, 0.0))
    return torch.stack(offsets, dim=-1)
