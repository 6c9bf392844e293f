"""What a head is: arrays in, arrays out, in input pixels, without images or models. Write your own to this contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scemae.geometry import CellGrid, FaceShapes


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedMaps:
    """The n faces that a head is fitted on: the annotated ones, then their mirror images and moved copies.

    Attributes:
        maps: standardised maps (n, C, h, w), float32.
        grid: where the cells of the maps lie, input px.
        landmarks: (n, K, 2), input px of each face's crop, float64; nan where not annotated.
        blocks: (n,), from 0: faces of one block are held out together; those of one group share a block.
        mirrored: (n,), whether a face is a mirror image, or a moved copy of one.
        moved: (n,), whether a face is a copy that was rotated, scaled and shifted.
        swap: for each landmark the one whose place its mirror image takes; None: not known.
        shapes: of the n faces, for a head that `reads_shapes`; None for others.
    """

    maps: Tensor
    grid: CellGrid
    landmarks: Tensor
    blocks: NDArray[np.int64]
    mirrored: NDArray[np.bool_]
    moved: NDArray[np.bool_]
    swap: list[int] | None = None
    shapes: FaceShapes | None = None

    @property
    def originals(self) -> NDArray[np.bool_]:
        """(n,), whether a face is an annotated one as it is."""
        return ~(self.mirrored | self.moved)


@dataclass(frozen=True, eq=False)
class HeadFit:
    """What `Head.fit` reports.

    Attributes:
        held_out: (m, K, 2), input px, float64: landmarks of the m original faces, each predicted without its block;
            nan if none was held out.
        mirrored: whether mirror images were used.
        confidence: (m, K), 0..1, of these predictions, as `Head.predict` gives it; None if not known: the radius of a
            landmark is then the same on all faces.
    """

    held_out: Tensor
    mirrored: bool
    confidence: Tensor | None = None


class Head(Protocol):
    """What finds landmarks in maps. `CascadeHead` and `HeatmapHead` are heads, and so is any class with these members.

    `fit_regressor(..., head=MyHead())` fits a copy of the instance, and `LandmarkRegressor.load(path, head=MyHead)`
    brings it back. A head keeps its constructor's arguments as they are; what `fit` finds goes into other attributes,
    such as `ridge_`. All tensors are on the CPU.
    """

    name: ClassVar[str]  # a word for the class in files and tables; not that of a built-in head
    max_folds: ClassVar[int]  # into how many blocks, at most, the faces are divided to be held out; 1 holds none out
    moved_copies: ClassVar[bool]  # whether `fit` is given moved copies of the faces
    # A head may also have `reads_shapes = True`: `fit` is then given the faces' dense shapes, and `predict` a third
    # argument, their FaceShapes. It can be fitted where `features.has_shapes`.

    def params(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready: `type(head)(**head.params())` is an equal head, not fitted."""

    def fit(self, data: AnnotatedMaps) -> HeadFit:
        """Fit on all faces of `data`, and before that without each block, to predict the faces of that block.

        A face's landmarks must not influence the held-out predictions of its block. The head decides whether to use
        the mirror images. The same data must give the same fit.
        """

    def predict(self, maps: Tensor, grid: CellGrid) -> tuple[Tensor, Tensor]:
        """Landmarks (n, K, 2), input px, float64, in standardised maps (n, C, h, w), and their confidence (n, K), 0..1.

        `export_graph` traces it: to be exported, it must consist of torch operations on `maps`.
        """

    def state(self) -> dict[str, Tensor]:
        """All that `fit` found and `predict` needs, by name."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave: `predict` then returns the same to the bit."""


def reads_shapes(head: Head) -> bool:
    """Whether the head wants the faces' dense shapes beside their maps."""
    return getattr(head, "reads_shapes", False)


def run_head(head: Head, maps: Tensor, grid: CellGrid, shapes: FaceShapes | None) -> tuple[Tensor, Tensor]:
    """`head.predict`, with the shapes if it reads them."""
    if shapes is None:
        return head.predict(maps, grid)
    run: Any = head.predict
    found: tuple[Tensor, Tensor] = run(maps, grid, shapes)
    return found
