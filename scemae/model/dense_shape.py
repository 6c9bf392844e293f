"""The dense shape: where each place of the mean face lies on this face, read from its map (ours, not in the paper).

Closed-form supervised descent, as the landmarks' cascade, but for a whole lattice of places and learned without labels:
from the mean face, each *global* stage reads the map at coarse places and moves all places together, along a few modes
of shape; each *local* stage then moves every place by what lies around it (docs/registration.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scemae.geometry import CellGrid, MeanFrame, sample_at
from scemae.model.config import DenseShapeConfig
from scemae.model.cover_and_stride import cell_grid

OFFSET = 0.625  # patches: a local stage reads at a place and as far right, left, above and below it


class DenseShape(nn.Module):
    """Backbone maps of aligned faces (B, D, h, w), of any expansion, to dense shapes (B, P, 2), input px.

    Attributes:
        frame: the lattice of the P places.
        components: (C, D), and `offset` (C,): the directions of the channels that are read, and their means along them.
        modes: (M, 2 P), orthonormal, of displacements: x and y of each place in turn.
        global_weights: (stages, places * C + 1, M); `local_weights`: (stages, P, 5 C + 1, 2).
    """

    components: Tensor
    offset: Tensor
    modes: Tensor
    global_weights: Tensor
    local_weights: Tensor

    def __init__(self, config: DenseShapeConfig, width: int, input_size: int, patch_size: int) -> None:
        super().__init__()
        self.config = config
        cells = input_size // patch_size
        self.frame = MeanFrame(cell_grid(2, patch_size), 2 * cells)
        self.coarse = MeanFrame(cell_grid(1, patch_size), cells)
        self.reach = OFFSET * patch_size
        places, kept = self.frame.count**2, config.components
        shapes = {
            "components": (kept, width),
            "offset": (kept,),
            "modes": (config.modes, 2 * places),
            "global_weights": (config.global_stages, self.coarse.count**2 * kept + 1, config.modes),
            "local_weights": (config.local_stages, places, 5 * kept + 1, 2),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, maps: Tensor, grid: CellGrid) -> Tensor:
        """See the class; `grid`: where the cells of the maps are."""
        reduced = self.reduce(maps)
        shapes = self.frame.places.float().to(maps.device).expand(maps.shape[0], -1, -1)  # the mean face's
        for weights in self.global_weights:
            shapes = self.move_globally(shapes, self.describe_globally(reduced, grid, shapes) @ weights)
        for weights in self.local_weights:
            shapes = self.move_locally(reduced, grid, shapes, weights)
        return self.frame.unfold(shapes)

    def reduce(self, maps: Tensor) -> Tensor:
        """The channels (B, C, h, w) that the stages read."""
        return torch.einsum("cd,bdhw->bchw", self.components, maps) - self.offset[:, None, None]

    def describe_globally(self, reduced: Tensor, grid: CellGrid, shapes: Tensor) -> Tensor:
        """What a global stage reads, (B, places * C + 1): the map at the coarse places, and a constant 1."""
        places = self.frame.to_face(shapes, self.coarse.places.to(shapes).expand(shapes.shape[0], -1, -1))
        read = sample_at(reduced, grid, places).flatten(1)
        return torch.cat([read, read.new_ones(read.shape[0], 1)], dim=1)

    def describe_locally(self, reduced: Tensor, grid: CellGrid, shapes: Tensor) -> Tensor:
        """What a local stage reads, (B, P, 5 C + 1): the map at and around each place, and a constant 1."""
        cross = self.reach * shapes.new_tensor([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
        places = (shapes[:, :, None] + cross).flatten(1, 2)
        read = sample_at(reduced, grid, places).unflatten(1, (-1, len(cross))).flatten(2)
        return torch.cat([read, read.new_ones(*read.shape[:2], 1)], dim=2)

    def move_globally(self, shapes: Tensor, amounts: Tensor) -> Tensor:
        """Shapes moved along the modes by amounts (B, M)."""
        return shapes + (amounts @ self.modes).unflatten(1, (-1, 2))

    def move_locally(self, reduced: Tensor, grid: CellGrid, shapes: Tensor, weights: Tensor) -> Tensor:
        """Shapes moved by a local stage of weights (P, 5 C + 1, 2)."""
        return shapes + torch.einsum("npf,pfd->npd", self.describe_locally(reduced, grid, shapes), weights)
