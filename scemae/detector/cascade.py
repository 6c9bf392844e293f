"""The default head: a cascade of ridge regressions in closed form (docs/few-shot.md)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from scemae.detector.head import AnnotatedMaps, HeadFit
from scemae.errors import OptionError
from scemae.geometry import CellGrid, sample_at
from scemae.ridge import RidgeSystem

SIGMAS = (8.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0)  # input px, of aligned faces
FIXED_CROP_SIGMAS = (12.0, 9.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0)  # unaligned faces are further from the mean shape
RIDGES = (0.25, 1.0, 4.0, 16.0)
SINGLE_BLOCK_RIDGE = 4.0  # where no face can be held out
COMPONENTS = 128  # of the maps' channels; more cost much time and gain 1 % with a hundred faces, nothing with twenty
OFFSETS = (-5.0, 0.0, 5.0)  # input px: a position is described by the 3 x 3 descriptors around it
PUSH = 3.0  # input px, for the confidence
LANDMARKS_IN_MEMORY = 8  # whose ridge systems are kept: those of one landmark take 0.4 GB with many faces


class CascadeHead:
    """Supervised descent in closed form: from the mean shape, each stage moves each landmark by a ridge regression
    of the descriptors around its current position.

    After Xiong & De la Torre, "Supervised Descent Method", CVPR 2013; not in the paper. After `fit`: `ridge_`, the
    penalty that was chosen; `components_` (D, C), the directions of the channels that it reads; `cascade_`.

    Args:
        sigmas: input px, one for each stage: how far from the ground truth its training shapes start.
        ridge: penalty over the mean diagonal; None chooses one of `RIDGES` on held-out faces.
        samples: jittered shapes of each face and of each of its copies.
        seed: the seed of the jitter.
    """

    name: ClassVar[str] = "cascade"
    max_folds: ClassVar[int] = 10
    moved_copies: ClassVar[bool] = True

    ridge_: float
    components_: Tensor
    cascade_: Cascade

    def __init__(
        self, sigmas: Sequence[float] = SIGMAS, ridge: float | None = None, samples: int = 7, seed: int = 0
    ) -> None:
        if not sigmas or samples < 1 or (ridge is not None and ridge <= 0):
            raise OptionError(
                f"sigmas {sigmas}, ridge {ridge}, samples {samples}: wanted at least one stage, a ridge above 0 or "
                "None, and at least one sample."
            )
        self.sigmas = tuple(sigmas)
        self.ridge = ridge
        self.samples = samples
        self.seed = seed

    @classmethod
    def with_defaults(cls, aligned: bool) -> Self:
        """The default head for faces that are aligned or not."""
        return cls(SIGMAS if aligned else FIXED_CROP_SIGMAS)

    def params(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {"sigmas": list(self.sigmas), "ridge": self.ridge, "samples": self.samples, "seed": self.seed}

    def fit(self, data: AnnotatedMaps) -> HeadFit:
        """Fit; the ridge, then whether to use the mirror images, are those with the smaller held-out error."""
        self.components_ = principal_components(data.maps[torch.from_numpy(data.originals)], COMPONENTS)  # (D, C)
        data = replace(data, maps=self._reduce(data.maps))  # (n, D, h, w)
        rng = torch.Generator().manual_seed(self.seed)
        shapes = [jitter_shapes(data.landmarks, sigma, self.samples, rng) for sigma in self.sigmas]  # (n, R, K, 2) each
        systems = CascadeSystems(data, shapes)
        blocks = sorted(set(data.blocks.tolist()))
        best = _choose(systems, blocks, self.ridge)  # its held-out predictions (m, K, 2)
        self.ridge_ = best.ridge
        self.cascade_ = systems.solve([blocks], [best.ridge], best.mirrored)[0, best.ridge]
        return HeadFit(best.held_out, best.mirrored, best.confidence)

    def predict(self, maps: Tensor, grid: CellGrid) -> tuple[Tensor, Tensor]:
        """Landmarks (n, K, 2) in input px in standardised maps (n, C, h, w), and their confidence (n, K), 0..1.

        The confidence is how much of a push of 3 px, right, left, down or up, the last stage takes back.
        """
        return self.cascade_.find(self._reduce(maps), grid)

    def state(self) -> dict[str, Tensor]:
        """What `fit` found: `ridge` (), `components` (D, C), `mean_shape` (K, 2), `weights` (stages, K, F, 2)."""
        return {
            "ridge": torch.tensor(self.ridge_, dtype=torch.float64),
            "components": self.components_,
            "mean_shape": self.cascade_.mean_shape,
            "weights": self.cascade_.weights,
        }

    def expected_state(self, channels: int, landmarks: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names, shapes and types that `state` must have, on "meta"; how many channels it reads is as it says."""
        kept = len(state["components"])
        with torch.device("meta"):
            return {
                "ridge": torch.empty((), dtype=torch.float64),
                "components": torch.empty(kept, channels, dtype=torch.float32),
                "mean_shape": torch.empty(landmarks, 2, dtype=torch.float64),
                "weights": torch.empty(
                    len(self.sigmas), landmarks, len(OFFSETS) ** 2 * kept + 1, 2, dtype=torch.float32
                ),
            }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        self.ridge_ = float(state["ridge"])
        self.components_ = state["components"]
        self.cascade_ = Cascade(state["mean_shape"], state["weights"])

    def _reduce(self, maps: Tensor) -> Tensor:
        return torch.einsum("dc,nchw->ndhw", self.components_, maps)


