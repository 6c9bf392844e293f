"""The projector of stage 2 (paper Sec. 3.3): a 1 x 1 convolution, so it means the same at every map size."""

from __future__ import annotations

from torch import nn


class Projector(nn.Conv2d):
    """Backbone map (B, D, h, w) -> projected map (B, C, h, w)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__(width, dim, kernel_size=1)
