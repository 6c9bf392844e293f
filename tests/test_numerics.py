"""Whatever the caller has set in torch, the verbs give the same numbers."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import scemae


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def points(folder, samples):
    """Landmarks by all verbs, from loading the model on: matched, detected after a fit."""
    model = scemae.load_model(folder, device="cpu")
    features = scemae.extract_features(model, [s.path for s in samples], boxes=[s.box for s in samples])
    matches = scemae.match_landmarks(features[0], samples[0].landmarks, features, use="both", subpixel=True)
    regressor = scemae.fit_regressor(model, features, [s.landmarks for s in samples], use="both")
    assert features.map("both").dtype == torch.float32
    return np.stack([matches.xy, regressor.predict(features).xy])


@pytest.fixture(scope="module")
def wanted(two_block_folder, samples):
    return points(two_block_folder, samples)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(lambda: torch.device("meta"), id="another default device"),
        pytest.param(lambda: torch.autocast("cpu", dtype=torch.bfloat16), id="autocast"),
        pytest.param(lambda: default_dtype(torch.float64), id="another default dtype"),
        pytest.param(torch.inference_mode, id="inference mode"),
    ],
)
def test_what_the_caller_has_set_changes_nothing(two_block_folder, samples, wanted, setting):
    with setting():
        found = points(two_block_folder, samples)
    assert np.abs(found - wanted).max() < 1e-3