@dataclass(frozen=True, eq=False)
class Cascade:
    """The regressions of all stages, and where they start.

    Attributes:
        mean_shape: (K, 2), input px.
        weights: (stages, K, F, 2), F = 9 D + 1 for maps of D channels.
    """

    mean_shape: Tensor
    weights: Tensor

    def descend(self, maps: Tensor, grid: CellGrid) -> Tensor:
        """Landmarks (n, K, 2), input px, in maps (n, D, h, w): from the mean shape down all stages."""
        places = self.mean_shape.expand(maps.shape[0], -1, -1)
        for stage in self.weights:
            places = descend_stage(maps, grid, places, stage)
        return places

    def find(self, maps: Tensor, grid: CellGrid) -> tuple[Tensor, Tensor]:
        """Landmarks (n, K, 2), input px, in maps (n, D, h, w), and their confidence (n, K), see `CascadeHead`."""
        places = self.descend(maps, grid)
        pushes = PUSH * torch.tensor([(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)], dtype=torch.float64)
        last = self.weights[-1]  # (K, F, 2)
        pushed = [descend_stage(maps, grid, places + push, last) for push in pushes]  # (n, K, 2) each
        left = ((torch.stack(pushed) - places) ** 2).sum(-1).mean(0).sqrt()  # (n, K), root mean square
        return places, (1 - left / pushes.norm(dim=-1).mean()).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Trial:
    """A ridge and whether mirror images are used, with the predictions (m, K, 2) for held-out original faces and their
    confidence (m, K)."""

    ridge: float
    mirrored: bool
    held_out: Tensor
    confidence: Tensor


def _choose(systems: CascadeSystems, blocks: Sequence[int], ridge: float | None) -> Trial:
    """The best ridge, of one that is given or of `RIDGES`; then, with that ridge, whether mirror images help."""
    data = systems.data
    truth = data.landmarks[torch.from_numpy(data.originals)]
    mirrored = bool(data.mirrored.any())
    if len(blocks) == 1:
        held_out = torch.full_like(truth, torch.nan)
        return Trial(SINGLE_BLOCK_RIDGE if ridge is None else ridge, mirrored, held_out, held_out[..., 0])

    def error(trial: Trial) -> float:
        return float(torch.nanmean((trial.held_out - truth).norm(dim=-1)))

    best = min(_hold_out(systems, RIDGES if ridge is None else (ridge,), mirrored), key=error)
    if mirrored:
        best = min(best, *_hold_out(systems, (best.ridge,), False), key=error)
    return best


def _hold_out(systems: CascadeSystems, ridges: Sequence[float], mirrored: bool) -> list[Trial]:
    """For each ridge the predictions for the original faces by cascades that were not fitted on their block."""
    data = systems.data
    originals = torch.from_numpy(data.originals)
    maps, block_of_face = data.maps[originals], data.blocks[data.originals]
    blocks = np.unique(block_of_face).tolist()
    others = [[other for other in blocks if other != block] for block in blocks]
    cascades = systems.solve(others, ridges, mirrored)
    trials = []
    for ridge in ridges:
        held_out = torch.empty_like(data.landmarks[originals])
        confidence = torch.empty_like(held_out[..., 0])
        for group, block in enumerate(blocks):
            inside = torch.from_numpy(block_of_face == block)
            held_out[inside], confidence[inside] = cascades[group, ridge].find(maps[inside], data.grid)
        trials.append(Trial(ridge, mirrored, held_out, confidence))
    return trials


