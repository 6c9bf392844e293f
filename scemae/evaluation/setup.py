"""What is measured: an extractor with the options of its extraction; and on which faces."""

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
from scemae.extraction import Margin, open_batch, stream_faces
from scemae.geometry import Box
from scemae.model.config import Use, validate_use
from scemae.model.extractor import Extractor


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationSetup:
    """An extractor and how it extracts features.

    Attributes:
        extractor: a scemae model, or other features.
        align: refine the crops with the extractor's aligner.
        expansion: cells per patch side.
        margin: what the encoder sees beyond the view, as in `extract_features`.
        use: which features; None: what `match_landmarks` or `fit_regressor` choose for the model.
    """

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
        """None takes the extractor's default; raises OptionError for features that it does not have."""
        features = None if use is None else validate_use(use)
        if features not in (None, "backbone") and extractor.projector is None:
            raise OptionError(f"{extractor.config.name} has no projector; pass --use backbone.")
        return cls(
            extractor=extractor,
            align=extractor.aligner is not None if align is None else align,
            expansion=extractor.config.expansion if expansion is None else expansion,
            margin=margin,
            use=features,
        )

    @property
    def use_label(self) -> str:
        """Which features, in words; without `use` a detector takes the model's choice for the number of its faces."""
        few, more = self.extractor.config.few_shot_use, self.extractor.config.regression_use
        return self.use or (more if few == more else f"{few} of few faces and {more} of more")

    def __str__(self) -> str:
        aligned = "aligned" if self.align else "not aligned"
        use = "" if self.extractor.projector is None else f" {self.use_label},"
        expansion = "" if self.expansion == 1 else f", expansion {self.expansion}"
        return f"{self.extractor.config.name},{use} {aligned}{expansion}"

    def descriptor_size(self, use: Use) -> int:
        """Number of channels of a descriptor of these features."""
        if isinstance(self.extractor, ExternalExtractor):
            return self.extractor.channels
        config = self.extractor.config
        sizes = {"backbone": config.backbone.width, "projected": config.projector_dim or 0}
        return sizes.get(use, sum(sizes.values()))

    def extract(self, images: Any, boxes: Iterable[Box]) -> FaceFeatures:
        """Features of faces that fit into memory together."""
        return extract_features(self.extractor, images, boxes=list(boxes), **self._extraction_options())

    def stream(self, dataset: FaceDataset, batch_size: int = 16) -> Iterator[FaceFeatures]:
        """Features of a dataset in its order, one batch at a time."""
        images = (sample.image() for sample in dataset.samples)
        options = self._extraction_options()
        return iter_features(self.extractor, images, boxes=dataset.boxes, batch_size=batch_size, **options)

    def stream_faces(self, dataset: FaceDataset, batch_size: int = 16) -> Iterator[FaceFeatures]:
        """The same without maps: some 100 kB a face, up to 450 kB if it is aligned."""
        images = (sample.image() for sample in dataset.samples)
        batch = open_batch(images, dataset.boxes, "raise")
        return stream_faces(self.extractor, batch, batch_size=batch_size, **self._extraction_options())

    def _extraction_options(self) -> dict[str, Any]:
        return {"align": self.align, "expansion": self.expansion, "margin": self.margin}

    def settings(self) -> dict[str, Any]:
        """What must be equal for two results to be comparable; JSON-ready."""
        model = self.extractor.id
        aligning_model = self.extractor.aligning_model if isinstance(self.extractor, ExternalExtractor) else None
        return {
            "scemae": scemae.__version__,
            "model": model.name,
            "sha256": model.sha256,
            "dtype": str(self.extractor.dtype).removeprefix("torch."),
            "use": self.use_label,
            **({"aligned_by": aligning_model.id.sha256} if aligning_model and self.align else {}),
            **self._extraction_options(),
        }


def data_settings(dataset: FaceDataset) -> dict[str, Any]:
    """Which faces: split, number, and a digest of their file names and labels in their order; JSON-ready."""
    digest = hashlib.sha256()
    for sample in dataset.samples:
        digest.update(sample.path.name.encode() + sample.landmarks.tobytes())
    return {"split": str(dataset), "faces": len(dataset), "digest": digest.hexdigest()[:16]}
