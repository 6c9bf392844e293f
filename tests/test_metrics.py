import numpy as np
import pytest

from scemae.errors import LandmarkInputError
from scemae.metrics import box_diagonal, distance_between, normalised_errors, pixel_errors

NAN = (np.nan, np.nan)
TRUTH = np.array([[(0, 0), (10, 0), (5, 8)], [(2, 2), (2, 22), NAN]], dtype=float)
FOUND = TRUTH + np.array([[(3, 4), (0, 0), (0, -2)], [(0, 1), (6, 8), (0, 0)]])


def test_pixel_errors():
    np.testing.assert_allclose(pixel_errors(FOUND, TRUTH), [(5, 0, 2), (1, 10, np.nan)])


def test_distance_between():
    assert distance_between(TRUTH, 0, 1).tolist() == [10, 20]
    np.testing.assert_allclose(distance_between(TRUTH, 0, 2), [np.sqrt(89), np.nan])


def test_box_diagonal_leaves_out_what_is_not_annotated():
    np.testing.assert_allclose(box_diagonal(TRUTH), [np.hypot(10, 8), 20])


def test_normalised_errors():
    errors = normalised_errors(FOUND, TRUTH, distance_between(TRUTH, 0, 1))
    np.testing.assert_allclose(errors, [(0.5, 0, 0.2), (0.05, 0.5, np.nan)])


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_normalizer_without_length_is_refused(bad):
    with pytest.raises(LandmarkInputError, match="face 1"):
        normalised_errors(FOUND, TRUTH, np.array([10, bad]))


def test_masked_is_nan():
    """Faults A5: numpy's norm reads what lies under a mask."""
    masked = np.ma.masked_invalid(np.nan_to_num(TRUTH, nan=999.0))
    masked[1, 2] = np.ma.masked
    np.testing.assert_array_equal(pixel_errors(FOUND, masked), pixel_errors(FOUND, TRUTH))
    np.testing.assert_array_equal(distance_between(masked, 0, 2), distance_between(TRUTH, 0, 2))
    np.testing.assert_array_equal(box_diagonal(masked), box_diagonal(TRUTH))
    with pytest.raises(LandmarkInputError, match="face 1"):
        normalised_errors(FOUND, TRUTH, np.ma.array([10.0, 20.0], mask=[False, True]))
