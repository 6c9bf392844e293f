"""The default head: a cascade of ridge regressions, closed form (docs/few-shot.md)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scemae.detector.annotated_maps import AnnotatedMaps
from scemae.errors import OptionError
from scemae.geometry import CellGrid, sample_at
from scemae.ridge import RidgeSystem

OFFSETS = (-5.0, 0.0, 5.0)  # input px: each landmark is judged from 3 x 3 descriptors around it
COMPONENTS = 128  # of the maps' channels; more cost much time and gain 1 % with a hundred faces, nothing with twenty
KEPT = 8  # landmarks whose regressions stay in memory while the ridge is chosen
RIDGES = (0.25, 1.0, 4.0, 16.0)
ALONE = 4.0  # the ridge where no face can be held out
PUSHES = 3 * torch.tensor([(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)], dtype=torch.float64)


def principal_components(maps: Tensor, count: int) -> Tensor:
    """The directions (min(count, C), C) in which the cells of maps (n, C, h, w) spread most about 0, orthonormal."""
    cells = maps.transpose(0, 1).flatten(1).double()
    directions: Tensor = torch.linalg.eigh(cells @ cells.T)[1].flip(1)[:, :count]
    return directions.T.float()


def read_around(maps: Tensor, grid: CellGrid, places: Tensor) -> Tensor:
    """Descriptors (n, K, 9 C + 1) at 3 x 3 points around places (n, K, 2), and a constant 1."""
    offsets = torch.tensor(list(itertools.product(OFFSETS, OFFSETS)), dtype=places.dtype)
    points = (places[:, :, None] + offsets).flatten(1, 2)
    read = sample_at(maps, grid, points).unflatten(1, (-1, len(offsets))).flatten(2)
    return torch.cat([read, read.new_ones(*read.shape[:2], 1)], dim=2)


class Systems:
    """For each landmark its regressions, one for each stage, from jittered copies of the true shapes.

    Those of the first `KEPT` landmarks are made once and stay in memory, the others are made again when they are asked
    for: with many faces one landmark's take 0.4 GB.
    """

    def __init__(self, data: AnnotatedMaps, shapes: Sequence[Tensor]) -> None:
        self.data, self.shapes = data, shapes
        self.kept: dict[int, list[RidgeSystem]] = {}

    def of(self, k: int) -> list[RidgeSystem]:
        """Those of landmark k."""
        if k in self.kept:
            return self.kept[k]
        made = [self._made(shapes, k) for shapes in self.shapes]
        if k < KEPT:
            self.kept[k] = made
        return made

    def _made(self, shapes: Tensor, k: int) -> RidgeSystem:
        data = self.data
        known = torch.isfinite(data.landmarks[:, k, 0])
        places = shapes[known][:, :, k]
        x = read_around(data.maps[known], data.grid, places)
        return RidgeSystem(x, (data.landmarks[known][:, k : k + 1] - places).float(), data.parts[known.numpy()])


class CascadeHead:
    """Supervised descent in closed form: from the mean shape, each stage moves each landmark by a ridge regression
    of the descriptors around its present place.

    After Xiong & De la Torre, "Supervised Descent Method", CVPR 2013; not in the paper. `sigmas`: one stage each,
    input px, how far from the truth its training shapes start. `ridge`: penalty over the mean diagonal; None tries
    `RIDGES` on held-out faces. `samples`: jittered shapes of each face and of each of its copies.
    """

    name = "cascade"
    max_folds = 10
    moved_copies = True

    def __init__(
        self,
        sigmas: tuple[float, ...] = (8.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0),
        ridge: float | None = None,
        samples: int = 7,
        seed: int = 0,
    ) -> None:
        if not sigmas or samples < 1 or (ridge is not None and ridge <= 0):
            raise OptionError(
                f"sigmas {sigmas}, ridge {ridge}, samples {samples}: wanted a stage at least, a ridge above 0 or None, "
                "and a sample at least."
            )
        self.sigmas = tuple(sigmas)
        self.ridge = ridge
        self.samples = samples
        self.seed = seed

    def settings(self) -> dict[str, Any]:
        """What `__init__` takes, with the ridge that was chosen; JSON-ready."""
        return {"sigmas": list(self.sigmas), "ridge": self.ridge, "samples": self.samples, "seed": self.seed}

    def state(self) -> dict[str, Tensor]:
        """What `fit` found: `components` (D, C), `mean_shape` (K, 2), `weights` (stages, K, 9 D + 1, 2)."""
        return {"components": self.components, "mean_shape": self.mean_shape, "weights": self.weights}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        self.components, self.mean_shape, self.weights = state["components"], state["mean_shape"], state["weights"]

    def fit(self, data: AnnotatedMaps, validate: bool = True) -> tuple[Tensor, bool]:
        """Fit; returns held-out predictions (n, K, 2) of the original faces, and whether mirror images were used.

        The ridge, then whether to use the mirror images, are those with the smaller held-out error. With one block
        nothing can be held out: the predictions are nan, the ridge `ALONE`, the mirror images used.
        """
        self.components = principal_components(data.maps[torch.from_numpy(data.originals)], COMPONENTS)
        data = replace(data, maps=self._reduced(data.maps))
        generator = torch.Generator().manual_seed(self.seed)
        systems = Systems(data, [_jittered(data.landmarks, sigma, self.samples, generator) for sigma in self.sigmas])
        blocks = sorted(set(data.blocks.tolist()))
        mirrored = bool(data.mirrored.any())
        originals = data.landmarks[torch.from_numpy(data.originals)]
        held_out = torch.full_like(originals, torch.nan)
        ridge = ALONE if self.ridge is None else self.ridge
        if validate and len(blocks) > 1:
            ridges = RIDGES if self.ridge is None else (self.ridge,)
            trials = _held_out(systems, ridges, mirrored)
            ridge, _ = min(trials, key=lambda trial: _mean_error(trials[trial], originals))
            if mirrored:
                trials |= _held_out(systems, (ridge,), False)
            (ridge, mirrored), held_out = min(trials.items(), key=lambda trial: _mean_error(trial[1], originals))
        self.ridge = ridge
        [[(self.mean_shape, self.weights)]] = _solved(systems, [blocks], (ridge,), mirrored)
        return held_out, mirrored

    def predict(self, maps: Tensor, grid: CellGrid) -> tuple[Tensor, Tensor]:
        """Landmarks (n, K, 2) in input px on standardised maps (n, C, h, w), and their confidence (n, K), 0..1.

        The confidence is how much of a push of 3 px, right, left, down or up, the last stage takes back.
        """
        maps = self._reduced(maps)
        places = descend(maps, grid, self.mean_shape, self.weights)
        pushed = [descend_once(maps, grid, places + push, self.weights[-1]) for push in PUSHES]
        left = ((torch.stack(pushed) - places) ** 2).sum(-1).mean(0).sqrt()
        return places, (1 - left / PUSHES.norm(dim=-1).mean()).clamp(0, 1)

    def _reduced(self, maps: Tensor) -> Tensor:
        return torch.einsum("dc,nchw->ndhw", self.components, maps)


def _solved(
    systems: Systems, groups: Sequence[Sequence[int]], ridges: Sequence[float], mirrored: bool
) -> list[list[tuple[Tensor, Tensor]]]:
    """For each group of blocks and each ridge the mean shape (K, 2) and the weights (stages, K, F, 2) from its faces.

    From those and their mirror images, or from those alone.
    """
    data = systems.data
    parts = [[2 * block + side for block in group for side in range(1 + mirrored)] for group in groups]
    unmoved = [torch.from_numpy(np.isin(data.parts, chosen) & ~data.moved) for chosen in parts]
    landmarks = []
    for k in range(data.landmarks.shape[1]):
        stages = [torch.stack([torch.stack(one.solve(chosen, ridges)) for chosen in parts]) for one in systems.of(k)]
        landmarks.append(torch.stack(stages))  # stages, groups, ridges, F, 2
    weights = torch.stack(landmarks, dim=1).permute(2, 3, 0, 1, 4, 5)
    return [
        [(torch.nanmean(data.landmarks[faces], dim=0), of_ridge.contiguous()) for of_ridge in of_group]
        for faces, of_group in zip(unmoved, weights, strict=True)
    ]


def _held_out(systems: Systems, ridges: Sequence[float], mirrored: bool) -> dict[tuple[float, bool], Tensor]:
    """By (ridge, mirrored): predictions (n, K, 2) of the original faces by cascades that never saw their block."""
    data = systems.data
    originals = torch.from_numpy(data.originals)
    of_face, maps = data.blocks[data.originals], data.maps[originals]
    blocks = np.unique(of_face).tolist()
    found = {(ridge, mirrored): torch.empty_like(data.landmarks[originals]) for ridge in ridges}
    others = [[other for other in blocks if other != block] for block in blocks]
    for block, fitted in zip(blocks, _solved(systems, others, ridges, mirrored), strict=True):
        inside = torch.from_numpy(of_face == block)
        for ridge, (mean_shape, weights) in zip(ridges, fitted, strict=True):
            found[ridge, mirrored][inside] = descend(maps[inside], data.grid, mean_shape, weights)
    return found


def descend(maps: Tensor, grid: CellGrid, mean_shape: Tensor, weights: Tensor) -> Tensor:
    """Landmarks (n, K, 2): from the mean shape (K, 2) down the stages of weights (stages, K, F, 2)."""
    places = mean_shape.expand(maps.shape[0], -1, -1)
    for stage in weights:
        places = descend_once(maps, grid, places, stage)
    return places


def descend_once(maps: Tensor, grid: CellGrid, places: Tensor, stage: Tensor) -> Tensor:
    """Places (n, K, 2) moved by one stage's weights (K, F, 2)."""
    return places + torch.einsum("nkf,kfd->nkd", read_around(maps, grid, places), stage).double()


def _jittered(landmarks: Tensor, sigma: float, samples: int, generator: torch.Generator) -> Tensor:
    """Shapes (n, R, K, 2) around the true ones: scaled about their centre, shifted together, and each on its own."""
    n, count, _ = landmarks.shape

    def noise(*shape: int) -> Tensor:
        return torch.randn(n, samples, *shape, generator=generator, dtype=landmarks.dtype)

    centred = landmarks - torch.nanmean(landmarks, dim=1, keepdim=True)
    scaled = centred[:, None] * (0.01 * sigma * noise(1, 1))
    return landmarks[:, None] + scaled + 0.7 * sigma * (noise(1, 2) + noise(count, 2))


def _mean_error(found: Tensor, truth: Tensor) -> float:
    return float(torch.nanmean((found - truth).norm(dim=-1)))
