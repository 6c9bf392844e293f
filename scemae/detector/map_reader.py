"""What a detector reads from a face: which features, standardised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from scemae.features import FaceFeatures
from scemae.model.config import Use


@dataclass(frozen=True, eq=False)
class MapReader:
    """Features of faces -> the maps that a head is fitted on and predicts from.

    Attributes:
        use: which features.
        mean, std: (C,), the mean and standard deviation of each channel over all cells of the annotated faces.
    """

    use: Use
    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, features: FaceFeatures, use: Use) -> Self:
        """A reader that standardises the maps of these faces."""
        maps = features.map(use)
        return cls(use, maps.mean((0, 2, 3)), maps.std((0, 2, 3)).clamp(min=1e-6))

    @classmethod
    def fit_parts(cls, parts: Iterable[FaceFeatures], use: Use) -> Self:
        """What `fit` finds of all parts together, up to rounding, from one at a time; the parts may be on a GPU."""
        cells, total, squares = 0, torch.zeros(1), torch.zeros(1)
        for part in parts:
            maps = part.map(use)
            variance, mean = (moment.cpu().double() for moment in torch.var_mean(maps, (0, 2, 3), correction=0))
            count = maps[:, 0].numel()
            cells, total, squares = cells + count, total + count * mean, squares + count * (variance + mean**2)
        variance = ((squares - total**2 / cells) / (cells - 1)).clamp(min=0)
        return cls(use, (total / cells).float(), variance.sqrt().float().clamp(min=1e-6))

    def to(self, device: torch.device) -> Self:
        """The same reader for maps on that device."""
        return type(self)(self.use, self.mean.to(device), self.std.to(device))

    def __call__(self, features: FaceFeatures) -> Tensor:
        """Standardised maps (n, C, h, w)."""
        return self.standardise(features.map(self.use))

    def standardise(self, maps: Tensor) -> Tensor:
        """Maps (n, C, h, w) of the features that `use` names: minus the mean, over the deviation. Traceable."""
        return (maps - self.mean[:, None, None]) / self.std[:, None, None]
