"""What extraction needs from a model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from scemae.geometry import CellGrid
from scemae.model.aligner import Aligner, Located
from scemae.model.config import ModelConfig, ModelId
from scemae.model.dense_shape import DenseShape
from scemae.model.face_finder import FaceFinder
from scemae.model.projector import Projector


class Extractor(Protocol):
    """What extraction needs from a model. `SceMae` is one; anything that turns views of faces into maps can be.

    A view shows the face's crop at `view_size` x `view_size` px, with `view_margin` px of surroundings on each side.
    """

    id: ModelId
    config: ModelConfig

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def view_size(self) -> int: ...

    @property
    def view_margin(self) -> int: ...

    @property
    def aligner(self) -> Aligner | None: ...

    @property
    def finder(self) -> FaceFinder | None: ...

    @property
    def projector(self) -> Projector | None: ...

    @property
    def dense_shape(self) -> DenseShape | None: ...

    def normalise(self, views: Tensor) -> Tensor:
        """Views of pixels 0..1, on the CPU, to the input of the other methods."""

    def locate_face(self, views: Tensor, step: int) -> Located:
        """What the aligner sees in views (B, 3, V, V) of pixels 0..1, of `aligner.view_size` px, in that step."""

    def __call__(self, views: Tensor, expansion: int) -> Tensor:
        """Normalised views (B, 3, S, S), S = view_size + 2 view_margin, to maps (B, D, h, w)."""

    def grid(self, expansion: int) -> CellGrid:
        """Where the cells of these maps are, in input pixels; raises OptionError for an expansion it does not have."""
