"""What a detector reads from a face: which features, standardised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

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

    def __call__(self, features: FaceFeatures) -> Tensor:
        """Standardised maps (n, C, h, w)."""
        return self.standardise(features.map(self.use))

    def standardise(self, maps: Tensor) -> Tensor:
        """Maps (n, C, h, w) of the features that `use` names: minus the mean, over the deviation. Traceable."""
        return (maps - self.mean[:, None, None]) / self.std[:, None, None]
