"""The dense shape in closed form: ridge regressions of registered shapes on what its stages read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from scemae.model.dense_shape import DenseShape
from scemae.ridge import solve_ridge
from scemae.training.face_views import KINDS, FaceViews, Kind
from scemae.training.registration import mean_shapes

FACES = 300  # whose maps say which channels are read
FOLDS = 2  # of the faces, for shapes that a global stage has not learned from


class DenseShapeFit:
    """Fills a dense shape's buffers, so that it finds registered shapes (N, P, 2) of the still views of faces.

    It learns from the still and the moved views, stage by stage.
    """

    def __init__(self, head: DenseShape, views: FaceViews, shapes: Tensor) -> None:
        self.head, self.views = head, views
        moved = torch.cat([views.place(shapes[part], part) for part in views.parts])
        self.targets = {"still": shapes, "moved": moved}
        self.shapes = {kind: mean_shapes(head.frame, len(shapes)) for kind in KINDS}  # after the stages so far
        self.folds = torch.arange(len(shapes)) % FOLDS

    def fit(self, global_ridge: float, local_ridge: float) -> None:
        """Fit everything."""
        self._choose_components()
        self._find_modes()
        for weights in self.head.global_weights:
            without = self._solve_globally(global_ridge)
            weights.copy_(without.pop())
            for kind, part, reduced in self._iter_reduced("moving"):
                shapes, folds = self.shapes[kind][part], self.folds[part]
                read = self.head.describe_globally(reduced, self.views.frame.grid, shapes)
                amounts = torch.stack([read @ others for others in without])[folds, torch.arange(len(folds))]
                self.shapes[kind][part] = self.head.move_globally(shapes, amounts)
        for stage, weights in enumerate(self.head.local_weights):
            if stage:  # nothing reads what the last one would move
                self._move_locally(self.head.local_weights[stage - 1])
            weights.copy_(self._solve_locally(local_ridge))

    def _move_locally(self, weights: Tensor) -> None:
        for kind, part, reduced in self._iter_reduced("moving"):
            shapes = self.shapes[kind][part]
            self.shapes[kind][part] = self.head.move_locally(reduced, self.views.frame.grid, shapes, weights)

    def _choose_components(self) -> None:
        """The leading principal components of the still maps' channels, each of unit variance."""
        width = self.head.components.shape[1]
        count, total, products = 0, torch.zeros(width).double(), torch.zeros(width, width).double()
        for part, maps in self.views.iter_maps("still", "components"):
            rows = maps.transpose(0, 1).flatten(1).double()
            count += rows.shape[1]
            total += rows.sum(1)
            products += rows @ rows.T
            if part.stop >= FACES:
                break
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        deviation = covariance.diagonal().sqrt()
        directions = torch.linalg.eigh(covariance / torch.outer(deviation, deviation))[1].flip(1)
        self.head.components.copy_((directions[:, : len(self.head.components)] / deviation[:, None]).T)
        self.head.offset.copy_(self.head.components.double() @ mean)

    def _find_modes(self) -> None:
        """The leading principal components of the displacements in both views, whose mean is about zero."""
        count, numbers = self.head.modes.shape
        products = torch.zeros(numbers, numbers).double()
        for targets in self.targets.values():
            for part in self.views.parts:
                rows = (targets[part] - self.head.frame.places).flatten(1).double()
                products += rows.T @ rows
        self.head.modes.copy_(torch.linalg.eigh(products)[1].flip(1)[:, :count].T)

    def _solve_globally(self, ridge: float) -> list[Tensor]:
        """Weights (F, M) of a stage: for each fold from the faces of the others, then from all."""
        width, modes = self.head.global_weights.shape[1:]
        gram, moment = torch.zeros(FOLDS, width, width), torch.zeros(FOLDS, width, modes)
        for kind, part, reduced in self._iter_reduced("global stage"):
            shapes = self.shapes[kind][part]
            read = self.head.describe_globally(reduced, self.views.frame.grid, shapes)
            wanted = (self.targets[kind][part] - shapes).flatten(1) @ self.head.modes.T
            for fold in range(FOLDS):
                rows = self.folds[part] == fold
                gram[fold].addmm_(read[rows].T, read[rows])
                moment[fold].addmm_(read[rows].T, wanted[rows])
        kept = [[other for other in range(FOLDS) if other != fold] for fold in range(FOLDS)]
        return [solve_ridge(gram[of].sum(0), moment[of].sum(0), [ridge], width)[0] for of in [*kept, range(FOLDS)]]

    def _solve_locally(self, ridge: float) -> Tensor:
        """Weights (P, F, 2) of a stage."""
        places, width, _ = self.head.local_weights.shape[1:]
        gram, moment = torch.zeros(places, width, width), torch.zeros(places, width, 2)
        for kind, part, reduced in self._iter_reduced("local stage"):
            shapes = self.shapes[kind][part]
            read = self.head.describe_locally(reduced, self.views.frame.grid, shapes).transpose(0, 1)
            gram.baddbmm_(read.mT, read)
            moment.baddbmm_(read.mT, (self.targets[kind][part] - shapes).transpose(0, 1))
        solved = [solve_ridge(matrix, right, [ridge], width)[0] for matrix, right in zip(gram, moment, strict=True)]
        return torch.stack(solved)

    def _iter_reduced(self, purpose: str) -> Iterator[tuple[Kind, slice, Tensor]]:
        """What the stages read of all views."""
        for kind in KINDS:
            for part, maps in self.views.iter_maps(kind, purpose):
                yield kind, part, self.head.reduce(maps)
