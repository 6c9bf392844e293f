"""The mean face's frame: shapes that are known displacements, there and back."""

import pytest
import torch

from scemae.geometry import CellGrid, FaceShapes, MeanFrame, symmetrise
from scemae.geometry.mean_frame import blur

FRAME = MeanFrame(CellGrid(1.5, 4.0), 24)
PLACES = torch.tensor([[[20.0, 30.0], [70.5, 61.25], [47.5, 47.5]]], dtype=torch.float64)


def bump(amplitude, sigma=16.0):
    """Places pushed right, most in the middle: its slope is at most 0.6 a/sigma."""
    away = ((FRAME.places - 47.5) ** 2).sum(-1)
    shape = FRAME.places.clone()
    shape[:, 0] += amplitude * torch.exp(-away / (2 * sigma**2))
    return shape[None]


def test_the_places_are_the_cells_row_by_row():
    assert FRAME.places.shape == (576, 2)
    assert FRAME.places[:2].tolist() == [[1.5, 1.5], [5.5, 1.5]]
    assert FRAME.places[24].tolist() == [1.5, 5.5]
    assert FRAME.places[-1].tolist() == [93.5, 93.5]


def test_a_shifted_face_shifts_every_place():
    shapes = FRAME.places[None] + torch.tensor([3.0, -2.0])
    moved = FRAME.to_face(shapes, PLACES)
    torch.testing.assert_close(moved, PLACES + torch.tensor([3.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(FRAME.to_mean(shapes, moved), PLACES)
    torch.testing.assert_close(FaceShapes(FRAME, shapes).widths(PLACES), torch.ones(1, 3, dtype=torch.float64))


def test_a_place_between_places_is_interpolated():
    shapes = FRAME.places[None].clone()
    row, column = 12, 5
    shapes[0, row * 24 + column, 0] += 8  # the place at (21.5, 49.5)
    halfway = torch.tensor([[[23.5, 49.5], [21.5, 48.5], [30.0, 49.5]]], dtype=torch.float64)
    pushed = FRAME.to_face(shapes, halfway)[..., 0] - halfway[..., 0]
    torch.testing.assert_close(pushed, torch.tensor([[4.0, 6.0, 0.0]], dtype=torch.float64))


def test_what_a_bump_moves_comes_back():
    shapes = bump(15.0)
    assert (FRAME.areas(shapes) > 0).all()
    torch.testing.assert_close(FRAME.to_mean(shapes, FRAME.to_face(shapes, PLACES)), PLACES, atol=1e-3, rtol=0)


def test_nan_stays_nan():
    places = PLACES.clone()
    places[0, 1] = torch.nan
    there = FRAME.to_face(bump(8.0), places)
    assert (
        there.isnan().any(-1).tolist()
        == FRAME.to_mean(bump(8.0), places).isnan().any(-1).tolist()
        == [[False, True, False]]
    )


def test_areas_are_those_of_the_stretched_cells():
    middle = torch.full((2,), 47.5, dtype=torch.float64)
    shapes = (middle + (FRAME.places - middle) * torch.tensor([0.5, 3.0]))[None]
    torch.testing.assert_close(FRAME.areas(shapes), torch.full((1, 23, 23), 1.5, dtype=torch.float64))
    torch.testing.assert_close(FaceShapes(FRAME, shapes).widths(PLACES), torch.full((1, 3), 0.5, dtype=torch.float64))


def test_folds_are_smoothed_away_and_other_faces_stay():
    folded, smooth = bump(12.0, sigma=4.0), bump(5.0)
    assert (FRAME.areas(folded) <= 0).any()
    shapes = FRAME.unfold(torch.cat([folded, smooth]))
    assert (FRAME.areas(shapes) > 0).all()
    assert torch.equal(shapes[1:], smooth)


def test_the_mirror_image_of_a_mirror_image_is_the_face():
    shapes = bump(9.0) + torch.tensor([1.0, 2.0])
    mirrored = FRAME.mirror(shapes, 96)
    torch.testing.assert_close(mirrored, bump(-9.0) + torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(FRAME.mirror(mirrored, 96), shapes)


def test_a_map_is_seen_from_the_mean_face():
    """A ramp of x: what the mean face's places see is where they lie."""
    shapes = bump(6.0)
    ramp = FRAME.places[:, 0].reshape(1, 1, 24, 24).float()
    seen = FRAME.resample(ramp, FRAME.grid, shapes).flatten()
    inside = (shapes[0, :, 0] > 1.5) & (shapes[0, :, 0] < 93.5)
    torch.testing.assert_close(seen[inside], shapes[0, inside, 0].float(), atol=1e-4, rtol=0)


def test_blurring_keeps_the_mean_and_has_the_width():
    maps = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    maps[..., 20, 20] = 1
    blurred = blur(maps, 2.0)[0, 0]
    axis = torch.arange(41.0) - 20
    assert blurred.sum() == pytest.approx(1)
    assert (blurred.sum(0) * axis**2).sum() == pytest.approx(4, rel=0.03)  # the tails are cut at 7 cells


def test_weights_decide_what_is_averaged():
    shapes = FRAME.places[None].clone()
    shapes[0, 12 * 24 + 12] += 50.0  # an outlier without weight
    weights = torch.ones(1, 576, dtype=torch.float64)
    weights[0, 12 * 24 + 12] = 0
    torch.testing.assert_close(FRAME.smooth(shapes, 1.0, weights), FRAME.places[None])


def test_both_sides_of_a_face_say_where_a_landmark_is():
    """On a face that is half as wide on the right, the left one counts 16 times as much."""
    places = torch.tensor([[[30.0, 20.0], [61.0, 24.0], [49.5, 50.0]]], dtype=torch.float64)
    middle = FaceShapes(FRAME, FRAME.places[None])
    agreed = symmetrise(middle, places, [1, 0, 2], 1.0)
    expected = torch.tensor([[[32.0, 22.0], [63.0, 22.0], [47.5, 50.0]]], dtype=torch.float64)
    torch.testing.assert_close(agreed, expected)
    torch.testing.assert_close(symmetrise(middle, places, [1, 0, 2], 0.5), (places + expected) / 2)
    narrow = FRAME.places[None].clone()
    narrow[..., 0] = torch.where(narrow[..., 0] > 47.5, 47.5 + (narrow[..., 0] - 47.5) / 2, narrow[..., 0])
    agreed = symmetrise(FaceShapes(FRAME, narrow), places, [1, 0, 2], 1.0)
    torch.testing.assert_close(agreed[0, 0], torch.tensor([30 + 4 / 17, 20 + 4 / 17], dtype=torch.float64))
    torch.testing.assert_close(agreed[0, 1], torch.tensor([65 - 4 / 17, 20 + 4 / 17], dtype=torch.float64))


def test_a_partner_that_is_not_annotated_says_nothing():
    places = torch.tensor([[[30.0, 20.0], [torch.nan, torch.nan]]], dtype=torch.float64)
    agreed = symmetrise(FaceShapes(FRAME, FRAME.places[None]), places, [1, 0], 1.0)
    assert agreed[0, 0].tolist() == [30.0, 20.0]
    assert agreed[0, 1].isnan().all()
