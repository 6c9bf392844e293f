"""Dense facial features learned without labels: landmark matching, landmark detection from a few annotated faces."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the table below, for type checkers; tests/test_face.py compares the two
    from scemae.detector.regressor import LandmarkRegressor as LandmarkRegressor
    from scemae.detector.regressor import fit_regressor as fit_regressor
    from scemae.errors import ScemaeError as ScemaeError
    from scemae.export import export_graph as export_graph
    from scemae.extraction import extract_features as extract_features
    from scemae.extraction import iter_features as iter_features
    from scemae.face_boxes import FaceBoxes as FaceBoxes
    from scemae.face_boxes import find_faces as find_faces
    from scemae.features import FaceFeatures as FaceFeatures
    from scemae.landmarks import LandmarkMatches as LandmarkMatches
    from scemae.landmarks import Landmarks as Landmarks
    from scemae.matching import match_landmarks as match_landmarks
    from scemae.weights.zoo import list_models as list_models
    from scemae.weights.zoo import load_model as load_model
    from scemae.weights.zoo import model_info as model_info

__version__ = "0.1.0"

_EXPORTS = {  # public name -> its module
    "FaceBoxes": "face_boxes",
    "FaceFeatures": "features",
    "LandmarkMatches": "landmarks",
    "LandmarkRegressor": "detector.regressor",
    "Landmarks": "landmarks",
    "ScemaeError": "errors",
    "export_graph": "export",
    "extract_features": "extraction",
    "find_faces": "face_boxes",
    "fit_regressor": "detector.regressor",
    "iter_features": "extraction",
    "list_models": "weights.zoo",
    "load_model": "weights.zoo",
    "match_landmarks": "matching",
    "model_info": "weights.zoo",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import, so each name is imported when it is first asked for (PEP 562).
    if name in ("boxes", "errors", "samples", "tables", "weights"):
        return importlib.import_module(f"scemae.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'scemae' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"scemae.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
