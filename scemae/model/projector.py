"""The projector of stage 2 (paper Sec. 3.3): a 1 x 1 convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scemae.model.config import ProjectorMode

SHARPNESS = 7.0  # of the softmax over places, as in ContrastLandmark's projector


class Projector(nn.Conv2d):
    """Backbone map (B, D, h, w) -> projected map (B, C, h, w).

    In mode "spatial_softmax" each channel is a distribution over the map's cells, and depends on the map's size.
    """

    def __init__(self, width: int, dim: int, mode: ProjectorMode = "linear") -> None:
        super().__init__(width, dim, kernel_size=1)
        self.mode = mode

    def project(self, backbone_map: Tensor) -> Tensor:
        """The projected map, on the backbone map's device, wherever the projector is."""
        return self(backbone_map.to(self.weight.device)).to(backbone_map.device)

    def forward(self, backbone_map: Tensor) -> Tensor:
        """The projected map."""
        projected = super().forward(backbone_map)
        if self.mode == "spatial_softmax":
            projected = (SHARPNESS * projected.flatten(2)).softmax(-1).view_as(projected)
        return projected


def concatenate_maps(backbone_map: Tensor, projected_map: Tensor, mode: str) -> Tensor:
    """Both maps side by side (paper Sec. 4.2), (B, D + C, h, w); `mode`: the projector's.

    The shares of a spatial softmax are far smaller than the backbone's numbers, so in that mode both parts are
    normalised to length 1 in each cell.
    """
    parts = [backbone_map, projected_map]
    return torch.cat(parts if mode == "linear" else [F.normalize(part, dim=1) for part in parts], dim=1)
