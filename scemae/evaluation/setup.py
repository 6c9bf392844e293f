"""What is measured: an extractor, and how it looks at faces; and on which data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import scemae
from scemae import FaceFeatures, extract_features, iter_features
from scemae.datasets import FaceDataset
from scemae.errors import OptionError
from scemae.evaluation.extractors import ExternalExtractor
from scemae.extraction import Extractor, Margin
from scemae.geometry import Box
from scemae.model.config import Use, validate_use


@dataclass(frozen=True, eq=False)
class EvaluationSetup:
    """An extractor and how it looks at faces; `use`: None leaves the choice to the verb and the model."""

    extractor: Extractor
    align: bool
    expansion: int
    margin: Margin
    use: Use | None

    @classmethod
    def of(
        cls,
        extractor: Extractor,
        *,
        align: bool | None = None,
        expansion: int | None = None,
        margin: Margin = "context",
        use: str | None = None,
    ) -> EvaluationSetup:
        """With the extractor's own choices where there are none; raises OptionError for what it does not have."""
        chosen = None if use is None else validate_use(use)
        if chosen not in (None, "backbone") and extractor.projector is None:
            raise OptionError(f"{extractor.config.name} has no projector: --use backbone is what it offers.")
        return cls(
            extractor,
            extractor.aligner is not None if align is None else align,
            extractor.config.expansion if expansion is None else expansion,
            margin,
            chosen,
        )

    @property
    def described_use(self) -> str:
        """Which features, in words: a detector takes the model's choice for so many faces where there is no `use`."""
        few, more = self.extractor.config.few_shot_use, self.extractor.config.regression_use
        return self.use or (more if few == more else f"{few} of few faces and {more} of more")

    def __str__(self) -> str:
        aligned = "aligned" if self.align else "not aligned"
        use = "" if self.extractor.projector is None else f" {self.described_use},"
        expansion = "" if self.expansion == 1 else f", expansion {self.expansion}"
        return f"{self.extractor.config.name},{use} {aligned}{expansion}"

    def dimensions(self, use: Use) -> int:
        """How many numbers a descriptor of these features has."""
        if isinstance(self.extractor, ExternalExtractor):
            return self.extractor.channels
        config = self.extractor.config
        sizes = {"backbone": config.backbone.width, "projected": config.projector_dim or 0}
        return sizes.get(use, sum(sizes.values()))

    def features(self, images: Any, boxes: Iterable[Box]) -> FaceFeatures:
        """Features of faces that fit into memory."""
        return extract_features(self.extractor, images, boxes=list(boxes), **self._how())

    def stream(self, dataset: FaceDataset, batch_size: int = 16) -> Iterator[FaceFeatures]:
        """Features of a data set in its order, one batch at a time."""
        images = (sample.image() for sample in dataset.samples)
        return iter_features(self.extractor, images, boxes=dataset.boxes, batch_size=batch_size, **self._how())

    def _how(self) -> dict[str, Any]:
        return {"align": self.align, "expansion": self.expansion, "margin": self.margin}

    def settings(self) -> dict[str, Any]:
        """What has to be the same for two results to be of the same thing."""
        model = self.extractor.id
        aligned_by = (
            self.extractor.aligning_model.id if isinstance(self.extractor, ExternalExtractor) and self.align else None
        )
        return {
            "scemae": scemae.__version__,
            "model": model.name,
            "sha256": model.sha256,
            "dtype": str(self.extractor.dtype).removeprefix("torch."),
            "use": self.described_use,
            **({} if aligned_by is None else {"aligned_by": aligned_by.sha256}),
            **self._how(),
        }


def data_settings(dataset: FaceDataset) -> dict[str, Any]:
    """Which faces: name, split, how many, and a digest of their file names and labels in their order."""
    digest = hashlib.sha256()
    for sample in dataset.samples:
        digest.update(sample.path.name.encode() + sample.landmarks.tobytes())
    return {"split": str(dataset), "faces": len(dataset), "digest": digest.hexdigest()[:16]}
