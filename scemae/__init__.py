"""Dense facial features learned without labels: landmark matching, landmark detection from a few annotated faces."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scemae.detector.regressor import LandmarkRegressor, fit_regressor
    from scemae.errors import ScemaeError
    from scemae.export import export_graph
    from scemae.extraction import extract_features, iter_features
    from scemae.features import FaceFeatures
    from scemae.landmarks import LandmarkMatches, Landmarks
    from scemae.matching import match_landmarks
    from scemae.weights.zoo import list_models, load_model, model_info

__version__ = "0.1.0"

_EXPORTS = {
    "FaceFeatures": "features",
    "LandmarkMatches": "landmarks",
    "LandmarkRegressor": "detector.regressor",
    "Landmarks": "landmarks",
    "ScemaeError": "errors",
    "export_graph": "export",
    "extract_features": "extraction",
    "fit_regressor": "detector.regressor",
    "iter_features": "extraction",
    "list_models": "weights.zoo",
    "load_model": "weights.zoo",
    "match_landmarks": "matching",
    "model_info": "weights.zoo",
}

__all__ = [
    "FaceFeatures",
    "LandmarkMatches",
    "LandmarkRegressor",
    "Landmarks",
    "ScemaeError",
    "export_graph",
    "extract_features",
    "fit_regressor",
    "iter_features",
    "list_models",
    "load_model",
    "match_landmarks",
    "model_info",
]


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import: each name brings its module when it is first asked for (PEP 562).
    if name in ("errors", "samples", "tables", "weights"):
        return importlib.import_module(f"scemae.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'scemae' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"scemae.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
