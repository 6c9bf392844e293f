"""The first look for faces in a whole picture: a small fully convolutional network, learned without labels.

It says for each square of 8 x 8 pixels whether the middle of an upright or turned face lies there, and roughly where,
how large and how turned it is. The aligner then starts there, and its verdict decides (docs/find.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scemae.model.aligner import MEAN, STD
from scemae.model.config import FinderConfig
from scemae.model.convolutions import convolution, fold_norms

STRIDE = 8  # px: side of a cell


class FirstLook(NamedTuple):
    """What the network says of each cell, in the picture that it saw.

    Attributes:
        logits: (B, h, w), of a face in the cell.
        centres: (B, 2, h, w), the middle of that face, (x, y), px.
        sides: (B, h, w), the side of its square, px.
        rolls: (B, h, w), by how much it is turned, radians, clockwise as seen.
    """

    logits: Tensor
    centres: Tensor
    sides: Tensor
    rolls: Tensor


class FaceFinder(nn.Module):
    """Pictures (B, 3, H, W), RGB 0..1, to a `FirstLook` of faces whose sides are within `config.sides`."""

    def __init__(self, config: FinderConfig, norm: bool = False) -> None:
        super().__init__()
        self.config = config
        first, second, third = config.widths
        layers = convolution(3, first, 2, norm)
        layers += convolution(first, second, 2, norm) + convolution(second, second, 1, norm)
        layers += convolution(second, third, 2, norm)
        for _ in range(2):
            layers += convolution(third, third, 1, norm)
        self.layers = nn.Sequential(*layers, nn.Conv2d(third, 6, 1))

    def outputs(self, pictures: Tensor) -> Tensor:
        """(B, 6, h, w): logit, offset (x, y) in cells, logarithm of the side over the typical one, cosine, sine."""
        outputs: Tensor = self.layers((pictures - MEAN) / STD).float()
        return outputs

    def forward(self, pictures: Tensor) -> FirstLook:
        """See `FirstLook`."""
        logits, x, y, side, cosine, sine = self.outputs(pictures).unbind(1)
        centres = cell_centres(logits.shape[-2:], logits.device) + torch.stack([x, y], dim=1) * STRIDE
        return FirstLook(logits, centres, side.exp() * self.config.typical_side, torch.atan2(sine, cosine))

    def fold_norms(self) -> FaceFinder:
        """The same function in evaluation mode, without batch normalisation."""
        folded = FaceFinder(self.config)
        folded.layers.load_state_dict(fold_norms(self.layers).state_dict())
        return folded


def cell_centres(shape: torch.Size, device: torch.device) -> Tensor:
    """The middles (2, h, w), (x, y) in px, of the cells of a map (h, w).

    A convolution of stride 2 with padding 1 is centred on even pixels, so three of them on multiples of 8.
    """
    height, width = shape
    rows = torch.arange(height, device=device, dtype=torch.float32) * STRIDE
    columns = torch.arange(width, device=device, dtype=torch.float32) * STRIDE
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
