"""The default head where the model knows the dense shape: cascades in two frames (docs/few-shot.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from scemae.detector.cascade import SIGMAS, CascadeHead
from scemae.detector.head import AnnotatedMaps, HeadFit
from scemae.geometry import CellGrid, FaceShapes, symmetrise

MEAN_SIGMAS = (4.0, 3.0, 2.0, 1.5, 1.0)  # input px, of landmarks in the mean face's frame
SYMMETRIC = 2  # up to this many annotated faces, both sides of the face stand for each other
SYMMETRY = 0.7  # how far a landmark is then moved towards where both sides say that it is


class ShapedCascadeHead:
    """Cascades that start from the face's dense shape; ours, not in the paper.

    One moves in the frame of the mean face, where its maps are resampled: turned and long faces look more alike
    there, and the mean of the landmarks is a good start. With more than `SYMMETRIC` annotated faces it is averaged with
    one in the face's own frame, which sees finer detail. Otherwise each landmark of a left-right pair is first moved
    towards the mean of itself and its partner's reflection, the side that is seen better counting more.

    Args:
        sigmas: as of `CascadeHead`, in the face's own frame.
        mean_sigmas: the same in the frame of the mean face.
        ridge, samples, seed: as of `CascadeHead`, of both.
    """

    name: ClassVar[str] = "shaped-cascade"
    max_folds: ClassVar[int] = CascadeHead.max_folds
    moved_copies: ClassVar[bool] = True
    reads_shapes: ClassVar[bool] = True

    def __init__(
        self,
        sigmas: Sequence[float] = SIGMAS,
        mean_sigmas: Sequence[float] = MEAN_SIGMAS,
        ridge: float | None = None,
        samples: int = 7,
        seed: int = 0,
    ) -> None:
        self.sigmas, self.mean_sigmas = tuple(sigmas), tuple(mean_sigmas)
        self.ridge, self.samples, self.seed = ridge, samples, seed
        self.mean = CascadeHead(self.mean_sigmas, ridge, samples, seed)
        self.own: CascadeHead | None = self._new_own()

    @classmethod
    def with_defaults(cls, aligned: bool) -> Self:
        """The default head."""
        return cls()

    def params(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {**self.mean.params(), "sigmas": list(self.sigmas), "mean_sigmas": list(self.mean_sigmas)}

    def fit(self, data: AnnotatedMaps) -> HeadFit:
        """Fit both cascades, or the one in the mean face's frame alone; each as `CascadeHead.fit` does."""
        shapes = data.shapes
        assert shapes is not None
        landmarks = shapes.to_mean(data.landmarks)
        few = int(data.originals.sum()) <= SYMMETRIC
        if few and data.swap is not None:
            landmarks = symmetrise(shapes, landmarks, data.swap, SYMMETRY)
        in_mean = replace(data, maps=shapes.resample(data.maps, data.grid), grid=shapes.frame.grid, landmarks=landmarks)
        found = self.mean.fit(in_mean)
        held_out = shapes[torch.from_numpy(data.originals)].to_face(found.held_out)
        if few:
            self.own = None
            return replace(found, held_out=held_out)
        self.own = self._new_own()
        own = self.own.fit(data)
        confidence = None
        if found.confidence is not None and own.confidence is not None:
            confidence = (found.confidence + own.confidence) / 2
        return HeadFit((held_out + own.held_out) / 2, own.mirrored or found.mirrored, confidence)

    def predict(self, maps: Tensor, grid: CellGrid, shapes: FaceShapes | None = None) -> tuple[Tensor, Tensor]:
        """Landmarks (n, K, 2), input px, and their confidence (n, K), as `CascadeHead.predict`; `shapes` are needed."""
        assert shapes is not None
        places, confidence = self.mean.predict(shapes.resample(maps, grid), shapes.frame.grid)
        places = shapes.to_face(places)
        if self.own is None:
            return places, confidence
        own_places, own_confidence = self.own.predict(maps, grid)
        return (places + own_places) / 2, (confidence + own_confidence) / 2

    def state(self) -> dict[str, Tensor]:
        """The states of the cascades, as "mean.ridge" or "own.weights"."""
        return {
            f"{part}.{name}": tensor for part, head in self._cascades().items() for name, tensor in head.state().items()
        }

    def expected_state(self, channels: int, landmarks: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `CascadeHead.expected_state`."""
        expected = dict[str, Tensor]()
        for part, head in self._cascades().items():
            if part == "own" and not any(name.startswith("own.") for name in state):
                continue
            inner = head.expected_state(channels, landmarks, _select(state, part))
            expected |= {f"{part}.{name}": tensor for name, tensor in inner.items()}
        return expected

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        if not _select(state, "own"):
            self.own = None
        for part, head in self._cascades().items():
            head.load_state(_select(state, part))

    def _new_own(self) -> CascadeHead:
        return CascadeHead(self.sigmas, self.ridge, self.samples, self.seed)

    def _cascades(self) -> dict[str, CascadeHead]:
        return {"mean": self.mean} | ({} if self.own is None else {"own": self.own})


def _select(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}
