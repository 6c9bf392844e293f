"""The projector of stage 2 (paper Sec. 3.3): a 1 x 1 convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scemae.model.config import ProjectorMode


class Projector(nn.Conv2d):
    """Backbone map (B, D, h, w) -> projected map (B, C, h, w).

    In mode "spatial_softmax", as in ContrastLandmark's projector, each channel is a distribution over the `grid` x
    `grid` cells of one encoder pass: an expanded map interleaves several, each with its own (None: the map is one).
    """

    def __init__(self, width: int, dim: int, mode: ProjectorMode = "linear", grid: int | None = None) -> None:
        super().__init__(width, dim, kernel_size=1)
        self.mode, self.grid = mode, grid
        self.sharpness = 6.5 if dim == 64 else 7.0  # of the softmax, as there

    def project(self, backbone_map: Tensor) -> Tensor:
        """The projected map, on the backbone map's device, wherever the projector is."""
        return self(backbone_map.to(self.weight.device)).to(backbone_map.device)

    def forward(self, backbone_map: Tensor) -> Tensor:
        """The projected map."""
        projected = super().forward(backbone_map)
        if self.mode == "linear":
            return projected
        grid = self.grid or projected.shape[-1]
        passes = projected.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))  # (B, C, h, s, w, s)
        passes = passes.permute(0, 1, 3, 5, 2, 4)
        shares = (self.sharpness * passes.flatten(4)).softmax(-1).view(passes.shape)
        return shares.permute(0, 1, 4, 2, 5, 3).reshape(projected.shape)


def concatenate_maps(backbone_map: Tensor, projected_map: Tensor, mode: str) -> Tensor:
    """Both maps side by side (paper Sec. 4.2), (B, D + C, h, w); `mode`: the projector's.

    The shares of a spatial softmax are far smaller than the backbone's numbers, so in that mode both parts are
    normalised to length 1 in each cell.
    """
    parts = [backbone_map, projected_map]
    return torch.cat(parts if mode == "linear" else [F.normalize(part, dim=1) for part in parts], dim=1)
