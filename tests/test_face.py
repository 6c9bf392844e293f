"""The public face: its names, its laziness, its cost."""

import subprocess
import sys

import pytest

import scemae

NAMES = {
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
}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_these():
    assert set(scemae.__all__) == NAMES
    assert set(scemae._EXPORTS) == NAMES
    assert all(getattr(scemae, name).__doc__ for name in NAMES)
    assert set(dir(scemae)) >= NAMES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = scemae.load_modle


def test_import_and_listing_need_no_torch():
    code = "import sys, scemae; scemae.list_models(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run(code).split() == ["False", "False"]


def test_import_is_fast():
    code = "import time; t = time.perf_counter(); import scemae; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.2