class CascadeSystems:
    """For each landmark its ridge systems, one for each stage, from jittered copies (n, R, K, 2) of the true shapes.

    A system solves for any of the blocks, with or without their mirror images, without reading the maps again.
    """

    def __init__(self, data: AnnotatedMaps, shapes: Sequence[Tensor]) -> None:
        self.data, self.shapes = data, shapes
        self.parts = _part_number(data.blocks, data.mirrored)
        self.in_memory: dict[int, list[RidgeSystem]] = {}

    def solve(
        self, groups: Sequence[Sequence[int]], ridges: Sequence[float], mirrored: bool
    ) -> dict[tuple[int, float], Cascade]:
        """The cascade of each group of blocks and each ridge, by (number of the group, ridge).

        From the faces of these blocks and their mirror images, or from the faces alone.
        """
        sides = range(1 + mirrored)
        parts = [[_part_number(block, side) for block in group for side in sides] for group in groups]
        landmarks = self.data.landmarks
        features = len(OFFSETS) ** 2 * self.data.maps.shape[1] + 1
        weights = self.data.maps.new_empty(len(groups), len(ridges), len(self.shapes), landmarks.shape[1], features, 2)
        for k in range(landmarks.shape[1]):  # outermost: most of the systems are not kept
            for stage, system in enumerate(self._systems(k)):
                for group, chosen in enumerate(parts):
                    weights[group, :, stage, k] = torch.stack(system.solve(chosen, ridges))
        found: dict[tuple[int, float], Cascade] = {}
        for group, chosen in enumerate(parts):
            unmoved = torch.from_numpy(np.isin(self.parts, chosen) & ~self.data.moved)
            mean_shape = torch.nanmean(landmarks[unmoved], dim=0)
            # Copies, so that the large tensor goes, and products do not round by where in it the weights began.
            found |= {(group, ridge): Cascade(mean_shape, weights[group, r].clone()) for r, ridge in enumerate(ridges)}
        return found

    def _systems(self, k: int) -> list[RidgeSystem]:
        """Those of landmark k, one for each stage."""
        if k in self.in_memory:
            return self.in_memory[k]
        systems = [self._new_system(shapes, k) for shapes in self.shapes]
        if k < LANDMARKS_IN_MEMORY:
            self.in_memory[k] = systems
        return systems

    def _new_system(self, shapes: Tensor, k: int) -> RidgeSystem:
        data = self.data
        known = torch.isfinite(data.landmarks[:, k, 0])  # of n faces, m are known
        places = shapes[known][:, :, k]  # (m, R, 2)
        x = describe_places(data.maps[known], data.grid, places)  # (m, R, F)
        y = (data.landmarks[known][:, k : k + 1] - places).float()  # (m, R, 2): the way back to the truth
        return RidgeSystem(x, y, self.parts[known.numpy()])


def _part_number(block: Any, mirrored: Any) -> Any:
    """The part of a system's rows that holds a block's faces (even) or their mirror images (odd); numbers or arrays."""
    return 2 * block + mirrored


def principal_components(maps: Tensor, count: int) -> Tensor:
    """The directions (min(count, C), C) in which the cells of maps (n, C, h, w) spread most about 0, orthonormal."""
    cells = maps.transpose(0, 1).flatten(1).double()  # (C, n h w)
    directions: Tensor = torch.linalg.eigh(cells @ cells.T)[1].flip(1)[:, :count]
    return directions.T.float()


def jitter_shapes(landmarks: Tensor, sigma: float, samples: int, rng: torch.Generator) -> Tensor:
    """Shapes (n, R, K, 2) around the true ones (n, K, 2): scaled about their centre, shifted together, and each
    landmark on its own."""
    n, count, _ = landmarks.shape

    def noise(*shape: int) -> Tensor:
        return torch.randn(n, samples, *shape, generator=rng, dtype=landmarks.dtype)

    centred = landmarks - torch.nanmean(landmarks, dim=1, keepdim=True)
    scaled = centred[:, None] * (0.01 * sigma * noise(1, 1))
    return landmarks[:, None] + scaled + 0.7 * sigma * (noise(1, 2) + noise(count, 2))


def describe_places(maps: Tensor, grid: CellGrid, places: Tensor) -> Tensor:
    """Descriptors (n, K, 9 D + 1) at 3 x 3 points around places (n, K, 2), input px, and a constant 1."""
    offsets = torch.tensor(list(itertools.product(OFFSETS, OFFSETS)), dtype=places.dtype)  # (9, 2)
    points = (places[:, :, None] + offsets).flatten(1, 2)  # (n, 9 K, 2)
    read = sample_at(maps, grid, points).unflatten(1, (-1, len(offsets))).flatten(2)  # (n, K, 9 D)
    return torch.cat([read, read.new_ones(*read.shape[:2], 1)], dim=2)


def descend_stage(maps: Tensor, grid: CellGrid, places: Tensor, weights: Tensor) -> Tensor:
    """Places (n, K, 2), input px, moved by the weights (K, F, 2) of one stage."""
    return places + torch.einsum("nkf,kfd->nkd", describe_places(maps, grid, places), weights).double()
