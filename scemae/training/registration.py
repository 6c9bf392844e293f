"""Groupwise registration: where the same places lie on every face, without labels (ours, not in the paper).

Each round, the template is the mean of all faces' projected maps at the places found so far; each face is matched
softly to it near those places; the displacements are smoothed and have a mean of zero over the faces; the projector is
learned again, so that it tells the places apart (docs/registration.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scemae.geometry import CellGrid, MeanFrame, sample_at
from scemae.model.projector import Projector
from scemae.training.class_scatter import ClassScatter, make_projector
from scemae.training.face_views import FaceViews

FLOOR, LEAST = 0.3, 0.01  # the weight of a match of cosine c is (c - FLOOR)^2, and never below LEAST^2
MIDDLE = 0.25  # of the lattice on each side of its middle
NEAR = 2  # cells: about the nearest cell, where a match of two faces is refined


@dataclass(frozen=True, kw_only=True)
class Round:
    """How far a round looks and how much it smooths, cells."""

    reach: int
    smoothing: float
    temperature: float  # of the soft matching


def mean_shapes(frame: MeanFrame, count: int) -> Tensor:
    """The mean face's shape `count` times, (count, P, 2), float32, input px: where the registration starts."""
    return frame.places.float().repeat(count, 1, 1)


def centre_shapes(frame: MeanFrame, shapes: Tensor) -> Tensor:
    """Shapes (N, P, 2) less the mean of their displacements."""
    return shapes - (shapes.mean(0) - frame.places.to(shapes))


def register_once(views: FaceViews, shapes: Tensor, projector: Projector, settings: Round) -> tuple[Tensor, float]:
    """Shapes (N, P, 2) of the still views after one more round, and the mean cosine between faces and template."""
    template, found, agreement = make_template(views, shapes, projector), torch.empty_like(shapes), 0.0
    for part, maps in views.iter_maps("still", "matching"):
        found[part], cosines = match_template(views.frame, template, _describe(projector, maps), shapes[part], settings)
        agreement += float(cosines.mean(1).sum())
    return centre_shapes(views.frame, found), agreement / len(shapes)


def make_template(views: FaceViews, shapes: Tensor, projector: Projector) -> Tensor:
    """Unit descriptors (P, C) of the places: the mean of the faces' ones."""
    total = torch.zeros(shapes.shape[1], projector.out_channels)
    for part, maps in views.iter_maps("still", "template"):
        total += sample_at(_describe(projector, maps), views.frame.grid, shapes[part]).sum(0)
    return F.normalize(total, dim=1)


def match_template(
    frame: MeanFrame, template: Tensor, maps: Tensor, shapes: Tensor, settings: Round
) -> tuple[Tensor, Tensor]:
    """Smoothed, unfolded shapes (b, P, 2) of unit maps (b, C, h, w) near `shapes`, and the best cosines (b, P)."""
    cosines = torch.einsum("pc,bchw->bphw", template, maps)
    found, best = match_softly(cosines, frame.grid, shapes, settings.reach, settings.temperature)
    weights = (best - FLOOR).clamp(min=LEAST).square()
    return frame.unfold(frame.smooth(found, settings.smoothing, weights)), best


def match_softly(
    cosines: Tensor, grid: CellGrid, near: Tensor, reach: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Where cosines (b, P, h, w) are high within `reach` cells of points (b, P, 2), input px, and the highest (b, P).

    The mean of the cells' places, each with the weight of a softmax.
    """
    height, width = cosines.shape[2:]
    first, last = torch.tensor([0, 0]), torch.tensor([width - 1, height - 1])
    axis = torch.arange(-reach, reach + 1)
    window = torch.cartesian_prod(axis, axis)
    cells = grid.to_cells(near).round().long().clamp(first, last)[:, :, None] + window
    inside = ((cells >= first) & (cells <= last)).all(-1)
    cells = cells.clamp(first, last)
    seen = cosines.flatten(2).gather(2, cells[..., 1] * width + cells[..., 0]).masked_fill(~inside, -torch.inf)
    shares = (seen / temperature).softmax(-1)
    return grid.to_input((shares[..., None, :] @ cells.to(shares))[..., 0, :]).to(near), seen.amax(-1)


def learn_projector(views: FaceViews, shapes: Tensor, dim: int, shrinkage: float) -> Projector:
    """The projector to `dim` numbers that best tells the places apart, from the moved views of faces of `shapes`."""
    scatter: ClassScatter | None = None
    frame, half = views.frame, views.frame.grid.step / 2
    low, high = frame.places.min() - half, frame.places.max() + half  # the outer edges of the cells
    classes = torch.arange(frame.count**2)
    for part, maps in views.iter_maps("moved", "projector"):
        places = views.place(shapes[part], part)
        inside = ((places >= low) & (places <= high)).all(-1)
        scatter = scatter or ClassScatter(maps.shape[1], len(classes))
        scatter.add_classes(sample_at(maps, frame.grid, places)[inside], classes.expand_as(inside)[inside])
    assert scatter is not None
    return make_projector(*scatter.solve(dim, shrinkage))


def measure_shapes(frame: MeanFrame, shapes: Tensor) -> dict[str, float]:
    """The mean displacement, input px, and the share of places where shapes (N, P, 2) are folded."""
    displacement = (shapes - frame.places.to(shapes)).norm(dim=-1).mean()
    return {"displacement": float(displacement), "folded": float((frame.areas(shapes) <= 0).float().mean())}


def measure_rings(maps: Tensor, frame: MeanFrame, projector: Projector, temperature: float) -> float:
    """How far places of the middle of the face are from where they began, matched through three faces: mean, input px.

    Each of the faces, whose backbone maps are (n, D, h, w), starts a ring with the two after it.
    """
    grid, places = frame.grid, frame.places.float()
    places = places[(places - places.mean(0)).abs().amax(1) <= MIDDLE * (places.max() - places.min())]
    described = _describe(projector, maps.float())
    start = xy = places.expand(len(maps), -1, -1)
    ring = [described.roll(-step, 0) for step in range(3)]
    for source, target in zip(ring, ring[1:] + ring[:1], strict=True):
        read = F.normalize(sample_at(source, grid, xy), dim=-1)
        cosines = torch.einsum("npc,nchw->nphw", read, target)
        xy = match_softly(cosines, grid, _nearest(cosines, grid), NEAR, temperature)[0]
    return float((xy - start).norm(dim=-1).mean())


def _nearest(cosines: Tensor, grid: CellGrid) -> Tensor:
    """The cell of the highest of cosines (n, P, h, w), input px."""
    best, width = cosines.flatten(2).argmax(-1), cosines.shape[-1]
    return grid.to_input(torch.stack([best % width, best // width], dim=-1).float())


def _describe(projector: Projector, maps: Tensor) -> Tensor:
    return F.normalize(projector(maps), dim=1)
